"""One provider's circuit and the sliding window of its answers; no clock, times are passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DEGRADED_AT = 2
DOWN_AT = 5
EJECT_S = 30.0
EJECT_MAX_S = 300.0
BUCKET_S = 60.0
BUCKETS = 5
MIN_SAMPLES = 3
SMOOTHING = 0.1


class Window:
    """Sums of the last ``BUCKETS`` buckets, and a moving average that outlives them."""

    __slots__ = ("_buckets", "_past", "_turn", "bucket", "ends", "usual_ms")

    def __init__(self) -> None:
        # One bucket: errors, answers, latency sum, streams, first-token sum.
        self._buckets = [[0, 0, 0.0, 0, 0.0] for _ in range(BUCKETS)]
        self.bucket: list[float] = self._buckets[0]
        self._past: list[float] = [0, 0, 0.0, 0, 0.0]  # the sums of the other buckets
        self._turn = 0
        self.ends = BUCKET_S  # when the bucket is full
        self.usual_ms = 0.0

    def advance(self, now: float) -> None:
        """Begin the bucket of a monotonic time."""
        turn = int(now / BUCKET_S)
        for missed in range(max(self._turn + 1, turn - BUCKETS + 1), turn + 1):
            self._buckets[missed % BUCKETS] = [0, 0, 0.0, 0, 0.0]
        self._turn = turn
        self.ends = (turn + 1) * BUCKET_S
        self.bucket = self._buckets[turn % BUCKETS]
        # Nothing is in the running one yet.
        self._past = [sum(column) for column in zip(*self._buckets, strict=True)]

    @staticmethod
    def answered(
        windows: Iterable[Window], now: float, latency_ms: float, ttft_ms: float | None
    ) -> None:
        """Count an answer in all of some windows: one call for the provider's and the model's."""
        for window in windows:
            if now >= window.ends:
                window.advance(now)
            bucket = window.bucket
            bucket[1] += 1
            bucket[2] += latency_ms
            if ttft_ms is not None:
                bucket[3] += 1
                bucket[4] += ttft_ms
            if usual := window.usual_ms:
                window.usual_ms = usual + SMOOTHING * (latency_ms - usual)
            else:
                window.usual_ms = latency_ms

    def failed(self, now: float) -> None:
        """Count an error; its time says nothing about an answer's."""
        if now >= self.ends:
            self.advance(now)
        self.bucket[0] += 1

    def rates(self, now: float) -> tuple[float, float, float]:
        """Error rate, mean latency and mean time to the first token; 0 = too few to say."""
        if now >= self.ends:
            self.advance(now)
        past, last = self._past, self.bucket
        errors, answers, streams = past[0] + last[0], past[1] + last[1], past[3] + last[3]
        return (
            errors / (errors + answers) if errors else 0.0,
            (past[2] + last[2]) / answers if answers >= MIN_SAMPLES else 0.0,
            (past[4] + last[4]) / streams if streams >= MIN_SAMPLES else 0.0,
        )


class Circuit:
    """One provider's counters. All times are monotonic seconds unless ``_ms``.

    ``calm``: ``well`` was found true, and nothing but answers has come since.
    """

    __slots__ = (
        "answered",
        "calm",
        "consecutive",
        "errors",
        "last_error",
        "last_error_ms",
        "last_probe_error",
        "last_probe_ms",
        "limited_until",
        "opened",
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
        self.tripped_by_probe = self.calm = False
        self.until = self.trial_until = self.limited_until = 0.0
        self.opened = self.returned = float("-inf")
        self.last_error = self.last_probe_error = ""
        self.last_error_ms = self.last_probe_ms = 0
        self.answered = 0.0  # the last time

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

    @property
    def well(self) -> bool:
        """There is nothing that an answer would change but the figures."""
        doubts = self.consecutive or self.probe_errors or self.rejected or self.pauses
        return not (self.tripped or doubts) and self.state == "healthy"

    def trip(self, now: float, reason: str, *, by_probe: bool = False) -> None:
        """Open the circuit; for longer when it had not been well for long."""
        self.trips = self.trips + 1 if now - self.returned < EJECT_MAX_S or self.tripped else 1
        self.tripped = reason
        self.tripped_by_probe = by_probe
        self.opened = now
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
