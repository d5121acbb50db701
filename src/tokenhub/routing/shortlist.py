"""Shortlist: what one decision found that the next one would find again.

Most requests differ in nothing that screening reads but their sizes, and while these fit into
every context window the answer is the same. So under one evidence it is found once, with the odds
of ``thompson`` over it, and a decision looks at one model instead of all. Of the evidence screening
reads only which providers are closed, so the models that may answer stay the same from look to look
and only the odds over them are found anew. ``decide`` chooses the same with and without shortlists;
a property test holds it to that.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tokenhub.core.decision import DEFAULT_OUTPUT_TOKENS, Decision, Limits, Mode
from tokenhub.routing.eligibility import MARGIN, UNLIMITED
from tokenhub.routing.record import record_end
from tokenhub.routing.scoring import Fit, Odds
from tokenhub.routing.thompson import bucket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenhub.core.catalog import Model
    from tokenhub.core.decision import Candidate, Evidence, Filtered, RouteQuery
    from tokenhub.routing.eligibility import Screen
    from tokenhub.routing.rules import Rules

Kind = tuple[str, str, str, str, tuple[str, ...], bool, bool, Limits]
MOST_KINDS = 64  # whose screening is kept; names and limits in them are the clients'

# Rules that screening tries before it looks at the window.
_BEFORE_WINDOW = frozenset((
    "not_allowed", "disabled", "provider_disabled", "tools_unsupported", "images_unsupported",
    "weight_below_minimum",
))  # fmt: skip

_ID = attrgetter("id")
_THOMPSON = Mode.THOMPSON.value  # reading a member of an enumeration is a call


def kind_of(query: RouteQuery) -> Kind:
    """All that screening and the choice of a mode read of a request, but its sizes."""
    tokens = query.input_tokens
    return (
        query.model, "small" if tokens < 1000 else bucket_of(tokens), query.mode, query.key_mode,
        query.models, query.tools, query.images, query.limits,
    )  # fmt: skip


class Shortlists:
    """Those found so far under one set of rules.

    Attributes:
        found: under the running look at the evidence.
        screened: what screening found, under this look or an earlier one.
    """

    __slots__ = ("found", "screened")

    def __init__(self) -> None:
        self.found: dict[Kind, Shortlist] = {}
        self.screened: dict[Kind, Screened] = {}

    def look_again(self) -> None:
        """The evidence is another one from here on."""
        self.found = {}

    def screen(self, kind: Kind, screen: Screen, rules: Rules, evidence: Evidence) -> Screened:
        """The models that may answer requests of a kind; ``screen`` is used if it must be."""
        screened = self.screened.get(kind)
        if screened is None or not screened.holds_under(evidence):
            if len(self.screened) >= MOST_KINDS:
                self.screened = {}
            screened = self.screened[kind] = Screened(screen, rules, evidence)
        return screened


def _closed(evidence: Evidence) -> dict[str, tuple[str, int]]:
    """All that screening reads of health when no limit on times is in force."""
    return {
        provider_id: (view.closed, view.retry_ms)
        for provider_id, view in evidence.providers.items()
        if view.closed
    }


class Screened:
    """The models that may answer any small request of one kind, while the same ones are closed.

    Args:
        screen: for the smallest request of the kind, see ``smallest``; without a limit on times.
        rules: for all the models there are.
        evidence: for what is closed.

    Attributes:
        models: in the order of their ids; ``ids`` are these.
        filtered: the others.
        narrowest: a request that needs more tokens is not small; -1 when there are no models.
    """

    __slots__ = ("_closed", "_unavailable", "filtered", "ids", "models", "narrowest")

    def __init__(self, screen: Screen, rules: Rules, evidence: Evidence) -> None:
        self._closed = _closed(evidence)
        self._unavailable: Mapping[str, str] = dict(evidence.unavailable)
        self.models: list[Model] = []
        self.narrowest = UNLIMITED
        filtered: list[Filtered] = []
        for model in rules.catalog.models.values():
            verdict = screen.judge(model)
            if isinstance(verdict, Fit):
                self.models.append(model)
            else:
                filtered.append(verdict)
                if verdict.reason in _BEFORE_WINDOW:
                    continue
            self.narrowest = min(self.narrowest, model.max_context_tokens or UNLIMITED)
        self.models.sort(key=_ID)
        if not self.models:
            self.narrowest = -1
        self.ids = [model.id for model in self.models]
        self.filtered = tuple(filtered)

    def holds_under(self, evidence: Evidence) -> bool:
        """Whether screening would find the same under another evidence."""
        return self._unavailable == evidence.unavailable and self._closed == _closed(evidence)


class Shortlist:
    """The models that may answer any small request of one kind, and the odds over them.

    Args:
        screened: these models.
        limits: those in force.
        rules: digest of the rules.
        evidence: for times and arms.
        bucket: the token bucket of the kind.
        complete: finds all candidates of a request by the long way, from it and its draw.
    """

    __slots__ = (
        "_bucket", "_complete", "_count", "_evidence", "_filtered", "_limits", "_models",
        "_narrowest", "_odds", "_rules", "_seats", "_steps",
    )  # fmt: skip

    def __init__(
        self,
        screened: Screened,
        limits: Limits,
        rules: str,
        evidence: Evidence,
        bucket: str,
        complete: Callable[[RouteQuery, float], tuple[Candidate, ...]],
    ) -> None:
        self._models = screened.models
        self._count = len(screened.models)
        self._narrowest = screened.narrowest
        self._filtered = screened.filtered
        self._limits = limits
        self._rules = rules
        self._evidence = evidence
        self._bucket = bucket
        self._complete = complete
        self._odds = Odds(screened.ids, evidence)
        self._steps = self._odds.steps
        self._seats: dict[int, _Seat] = {}

    def choose(self, query: RouteQuery, seed: int, draw: float) -> Decision | None:
        """What the long way would decide for a request of the kind.

        None when it is too large for some window that was looked at.
        """
        room = DEFAULT_OUTPUT_TOKENS if query.max_tokens is None else query.max_tokens
        # As screening has it: int(tokens * MARGIN) + room > window.
        if query.input_tokens * MARGIN >= self._narrowest - room + 1:
            return None
        place = bisect_right(self._steps, draw)
        seat = self._seats.get(place)
        if seat is None:
            seat = self._seats[place] = self._seat(place)
        return Decision(
            query, seed, draw, seat.chosen, self._count, self._complete, self._filtered,
            seat.reason, _THOMPSON, _THOMPSON, self._limits, self._bucket, self._rules,
            self._evidence, seat.record_end,
        )  # fmt: skip

    def _seat(self, place: int) -> _Seat:
        chosen = self._odds.candidate(place, self._models[place], None, 0.0)
        reason = f"routed-weight-{chosen.model.weight}"
        return _Seat(chosen, reason, record_end(self._bucket, chosen, self._evidence.turn))


class _Seat(NamedTuple):
    """What all choices of one model under one look have in common."""

    chosen: Candidate
    reason: str
    record_end: str


def smallest(query: RouteQuery) -> RouteQuery:
    """The request of the same kind that overflows no window."""
    return msgspec.structs.replace(query, input_tokens=0, size=None, max_tokens=0)
