"""Shortlist: what one decision found that the next one would find again.

Most requests differ in nothing that screening reads but their sizes, and while these fit into
every context window the answer is the same. So under one evidence it is found once, with the odds
of ``thompson`` over it, and a decision looks at one model instead of all. ``decide`` chooses the
same with and without shortlists; a property test holds it to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, overload

import msgspec

from tokenhub.core.decision import DEFAULT_OUTPUT_TOKENS, Candidate
from tokenhub.routing.eligibility import MARGIN, UNLIMITED
from tokenhub.routing.scoring import Fit, Odds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenhub.core.catalog import Model
    from tokenhub.core.decision import Evidence, Filtered, RouteQuery
    from tokenhub.routing.eligibility import Screen

Shape = tuple[tuple[str, ...], bool, bool, int]
Shortlists = dict[Shape, "Shortlist"]
"""Those found so far under one set of rules and one evidence."""

# Rules that screening tries before it looks at the window.
_BEFORE_WINDOW = frozenset((
    "not_allowed", "disabled", "provider_disabled", "tools_unsupported", "images_unsupported",
    "weight_below_minimum",
))  # fmt: skip


_ID = attrgetter("id")


class Shortlist:
    """The models that may answer any small request of one shape, and the odds over them.

    Args:
        screen: for the smallest request of the shape, see ``smallest``.
        models: all there are.
        evidence: for the arms.
    """

    __slots__ = ("_narrowest", "filtered", "models", "odds")

    def __init__(self, screen: Screen, models: Iterable[Model], evidence: Evidence) -> None:
        self.models: list[Model] = []
        filtered: list[Filtered] = []
        self._narrowest = UNLIMITED
        for model in models:
            verdict = screen.judge(model)
            if isinstance(verdict, Fit):
                self.models.append(model)
            else:
                filtered.append(verdict)
                if verdict.reason in _BEFORE_WINDOW:
                    continue
            self._narrowest = min(self._narrowest, model.max_context_tokens or UNLIMITED)
        self.models.sort(key=_ID)
        self.filtered = tuple(filtered)
        self.odds = Odds([model.id for model in self.models], evidence) if self.models else None

    def holds(self, query: RouteQuery) -> bool:
        """Whether a request of the shape is small enough for every window looked at."""
        room = DEFAULT_OUTPUT_TOKENS if query.max_tokens is None else query.max_tokens
        return int(query.input_tokens * MARGIN) + room <= self._narrowest


def smallest(query: RouteQuery) -> RouteQuery:
    """The request of the same shape that overflows no window."""
    return msgspec.structs.replace(query, input_tokens=0, size=None, max_tokens=0)


class Ranking(Sequence[Candidate]):
    """Candidates best first; all but the choice are made when somebody looks at them.

    Args:
        chosen: the first.
        count: how many there are.
        complete: makes all of them, the same one first.
    """

    __slots__ = ("_all", "_chosen", "_complete", "_count")

    def __init__(
        self, chosen: Candidate, count: int, complete: Callable[[], tuple[Candidate, ...]]
    ) -> None:
        self._chosen = chosen
        self._count = count
        self._complete = complete
        self._all: tuple[Candidate, ...] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        return self._chosen if index == 0 else self._made()[index]

    def __iter__(self) -> Iterator[Candidate]:
        yield self._chosen
        yield from self._made()[1:]

    def _made(self) -> tuple[Candidate, ...]:
        if self._all is None:
            self._all = self._complete()
        return self._all
