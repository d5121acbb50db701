"""Failover: what to do after each failed attempt of a request, and what retries may cost.

    while True:
        match plan.next():      # raises what the client gets when nothing is left to try
            case Wait(seconds): sleep, ask again
            case Try() as step: open it; plan.succeeded(step) / plan.failed(step, error)

At most three attempts. Another provider comes first and is free. The provider that has just failed
is asked again only while retries stay below 10 % of the requests of the last 10 seconds (three are
always allowed), after a full-jitter back-off, inside the deadline of the whole request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.decision import Attempt, Candidate
from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.routing.refusal import exhausted

if TYPE_CHECKING:
    from tokenhub.core.clock import Clock
    from tokenhub.core.decision import Decision
    from tokenhub.routing.health import Health

MAX_ATTEMPTS = 3
RETRY_SHARE = 0.1
RETRY_FLOOR = 3
RETRY_WINDOW_S = 10
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
FIRST_TOKEN_S = 10.0

FINAL = frozenset({FailureClass.CLIENT, FailureClass.CONTENT_FILTER, FailureClass.DEADLINE})
"""Nobody else would answer better, or there is no time left."""

AGAIN = frozenset(
    {
        FailureClass.CONNECT,
        FailureClass.RESET,
        FailureClass.SERVER,
        FailureClass.OVERLOADED,
        FailureClass.GARBAGE,
    }
)
"""The same model may do better at once. A silent one is not asked twice: it may still be at work
on the first question, and bill both."""

PROVIDER_WIDE = frozenset(
    {
        FailureClass.RATE_LIMITED,
        FailureClass.AUTH,
        FailureClass.QUOTA,
        FailureClass.MISDIRECTED,
    }
)
"""No other model of that provider would do better."""


class RetryBudget:
    """How many retries on a provider that failed are left, over all requests of the process.

    Attributes:
        running: how many requests have begun in the running second; each adds itself.
        ends: when that second is over, in monotonic seconds: then ``turn`` is called first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = 0
        self.running = 0
        self.ends = 1.0
        # One second more than the window for retries and none for requests: always on the safe
        # side of the exact sliding window.
        self._requests = [0] * RETRY_WINDOW_S  # the running one's are not in it yet
        self._retries = [0] * (RETRY_WINDOW_S + 1)

    def take(self) -> bool:
        """Take one retry, if one is left."""
        now = self._clock.monotonic()
        if now >= self.ends:
            self.turn(now)
        allowed = max(RETRY_FLOOR, RETRY_SHARE * (sum(self._requests) + self.running))
        if sum(self._retries) + 1 > allowed:
            return False
        self._retries[self._second % len(self._retries)] += 1
        return True

    def turn(self, moment: float) -> None:
        """Begin the second of a monotonic time."""
        now = int(moment)
        self._requests[self._second % RETRY_WINDOW_S] = self.running
        self.running = 0
        for second in range(max(self._second + 1, now - RETRY_WINDOW_S), now + 1):
            self._requests[second % RETRY_WINDOW_S] = 0
            self._retries[second % len(self._retries)] = 0
        self._second = now
        self.ends = now + 1.0


class Wait(msgspec.Struct, frozen=True):
    """Let some time pass, then ask again."""

    seconds: float


class Try(msgspec.Struct, eq=False, gc=False):
    """One attempt to make now.

    Attributes:
        candidate: whom to ask.
        number: 1 for the first.
        first_token_s: give up when nothing has come by then.
        left_s: give up by then in any case.
        started, started_ms: monotonic seconds and wall time.
        ttft_ms: from then to the first token, None while none has come.
        open: how it ended has not been reported yet.
    """

    candidate: Candidate
    number: int
    first_token_s: float
    left_s: float
    started: float
    started_ms: int
    ttft_ms: float | None = None
    open: bool = True


Step = Try | Wait
_CANCELLED = ProviderError(FailureClass.CANCELLED, "Given up before it ended.")
Record = Callable[["Decision", Attempt, float | None, float | None], object]


class _History:
    """What was tried of a request and how it failed; not made while nothing has."""

    __slots__ = (
        "again", "asked", "broken", "candidates", "kinds", "last", "overflowed", "random", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.candidates: Sequence[Candidate] = ()  # once somebody has looked at them
        self.kinds: dict[str, str] = {}  # model id → how its last attempt failed
        self.broken: dict[str, str] = {}  # provider id → how its last attempt failed
        self.asked: set[str] = set()  # provider ids
        self.last = ""
        self.overflowed = 0  # the largest context window that was too small
        self.waits: list[float] = []
        self.again: Candidate | None = None
        self.random: random.Random | None = None

    def begun(self, candidate: Candidate) -> None:
        """An attempt was begun."""
        self.kinds.setdefault(candidate.model_id, "")
        self.asked.add(candidate.provider_id)

    def failed(self, candidate: Candidate, error: ProviderError) -> None:
        """An attempt has failed."""
        self.last = error.kind
        self.kinds[candidate.model_id] = error.kind
        if error.kind == FailureClass.CONTEXT:
            self.overflowed = max(self.overflowed, candidate.model.max_context_tokens)
        else:
            self.broken[candidate.provider_id] = error.kind
        if error.retry_after is not None:
            self.waits.append(error.retry_after)

    def elsewhere(self, candidate: Candidate) -> bool:
        """Whether nothing that failed speaks against a candidate."""
        window = candidate.model.max_context_tokens
        return (
            candidate.model_id not in self.kinds
            and candidate.provider_id not in self.broken
            and (not self.overflowed or not window or window > self.overflowed)
        )


class Failover:
    """The attempts of one request.

    Args:
        decision: whom to ask, in which order.
        health: which providers may be asked now.
        budget: the process's retry budget; the request is counted there.
        clock: for times and the deadline.
        deadline: monotonic time at which the whole request ends.
        record: is told each attempt once, with the seconds of a Retry-After and the monotonic
            time.
        first_token_s: for models that set no limit of their own.
        now_ms: wall time; the first attempt begins with this object.
    """

    __slots__ = (
        "_began", "_began_ms", "_budget", "_clock", "_deadline", "_decision", "_first",
        "_first_token_s", "_health", "_history", "_record", "_started", "attempts",
    )  # fmt: skip

    def __init__(
        self,
        decision: Decision,
        health: Health,
        budget: RetryBudget,
        clock: Clock,
        deadline: float,
        record: Record,
        first_token_s: float,
        now_ms: int,
    ) -> None:
        self.attempts: list[Attempt] = []
        self._decision = decision
        self._health = health
        self._budget = budget
        self._clock = clock
        self._deadline = deadline
        self._record = record
        self._first_token_s = first_token_s
        self._started = 0
        self._first: Candidate | None = None
        self._history: _History | None = None
        self._began_ms = now_ms
        self._began = began = clock.monotonic()
        if began >= budget.ends:
            budget.turn(began)
        budget.running += 1

    def next(self) -> Step:
        """What to do now. A ``Try`` has begun and must be reported back.

        Raises:
            HubError: there is nothing more to try; the client gets this. Raised and not returned,
                for an error that whoever raises it also holds keeps all its frames in a circle.
        """
        if not self._started:
            began = self._began
            left = self._deadline - began
            first = self._decision.chosen
            if left > 0 and self._health.begin(first.model.provider_id):
                self._started = 1
                self._first = first
                patience = self._patience(first, left) if self._decision.query.stream else left
                return Try(first, 1, patience, left, began, self._began_ms)
        now = self._clock.monotonic()
        return self._next(self._deadline - now, now)

    def _next(self, left: float, now: float) -> Step:
        history = self._so_far()
        again, history.again = history.again, None
        if left <= 0:
            raise exhausted(self._decision, self.attempts, history.waits, late=True)
        if again is not None and self._begins(again):
            return self._try(again, left, now)
        if history.last not in FINAL and self._started < MAX_ATTEMPTS:
            for candidate in self._candidates(history):
                if history.elsewhere(candidate) and self._begins(candidate):
                    return self._try(candidate, left, now)
            if (wait := self._retry(history, left)) is not None:
                return wait
        raise exhausted(self._decision, self.attempts, history.waits)

    def hedge(self) -> Try | None:
        """A further attempt beside those under way, at a provider that has none; or None.

        The caller reports the losers with ``cancelled``.
        """
        now = self._clock.monotonic()
        left = self._deadline - now
        if left > 0 and self._started < MAX_ATTEMPTS:
            history = self._so_far()
            for candidate in self._candidates(history):
                fresh = candidate.provider_id not in history.asked and history.elsewhere(candidate)
                if fresh and self._begins(candidate):
                    return self._try(candidate, left, now)
        return None

    def first_token(self, step: Try) -> None:
        """The first token of an attempt has come; there is no other attempt after this."""
        if step.ttft_ms is None:
            step.ttft_ms = (self._clock.monotonic() - step.started) * 1000.0
            self._health.first_token(step.candidate.model.provider_id)

    def succeeded(self, step: Try, cost: int | None = None) -> Attempt:
        """An attempt has answered to the end; ``cost`` in nano-dollars, None if unknown."""
        step.open = False
        now = self._clock.monotonic()
        attempt = _attempt(step, now, cost)
        self.attempts.append(attempt)
        self._record(self._decision, attempt, None, now)
        return attempt

    def failed(self, step: Try, error: ProviderError, cost: int | None = None) -> Attempt:
        """An attempt failed, before or after its first byte."""
        self._so_far().failed(step.candidate, error)
        return self._close(step, error, cost)

    def cancelled(self, step: Try, cost: int | None = None, why: str = "") -> Attempt | None:
        """The client left, or another attempt was faster, or ``why`` it could not be made.

        Nothing when it was reported before.
        """
        if not step.open:
            return None
        error = ProviderError(FailureClass.CANCELLED, why) if why else _CANCELLED
        return self._close(step, error, cost)

    def _so_far(self) -> _History:
        if self._history is None:
            self._history = _History()
            if self._first is not None:
                self._history.begun(self._first)
        return self._history

    def _candidates(self, history: _History) -> Sequence[Candidate]:
        history.candidates = history.candidates or self._decision.candidates
        return history.candidates

    def _begins(self, candidate: Candidate) -> bool:
        health = self._health
        return health.offers(candidate.model) and health.begin(candidate.provider_id)

    def _retry(self, history: _History, left: float) -> Wait | None:
        candidates = self._candidates(history)
        again = next((one for one in candidates if self._worth(one, history)), None)
        if again is None:
            return None
        if history.random is None:
            history.random = random.Random(self._decision.seed)  # noqa: S311
        most = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**self._started)
        pause = history.random.uniform(0.0, most)
        if pause >= left or not self._budget.take():
            return None
        history.again = again
        return Wait(pause)

    def _worth(self, candidate: Candidate, history: _History) -> bool:
        broken = history.broken.get(candidate.provider_id, "")
        if not broken or broken in PROVIDER_WIDE:
            return False
        window = candidate.model.max_context_tokens
        if history.overflowed and window and window <= history.overflowed:
            return False
        own = history.kinds.get(candidate.model_id)
        if not (own is None or own in AGAIN) or not self._health.offers(candidate.model):
            return False
        return self._health.available(candidate.provider_id)

    def _try(self, candidate: Candidate, left: float, now: float) -> Try:
        """An attempt after something was found to be noted."""
        self._started += 1
        self._so_far().begun(candidate)
        patience = self._patience(candidate, left) if self._decision.query.stream else left
        return Try(candidate, self._started, patience, left, now, self._clock.now_ms())

    def _patience(self, candidate: Candidate, left: float) -> float:
        """The seconds that the attempt just begun may take to a stream's first token."""
        first = self._usual_patience(candidate)
        if limit := self._decision.limits.max_latency_ms:
            first = min(first, limit / 1000.0)
        if self._started < min(MAX_ATTEMPTS, self._decision.count):
            first = min(first, left / 2.0)  # leaves time for another one
        return min(first, left)

    def _usual_patience(self, candidate: Candidate) -> float:
        return candidate.model.first_token_ms / 1000.0 or self._first_token_s

    def _kind(self, step: Try, error: ProviderError) -> str:
        """How an attempt failed: a client in a hurry says nothing about the provider."""
        query = self._decision.query
        silent = error.kind == FailureClass.TIMEOUT and error.status is None
        if silent and query.stream and step.ttft_ms is None:
            limit = (query.limits.max_latency_ms or 0) / 1000.0
            if step.first_token_s == limit < self._usual_patience(step.candidate):
                return FailureClass.LATENCY
        return error.kind

    def _close(self, step: Try, error: ProviderError, cost: int | None) -> Attempt:
        step.open = False
        now = self._clock.monotonic()
        attempt = msgspec.structs.replace(
            _attempt(step, now, cost),
            kind=self._kind(step, error),
            status=error.status,
            message=error.message,
            param=error.param,
            provider_code=error.code,
        )
        self.attempts.append(attempt)
        self._record(self._decision, attempt, error.retry_after, now)
        return attempt


def _attempt(step: Try, now: float, cost: int | None) -> Attempt:
    """One that has just answered; by position, which is half the time."""
    candidate = step.candidate
    model = candidate.model
    return Attempt(
        step.number, model.id, model.provider_id, step.started_ms, "", None, "", "", "",
        (now - step.started) * 1000.0, step.ttft_ms, cost, candidate.propensity,
    )  # fmt: skip
