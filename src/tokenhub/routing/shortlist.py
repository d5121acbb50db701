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
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, overload

import msgspec

from tokenhub.core.decision import DEFAULT_OUTPUT_TOKENS, Candidate, Decision, Limits, Mode
from tokenhub.routing.eligibility import MARGIN, UNLIMITED, expected_cost, expected_times
from tokenhub.routing.scoring import Fit, Odds
from tokenhub.routing.thompson import bucket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tokenhub.core.catalog import Model
    from tokenhub.core.decision import Evidence, Filtered, RouteQuery
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
    return (
        query.model, bucket_of(query.input_tokens), query.mode, query.key_mode, query.models,
        query.tools, query.images, query.limits,
    )  # fmt: skip


def listed(query: RouteQuery, shortlists: Shortlists) -> Shortlist | None:
    """The shortlist that a request can be decided by, if there is one."""
    found = shortlists.found.get(kind_of(query))
    return found if found is not None and found.holds(query) else None


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
        "_bucket", "_complete", "_evidence", "_filtered", "_limits", "_models", "_narrowest",
        "_odds", "_rules", "_seats", "_steps",
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

    def holds(self, query: RouteQuery) -> bool:
        """Whether a request of the kind is small enough for every window looked at."""
        room = DEFAULT_OUTPUT_TOKENS if query.max_tokens is None else query.max_tokens
        return int(query.input_tokens * MARGIN) + room <= self._narrowest

    def choose(self, query: RouteQuery, seed: int, draw: float) -> Decision:
        """What the long way would decide for a request that the list holds."""
        place = bisect_right(self._steps, draw)
        seat = self._seats.get(place)
        if seat is None:
            seat = self._seats[place] = _Seat(
                self._models[place], place, self._odds, self._evidence
            )
        room = DEFAULT_OUTPUT_TOKENS if query.max_tokens is None else query.max_tokens
        chosen = Candidate(
            model=seat.model,
            score=seat.score,
            terms=seat.terms,
            cost=expected_cost(seat.model.prices, query.input_tokens, room * query.choices),
            expected_ms=seat.stream_ms if query.stream else seat.whole_ms,
            propensity=seat.propensity,
            mean=seat.mean,
            sd=seat.sd,
        )
        return Decision(
            query=query,
            candidates=Ranking(chosen, len(self._models), query, draw, self._complete),
            filtered=self._filtered,
            reason=seat.reason,
            policy=_THOMPSON,
            mode=_THOMPSON,
            limits=self._limits,
            seed=seed,
            draw=draw,
            bucket=self._bucket,
            rules=self._rules,
            evidence=self._evidence,
        )


class _Seat:
    """What all choices of one model under one look have in common."""

    __slots__ = (
        "mean", "model", "propensity", "reason", "score", "sd", "stream_ms", "terms", "whole_ms",
    )  # fmt: skip

    def __init__(self, model: Model, place: int, odds: Odds, evidence: Evidence) -> None:
        self.model = model
        self.mean, self.sd = odds.arms[place]
        self.score = -self.mean
        self.terms = {"reward": self.score}
        self.propensity = odds.chances[place]
        self.reason = f"routed-weight-{model.weight}"
        self.stream_ms, self.whole_ms = expected_times(model, evidence)


def smallest(query: RouteQuery) -> RouteQuery:
    """The request of the same kind that overflows no window."""
    return msgspec.structs.replace(query, input_tokens=0, size=None, max_tokens=0)


class Ranking(Sequence[Candidate]):
    """Candidates best first; all but the choice are made when somebody looks at them.

    Args:
        chosen: the first.
        count: how many there are.
        query, draw: what was decided.
        complete: makes all of them from these two, the same one first.
    """

    __slots__ = ("_all", "_chosen", "_complete", "_count", "_draw", "_query")

    def __init__(
        self,
        chosen: Candidate,
        count: int,
        query: RouteQuery,
        draw: float,
        complete: Callable[[RouteQuery, float], tuple[Candidate, ...]],
    ) -> None:
        self._chosen = chosen
        self._count = count
        self._query = query
        self._draw = draw
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
            self._all = self._complete(self._query, self._draw)
        return self._all
