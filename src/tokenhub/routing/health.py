"""Health per provider: what its last answers say about sending it the next request.

                  5 errors in a row                      time is up
      closed ──────────────────────────► open ──────────────────────────► half-open
        ▲                                  ▲     30 s x n, at most 300 s      │
        │                                  └───────── trial fails ────────────┤
        └──────────────────────────────────────────── trial answers ──────────┘

Only errors that are the provider's count. A 429 closes the provider for as long as it asks without
saying that it is ill; a refused credential or an empty account closes it like an outage, under
its own name. Probes have their own counters and never enter the traffic's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenhub.core.decision import ModelView, ProviderView
from tokenhub.core.errors import FailureClass

if TYPE_CHECKING:
    from tokenhub.core.clock import Clock

DEGRADED_AT = 2
DOWN_AT = 5
REJECTED_AT = 2  # one model's 403 must not close a provider whose other models answer
EJECT_S = 30.0
EJECT_MAX_S = 300.0
TRIAL_S = 60.0  # after this a trial that never ended is given up
PAUSE_MAX_S = 30.0  # for a 429 that names no time
RETRY_AFTER_MAX_S = 86_400.0
BUCKET_S = 60.0
BUCKETS = 5
MIN_SAMPLES = 3
SMOOTHING = 0.1

ATTRIBUTABLE = frozenset(
    {
        FailureClass.CONNECT,
        FailureClass.TIMEOUT,
        FailureClass.RESET,
        FailureClass.SERVER,
        FailureClass.OVERLOADED,
        FailureClass.GARBAGE,
    }
)
"""The failures that say something about the provider rather than the request or the client."""

REJECTIONS = frozenset({FailureClass.AUTH, FailureClass.QUOTA})

OnChange = Callable[[str, str, str, str], None]
"""Called with provider id, old state, new state, and the reason."""


class Window:
    """Sums of the last ``BUCKETS`` buckets, and a moving average that outlives them."""

    __slots__ = ("_buckets", "_turn", "usual_ms")

    def __init__(self) -> None:
        # One bucket: requests, errors, timed, latency sum, streams, first-token sum.
        self._buckets = [[0, 0, 0, 0.0, 0, 0.0] for _ in range(BUCKETS)]
        self._turn = 0
        self.usual_ms = 0.0

    def _bucket(self, now: float) -> list[float]:
        turn = int(now / BUCKET_S)
        if turn != self._turn:
            for missed in range(max(self._turn + 1, turn - BUCKETS + 1), turn + 1):
                self._buckets[missed % BUCKETS] = [0, 0, 0, 0.0, 0, 0.0]
            self._turn = turn
        return self._buckets[turn % BUCKETS]

    def answered(self, now: float, latency_ms: float, ttft_ms: float | None) -> None:
        """Count an answer."""
        bucket = self._bucket(now)
        bucket[0] += 1
        bucket[2] += 1
        bucket[3] += latency_ms
        if ttft_ms is not None:
            bucket[4] += 1
            bucket[5] += ttft_ms
        if self.usual_ms:
            self.usual_ms += SMOOTHING * (latency_ms - self.usual_ms)
        else:
            self.usual_ms = latency_ms

    def failed(self, now: float) -> None:
        """Count an error; its time says nothing about an answer's."""
        bucket = self._bucket(now)
        bucket[0] += 1
        bucket[1] += 1

    def rates(self, now: float) -> tuple[float, float, float]:
        """Error rate, mean latency and mean time to the first token; 0 = too few to say."""
        self._bucket(now)
        requests, errors, timed, latency, streams, ttft = map(sum, zip(*self._buckets, strict=True))
        return (
            errors / requests if requests else 0.0,
            latency / timed if timed >= MIN_SAMPLES else 0.0,
            ttft / streams if streams >= MIN_SAMPLES else 0.0,
        )


class _Circuit:
    """One provider's counters. All times are monotonic seconds unless ``_ms``."""

    __slots__ = (
        "consecutive",
        "errors",
        "last_error",
        "last_error_ms",
        "last_probe_error",
        "last_probe_ms",
        "last_success_ms",
        "limited_until",
        "pauses",
        "probe_errors",
        "rejected",
        "requests",
        "returned",
        "state",
        "trial_until",
        "tripped",
        "tripped_by_probe",
        "trips",
        "until",
        "window",
    )

    def __init__(self) -> None:
        self.window = Window()
        self.state = "healthy"
        self.requests = self.errors = self.consecutive = 0
        self.probe_errors = self.rejected = self.trips = self.pauses = 0
        self.tripped = ""
        self.tripped_by_probe = False
        self.until = self.trial_until = self.limited_until = 0.0
        self.returned = float("-inf")
        self.last_error = self.last_probe_error = ""
        self.last_error_ms = self.last_success_ms = self.last_probe_ms = 0

    def closed(self, now: float) -> str:
        """Why nothing may be sent now; "" = it may."""
        if now < self.limited_until:
            return "rate_limited"
        if not self.tripped:
            return ""
        if now < self.until:
            return self.tripped
        return "probing" if now < self.trial_until else ""

    def phase(self, now: float) -> str:
        """The circuit's position: closed, open or half_open."""
        if not self.tripped:
            return "closed"
        return "open" if now < self.until else "half_open"

    def judged(self, now: float) -> str:
        """Healthy, degraded or down."""
        if self.tripped:
            return "down" if now < self.until else "degraded"
        doubtful = self.rejected or max(self.consecutive, self.probe_errors) >= DEGRADED_AT
        return "degraded" if doubtful else "healthy"

    def trip(self, now: float, reason: str, *, by_probe: bool = False) -> None:
        """Open the circuit; for longer when it had not been well for long."""
        self.trips = self.trips + 1 if now - self.returned < EJECT_MAX_S or self.tripped else 1
        self.tripped = reason
        self.tripped_by_probe = by_probe
        self.until = now + min(EJECT_S * self.trips, EJECT_MAX_S)
        self.trial_until = 0.0

    def restore(self, now: float) -> None:
        """Close the circuit."""
        if self.tripped:
            self.returned = now
        self.tripped = ""
        self.trial_until = 0.0
        self.consecutive = self.probe_errors = self.rejected = self.pauses = 0

    def next_change(self, now: float) -> float:
        """When time alone changes the view."""
        times = [(int(now / BUCKET_S) + 1) * BUCKET_S, self.limited_until]
        if self.tripped:
            times += [self.until, self.trial_until]
        return min(time for time in times if time > now)


class Health:
    """All providers. Everything is learned at once, from the loop's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}
        self._models: dict[str, Window] = {}
        self._views: dict[str, ProviderView] = {}
        self._model_views: dict[str, ModelView] = {}
        self._changed: set[str] = set()
        self._changed_models: set[str] = set()
        self._next = 0.0
        self._on_change: list[OnChange] = []

    def on_change(self, callback: OnChange) -> None:
        """Have every change of a provider's state reported."""
        self._on_change.append(callback)

    def begin(self, provider_id: str) -> bool:
        """Whether an attempt may start now; takes the trial of a half-open circuit.

        Each True is answered by one ``answered``, ``failed`` or ``cancelled``.
        """
        circuit = self._circuits.get(provider_id)
        if circuit is None:
            return True
        now = self._clock.monotonic()
        if circuit.closed(now):
            return False
        if circuit.tripped:
            circuit.trial_until = now + TRIAL_S
            self._changed.add(provider_id)
        return True

    def first_token(self, provider_id: str) -> None:
        """The first token of an attempt has come, so a trial has passed."""
        circuit = self._circuits.get(provider_id)
        if circuit is not None and circuit.tripped:
            circuit.restore(self._clock.monotonic())
            self._touch(provider_id, circuit, "answered")

    def answered(
        self, provider_id: str, model_id: str, latency_ms: float, ttft_ms: float | None = None
    ) -> None:
        """An attempt came to a good end."""
        now = self._clock.monotonic()
        circuit = self._circuit(provider_id)
        circuit.requests += 1
        circuit.last_success_ms = self._clock.now_ms()
        circuit.window.answered(now, latency_ms, ttft_ms)
        if (window := self._models.get(model_id)) is None:
            window = self._models[model_id] = Window()
        window.answered(now, latency_ms, ttft_ms)
        self._changed_models.add(model_id)
        circuit.restore(now)
        self._touch(provider_id, circuit, "answered")

    def failed(
        self, provider_id: str, kind: str, message: str = "", retry_after: float | None = None
    ) -> None:
        """An attempt failed.

        Args:
            provider_id: who was asked.
            kind: a ``FailureClass`` value; one that is not the provider's changes nothing.
            message: safe for an admin to read.
            retry_after: seconds the provider asked to be left alone, None if it did not say.
        """
        now = self._clock.monotonic()
        circuit = self._circuit(provider_id)
        circuit.requests += 1
        if kind == FailureClass.RATE_LIMITED:
            self._pause(circuit, now, retry_after)
        elif kind in REJECTIONS:
            self._note(circuit, now, message or kind)
            circuit.rejected += 1
            if circuit.rejected >= REJECTED_AT or circuit.tripped or kind == FailureClass.QUOTA:
                circuit.trip(now, kind)
        elif kind in ATTRIBUTABLE:
            self._note(circuit, now, message or kind)
            circuit.consecutive += 1
            if retry_after is not None:
                self._pause(circuit, now, retry_after)
            self._consider_trip(circuit, now)
        circuit.trial_until = 0.0
        self._touch(provider_id, circuit, kind)

    def cancelled(self, provider_id: str) -> None:
        """An attempt ended without saying anything about the provider."""
        if (circuit := self._circuits.get(provider_id)) is not None and circuit.trial_until:
            circuit.trial_until = 0.0
            self._changed.add(provider_id)

    def probed(self, provider_id: str, error: str | None) -> None:
        """A background probe ended; ``error`` None = it was answered.

        A good probe ends what bad probes began; only traffic ends what traffic began, because a
        provider may list its models and still fail to run them.
        """
        now = self._clock.monotonic()
        circuit = self._circuit(provider_id)
        circuit.last_probe_ms = self._clock.now_ms()
        circuit.last_probe_error = error or ""
        if error is None:
            circuit.probe_errors = 0
            if circuit.tripped_by_probe and circuit.tripped:
                circuit.restore(now)
        else:
            circuit.probe_errors += 1
            if circuit.probe_errors >= DOWN_AT and circuit.phase(now) != "open":
                circuit.trip(now, "down", by_probe=True)
        self._touch(provider_id, circuit, "probe")

    def reset(self, provider_id: str) -> None:
        """Forget what closed a provider: its credential or address has changed."""
        if (circuit := self._circuits.get(provider_id)) is not None:
            circuit.restore(self._clock.monotonic())
            circuit.limited_until = 0.0
            self._touch(provider_id, circuit, "changed")

    def retain(self, provider_ids: Iterable[str], model_ids: Iterable[str]) -> None:
        """Forget everything about providers and models that are not named."""
        self._circuits = {i: self._circuits[i] for i in provider_ids if i in self._circuits}
        self._models = {i: self._models[i] for i in model_ids if i in self._models}
        self._changed, self._changed_models = set(self._circuits), set(self._models)
        self._views, self._model_views = {}, {}

    def available(self, provider_id: str) -> bool:
        """Whether an attempt could start now."""
        circuit = self._circuits.get(provider_id)
        return circuit is None or not circuit.closed(self._clock.monotonic())

    def tick(self) -> None:
        """Report the changes that time alone has made; the prober calls it every second."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._renew(now)

    def views(self) -> tuple[dict[str, ProviderView], dict[str, ModelView]]:
        """Providers and models as a decision reads them; never changed after they are given out."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._renew(now)
        if self._changed:
            fresh = {i: self._view(self._circuits[i], now) for i in self._changed}
            self._views = self._views | fresh
            self._changed = set()
        if self._changed_models:
            models = {i: _model_view(self._models[i], now) for i in self._changed_models}
            self._model_views = self._model_views | models
            self._changed_models = set()
        return self._views, self._model_views

    def _renew(self, now: float) -> None:
        if int(now / BUCKET_S) != int(self._next / BUCKET_S) or not self._views:
            self._changed_models.update(self._models)
        for provider_id, circuit in self._circuits.items():
            self._touch(provider_id, circuit, "time")
        self._plan(now)

    def _plan(self, now: float) -> None:
        changes = [circuit.next_change(now) for circuit in self._circuits.values()]
        self._next = min(changes, default=now + BUCKET_S)

    def _circuit(self, provider_id: str) -> _Circuit:
        if (circuit := self._circuits.get(provider_id)) is None:
            circuit = self._circuits[provider_id] = _Circuit()
        return circuit

    def _note(self, circuit: _Circuit, now: float, message: str) -> None:
        circuit.errors += 1
        circuit.window.failed(now)
        circuit.last_error = message
        circuit.last_error_ms = self._clock.now_ms()

    @staticmethod
    def _pause(circuit: _Circuit, now: float, retry_after: float | None) -> None:
        if retry_after is None:
            retry_after = min(2.0**circuit.pauses, PAUSE_MAX_S)
            circuit.pauses += 1
        until = now + min(max(retry_after, 0.0), RETRY_AFTER_MAX_S)
        circuit.limited_until = max(circuit.limited_until, until)

    @staticmethod
    def _consider_trip(circuit: _Circuit, now: float) -> None:
        phase = circuit.phase(now)
        # Failures of requests that were already under way when it opened prolong nothing.
        if phase == "half_open" or (phase == "closed" and circuit.consecutive >= DOWN_AT):
            circuit.trip(now, "down")

    def _touch(self, provider_id: str, circuit: _Circuit, reason: str) -> None:
        now = self._clock.monotonic()
        self._changed.add(provider_id)
        self._next = min(self._next, circuit.next_change(now))
        new = circuit.judged(now)
        if new != (old := circuit.state):
            circuit.state = new
            for callback in self._on_change:
                callback(provider_id, old, new, reason)

    def _view(self, circuit: _Circuit, now: float) -> ProviderView:
        closed = circuit.closed(now)
        error_rate, latency, ttft = circuit.window.rates(now)
        return ProviderView(
            state=circuit.judged(now),
            closed=closed,
            retry_ms=self._wall(self._reopens(circuit), now) if closed else 0,
            error_rate=error_rate,
            usual_ms=circuit.window.usual_ms,
            latency_ms=latency,
            ttft_ms=ttft,
        )

    @staticmethod
    def _reopens(circuit: _Circuit) -> float:
        ends = max(circuit.until, circuit.trial_until) if circuit.tripped else 0.0
        return max(ends, circuit.limited_until)

    def _wall(self, moment: float, now: float) -> int:
        return self._clock.now_ms() + int((moment - now) * 1000)

    def rows(self, provider_ids: Iterable[str]) -> list[dict[str, Any]]:
        """One row per provider for the admin, sorted by id; times in RFC 3339, None = never."""
        return [self._row(provider_id) for provider_id in sorted(provider_ids)]

    def _row(self, provider_id: str) -> dict[str, Any]:
        now = self._clock.monotonic()
        circuit = self._circuits.get(provider_id) or _Circuit()
        closed = circuit.closed(now)
        error_rate, latency, ttft = circuit.window.rates(now)
        return {
            "provider_id": provider_id,
            "state": circuit.judged(now),
            "circuit": circuit.phase(now),
            "closed_by": closed,
            "total_requests": circuit.requests,
            "total_errors": circuit.errors,
            "consec_errors": circuit.consecutive,
            "error_rate": round(error_rate, 4),
            "avg_latency_ms": round(latency or circuit.window.usual_ms, 1),
            "avg_ttft_ms": round(ttft, 1),
            "last_error": circuit.last_error,
            "last_error_time": _instant(circuit.last_error_ms),
            "last_success_at": _instant(circuit.last_success_ms),
            "cooldown_until": _instant(self._wall(self._reopens(circuit), now) if closed else 0),
            "probe_errors": circuit.probe_errors,
            "last_probe_at": _instant(circuit.last_probe_ms),
            "last_probe_error": circuit.last_probe_error,
        }


def _model_view(window: Window, now: float) -> ModelView:
    _, latency, ttft = window.rates(now)
    return ModelView(usual_ms=window.usual_ms, latency_ms=latency, ttft_ms=ttft)


def _instant(unix_ms: int) -> str | None:
    if not unix_ms:
        return None
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
