"""Failover: what to do after each failed attempt of a request, and what retries may cost.

    while True:
        match plan.next():
            case Wait(seconds): sleep, ask again
            case Stop(error):   raise it
            case Try() as step: open it; plan.succeeded(step) / plan.failed(step, error)

At most three attempts. Another provider comes first and is free. The provider that has just failed
is asked again only while retries stay below 10 % of the requests of the last 10 seconds (three are
always allowed), after a full-jitter back-off, inside the deadline of the whole request.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.decision import Attempt, Candidate
from tokenhub.core.errors import FailureClass, HubError, ProviderError
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

PROVIDER_WIDE = frozenset({FailureClass.RATE_LIMITED, FailureClass.AUTH, FailureClass.QUOTA})
"""No other model of that provider would do better."""


class RetryBudget:
    """How many retries on a provider that failed are left, over all requests of the process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = 0
        # One second more than the window for retries and none for requests: always on the safe
        # side of the exact sliding window.
        self._requests = [0] * RETRY_WINDOW_S
        self._retries = [0] * (RETRY_WINDOW_S + 1)

    def request(self) -> None:
        """Count a request."""
        self._turn()
        self._requests[self._second % RETRY_WINDOW_S] += 1

    def take(self) -> bool:
        """Take one retry, if one is left."""
        self._turn()
        allowed = max(RETRY_FLOOR, RETRY_SHARE * sum(self._requests))
        if sum(self._retries) + 1 > allowed:
            return False
        self._retries[self._second % len(self._retries)] += 1
        return True

    def _turn(self) -> None:
        now = int(self._clock.monotonic())
        if now == self._second:
            return
        for second in range(max(self._second + 1, now - RETRY_WINDOW_S), now + 1):
            self._requests[second % RETRY_WINDOW_S] = 0
            self._retries[second % len(self._retries)] = 0
        self._second = now


class Wait(msgspec.Struct, frozen=True):
    """Let some time pass, then ask again."""

    seconds: float


class Stop(msgspec.Struct, frozen=True):
    """There is nothing more to try; the client gets this."""

    error: HubError


class Try:
    """One attempt to make now.

    Attributes:
        candidate: whom to ask.
        number: 1 for the first.
        first_token_s: give up when nothing has come by then.
        left_s: give up by then in any case.
    """

    __slots__ = (
        "candidate",
        "first_token_s",
        "left_s",
        "number",
        "open",
        "started",
        "started_ms",
        "ttft_ms",
    )

    def __init__(
        self, candidate: Candidate, number: int, first_token_s: float, left_s: float, clock: Clock
    ) -> None:
        self.candidate = candidate
        self.number = number
        self.first_token_s = first_token_s
        self.left_s = left_s
        self.started = clock.monotonic()
        self.started_ms = clock.now_ms()
        self.ttft_ms: float | None = None
        self.open = True


Step = Try | Wait | Stop
_CANCELLED = ProviderError(FailureClass.CANCELLED, "Given up before it ended.")
Record = Callable[[Attempt, float | None], object]


class Failover:
    """The attempts of one request.

    Args:
        decision: whom to ask, in which order.
        health: which providers may be asked now.
        budget: the process's retry budget; the request is counted there.
        clock: for times and the deadline.
        deadline: monotonic time at which the whole request ends.
        record: is told each attempt once, with the seconds of a Retry-After.
        first_token_s: for models that set no limit of their own.
    """

    __slots__ = (
        "_again", "_asked", "_broken", "_budget", "_clock", "_deadline", "_decision",
        "_first_token_s", "_health", "_kinds", "_last", "_overflowed", "_random", "_record",
        "_started", "_waits", "attempts",
    )  # fmt: skip

    def __init__(
        self,
        decision: Decision,
        *,
        health: Health,
        budget: RetryBudget,
        clock: Clock,
        deadline: float,
        record: Record,
        first_token_s: float = FIRST_TOKEN_S,
    ) -> None:
        self.attempts: list[Attempt] = []
        self._decision = decision
        self._health = health
        self._budget = budget
        self._clock = clock
        self._deadline = deadline
        self._record = record
        self._first_token_s = first_token_s
        self._random: random.Random | None = None
        self._started = 0
        self._kinds: dict[str, str] = {}  # model id → how its last attempt failed
        self._broken: dict[str, str] = {}  # provider id → how its last attempt failed
        self._asked: set[str] = set()  # provider ids
        self._last = ""
        self._overflowed = 0  # the largest context window that was too small
        self._waits: list[float] = []
        self._again: Candidate | None = None
        budget.request()

    def next(self) -> Step:
        """What to do now. A ``Try`` has begun and must be reported back."""
        left = self._deadline - self._clock.monotonic()
        again, self._again = self._again, None
        if left <= 0:
            return Stop(exhausted(self._decision, self.attempts, self._waits, late=True))
        if again is not None and self._health.begin(again.provider_id):
            return self._try(again, left)
        if self._last not in FINAL and self._started < MAX_ATTEMPTS:
            for candidate in self._decision.candidates:
                if self._elsewhere(candidate) and self._health.begin(candidate.provider_id):
                    return self._try(candidate, left)
            if (wait := self._retry(left)) is not None:
                return wait
        return Stop(exhausted(self._decision, self.attempts, self._waits))

    def hedge(self) -> Try | None:
        """A further attempt beside those under way, at a provider that has none; or None.

        The caller reports the losers with ``cancelled``.
        """
        left = self._deadline - self._clock.monotonic()
        if left > 0 and self._started < MAX_ATTEMPTS:
            for candidate in self._decision.candidates:
                fresh = candidate.provider_id not in self._asked and self._elsewhere(candidate)
                if fresh and self._health.begin(candidate.provider_id):
                    return self._try(candidate, left)
        return None

    def first_token(self, step: Try) -> None:
        """The first token of an attempt has come; there is no other attempt after this."""
        if step.ttft_ms is None:
            step.ttft_ms = (self._clock.monotonic() - step.started) * 1000.0
            self._health.first_token(step.candidate.provider_id)

    def succeeded(self, step: Try, cost: int | None = None) -> Attempt:
        """An attempt has answered to the end; ``cost`` in nano-dollars, None if unknown."""
        return self._close(step, None, cost)

    def failed(self, step: Try, error: ProviderError, cost: int | None = None) -> Attempt:
        """An attempt failed, before or after its first byte."""
        provider_id = step.candidate.provider_id
        self._last = error.kind
        self._kinds[step.candidate.model_id] = error.kind
        if error.kind == FailureClass.CONTEXT:
            window = step.candidate.model.max_context_tokens
            self._overflowed = max(self._overflowed, window)
        else:
            self._broken[provider_id] = error.kind
        if error.retry_after is not None:
            self._waits.append(error.retry_after)
        return self._close(step, error, cost)

    def cancelled(self, step: Try, cost: int | None = None) -> Attempt | None:
        """The client left, or another attempt was faster. Nothing when it was reported before."""
        if not step.open:
            return None
        return self._close(step, _CANCELLED, cost)

    def _elsewhere(self, candidate: Candidate) -> bool:
        window = candidate.model.max_context_tokens
        return (
            candidate.model_id not in self._kinds
            and candidate.provider_id not in self._broken
            and (not self._overflowed or not window or window > self._overflowed)
        )

    def _retry(self, left: float) -> Wait | None:
        again = next(filter(self._worth_again, self._decision.candidates), None)
        if again is None:
            return None
        if self._random is None:
            self._random = random.Random(self._decision.seed)  # noqa: S311
        pause = self._random.uniform(0.0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**self._started))
        if pause >= left or not self._budget.take():
            return None
        self._again = again
        return Wait(pause)

    def _worth_again(self, candidate: Candidate) -> bool:
        broken = self._broken.get(candidate.provider_id, "")
        if not broken or broken in PROVIDER_WIDE:
            return False
        window = candidate.model.max_context_tokens
        if self._overflowed and window and window <= self._overflowed:
            return False
        own = self._kinds.get(candidate.model_id)
        return (own is None or own in AGAIN) and self._health.available(candidate.provider_id)

    def _try(self, candidate: Candidate, left: float) -> Try:
        self._started += 1
        self._kinds.setdefault(candidate.model_id, "")
        self._asked.add(candidate.provider_id)
        first = left
        if self._decision.query.stream:
            first = candidate.model.first_token_ms / 1000.0 or self._first_token_s
            if limit := self._decision.limits.max_latency_ms:
                first = min(first, limit / 1000.0)
            if self._started < min(MAX_ATTEMPTS, len(self._decision.candidates)):
                first = min(first, left / 2.0)  # leaves time for another one
            first = min(first, left)
        return Try(candidate, self._started, first, left, self._clock)

    def _close(self, step: Try, error: ProviderError | None, cost: int | None) -> Attempt:
        step.open = False
        candidate = step.candidate
        attempt = Attempt(
            number=step.number,
            model_id=candidate.model_id,
            provider_id=candidate.provider_id,
            at_ms=step.started_ms,
            kind="" if error is None else error.kind,
            status=None if error is None else error.status,
            message="" if error is None else error.message,
            param="" if error is None else error.param,
            provider_code="" if error is None else error.code,
            latency_ms=(self._clock.monotonic() - step.started) * 1000.0,
            ttft_ms=step.ttft_ms,
            cost=cost,
            propensity=candidate.propensity,
        )
        self.attempts.append(attempt)
        self._record(attempt, None if error is None else error.retry_after)
        return attempt
