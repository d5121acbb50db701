"""Prometheus metrics: own integers and histograms, put into text when somebody scrapes.

Every label has a closed set of values: they come from the catalog, from sets in the code, or, past
``MOST_VALUES``, they are counted as ``other``. Nothing a client sends becomes a label. Text format
0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from tokenhub.telemetry.cell import CANCELLED, OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokenhub.core.decision import Attempt, Filtered
    from tokenhub.telemetry.cell import Group
    from tokenhub.telemetry.journal import Entry

MOST_VALUES = 200
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

LATENCY_MS = tuple(10.0 * 2**n for n in range(10))
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TTFT_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
OVERHEAD_S = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

Labels = tuple[str, ...]


class Gauge(NamedTuple):
    """One metric whose values are asked for at the scrape: (label values, value) each."""

    name: str
    kind: str  # gauge or counter
    help: str
    labels: Labels
    values: Sequence[tuple[Labels, float | int]]


class Counter:
    """Sums by label values; ``scale`` divides what is shown."""

    def __init__(self, name: str, text: str, labels: Labels, scale: float = 1) -> None:
        self.name = name
        self.help = text
        self.labels = labels
        self.values: dict[Labels, list[int]] = {}
        self._scale = scale

    def at(self, *labels: str) -> list[int]:
        """The one-element list that counts for these label values."""
        return self.values.setdefault(labels, [0])

    def lines(self) -> Iterator[str]:
        """The text, line by line."""
        yield from _head(self.name, "counter", self.help)
        for values, [amount] in list(self.values.items()):
            yield _line(self.name, self.labels, values, amount / self._scale)


class Histogram:
    """Distributions by label values; ``bounds`` are the upper ends of the buckets."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.help = text
        self.labels = labels
        self.bounds = bounds
        # Per label values: the count of each bucket, one for +Inf, and last the sum.
        self.values: dict[Labels, list[float]] = {}

    def at(self, *labels: str) -> list[float]:
        """The list that counts for these label values: to be changed by ``count`` only."""
        return self.values.setdefault(labels, [0] * (len(self.bounds) + 2))

    def lines(self) -> Iterator[str]:
        """The text, line by line."""
        yield from _head(self.name, "histogram", self.help)
        bucket_labels = (*self.labels, "le")
        bounds = (*map(_number, self.bounds), "+Inf")
        for values, counts in list(self.values.items()):
            *buckets, total = counts
            for bound, count in zip(bounds, accumulate(buckets), strict=True):
                yield _line(f"{self.name}_bucket", bucket_labels, (*values, bound), count)
            yield _line(f"{self.name}_sum", self.labels, values, total)
            yield _line(f"{self.name}_count", self.labels, values, sum(buckets))


class Metrics:
    """What finished requests add up to since the process started."""

    def __init__(self) -> None:
        self.requests = Counter(
            "tokenhub_requests_total",
            "Finished requests. status: ok, error, or cancelled (the client left).",
            ("mode", "model", "provider", "status"),
        )
        self.latency_ms = Histogram(
            "tokenhub_request_latency_ms",
            "Duration of successful requests in milliseconds.",
            ("mode", "model", "provider"),
            LATENCY_MS,
        )
        self.cost = Counter(
            "tokenhub_cost_usd_total", "What requests cost.", ("model", "provider"), 1e9
        )
        self.unpriced = Counter(
            "tokenhub_unpriced_requests_total",
            "Requests whose cost is not known.",
            ("model", "provider"),
        )
        self.tokens = Counter(
            "tokenhub_tokens_total", "Tokens.", ("model", "provider", "direction")
        )
        self.errors = Counter(
            "tokenhub_request_errors_total",
            "Requests that ended in an error, by the status the client got.",
            ("mode", "model", "provider", "http_status"),
        )
        self.attempts = Counter(
            "tokenhub_attempts_total",
            "Tries at providers. outcome: ok, or the error class.",
            ("model", "provider", "outcome"),
        )
        self.skips = Counter(
            "tokenhub_provider_skips_total",
            "Models that could not be asked for a request, by the rule they broke.",
            ("provider", "reason"),
        )
        self.stream_events_dropped = Counter(
            "tokenhub_stream_events_dropped_total",
            "Events of streams that were not passed on because they were no JSON objects.",
            ("model", "provider"),
        )
        self.duration = Histogram(
            "tokenhub_request_duration_seconds",
            "Duration of finished requests.",
            ("endpoint", "model", "provider", "status"),
            DURATION_S,
        )
        self.ttft = Histogram(
            "tokenhub_time_to_first_token_seconds",
            "Start of a try to the first byte of its stream.",
            ("model", "provider"),
            TTFT_S,
        )
        self.overhead = Histogram(
            "tokenhub_overhead_seconds",
            "Time in the hub itself: all of it less the wait for the provider. Successful "
            "requests of one try.",
            ("endpoint",),
            OVERHEAD_S,
        )
        self._families = (
            self.requests, self.latency_ms, self.cost, self.unpriced, self.tokens, self.errors,
            self.attempts, self.skips, self.stream_events_dropped, self.duration, self.ttft,
            self.overhead,
        )  # fmt: skip
        self._known: dict[str, set[str]] = {"model": set(), "provider": set(), "reason": set()}

    def counts(
        self, model: str, provider: str, mode: str, endpoint: str, status: int, error_class: str
    ) -> Counts:
        """Where requests of one kind are counted."""
        pair = self._closed("model", model), self._closed("provider", provider)
        return Counts(self, pair, (mode, endpoint), status, error_class)

    def attempted(self, attempt: Attempt) -> None:
        """Count a try."""
        model = self._closed("model", attempt.model_id)
        provider = self._closed("provider", attempt.provider_id)
        self.attempts.at(model, provider, attempt.kind or "ok")[0] += 1

    def skipped(self, filtered: Sequence[Filtered]) -> None:
        """Count models that could not be asked."""
        for one in filtered:
            provider = self._closed("provider", one.provider_id)
            self.skips.at(provider, self._closed("reason", one.reason))[0] += 1

    def dropped(self, model_id: str, provider_id: str, events: int) -> None:
        """Count events of a stream that were not passed on."""
        model, provider = self._closed("model", model_id), self._closed("provider", provider_id)
        self.stream_events_dropped.at(model, provider)[0] += events

    def _closed(self, label: str, value: str) -> str:
        known = self._known[label]
        if value not in known:
            if len(known) >= MOST_VALUES:
                return OTHER
            known.add(value)
        return value

    def lines(self, gauges: Iterable[Gauge]) -> Iterator[str]:
        """The whole exposition, line by line, each with its line end."""
        for family in self._families:
            yield from family.lines()
        for gauge in gauges:
            yield from _head(gauge.name, gauge.kind, gauge.help)
            for values, amount in gauge.values:
                yield _line(gauge.name, gauge.labels, values, amount)


class Counts:
    """The counters and histograms of requests of one kind, found once and kept.

    Looking up nine label sets would cost more than counting does.

    Attributes:
        kind: what tells them apart; of the same kind they are the same ones.
    """

    def __init__(
        self,
        metrics: Metrics,
        pair: tuple[str, str],
        how: tuple[str, str],
        status: int,
        error_class: str,
    ) -> None:
        self.kind = (*pair, *how, status, error_class)
        mode, endpoint = how
        ended = "cancelled" if status == CANCELLED else "error"
        self._ok = not error_class
        self._metrics = metrics
        self._pair = pair
        self._ttft: list[float] | None = None
        self._requests = metrics.requests.at(mode, *pair, "ok" if self._ok else ended)
        self._duration = metrics.duration.at(endpoint, *pair, "ok" if self._ok else ended)
        self._cost = metrics.cost.at(*pair)
        self._unpriced = metrics.unpriced.at(*pair)
        self._input = metrics.tokens.at(*pair, "input")
        self._output = metrics.tokens.at(*pair, "output")
        if self._ok:
            self._latency = metrics.latency_ms.at(mode, *pair)
            self._overhead = metrics.overhead.at(endpoint)
            self._attempt = metrics.attempts.at(*pair, "ok")
        elif ended == "error":
            self._errors = metrics.errors.at(mode, *pair, str(status))
        else:
            self._errors = [0]

    def add(self, group: Group, waits: Sequence[float]) -> None:
        """Count some requests; ``waits`` are the seconds each of one try waited for it."""
        self._requests[0] += len(group.entries)
        seconds = [milliseconds / 1000.0 for milliseconds in group.latencies]
        count(self._duration, DURATION_S, seconds)
        if self._ok:
            count(self._latency, LATENCY_MS, group.latencies)
            own = []
            for entry, whole, wait in zip(group.entries, seconds, waits, strict=True):
                if len(entry.attempts) == 1:
                    own.append(whole - wait if whole > wait else 0.0)
                else:
                    self._attempted(entry)
            count(self._overhead, OVERHEAD_S, own)
            self._attempt[0] += len(own)
        else:
            self._errors[0] += len(group.entries)
            for entry in group.entries:
                self._attempted(entry)
        if group.ttfts:
            if self._ttft is None:
                self._ttft = self._metrics.ttft.at(*self._pair)
            count(self._ttft, TTFT_S, [milliseconds / 1000.0 for milliseconds in group.ttfts])
        self._unpriced[0] += group.unpriced
        self._cost[0] += group.cost
        self._input[0] += group.input
        self._output[0] += group.output

    def _attempted(self, entry: Entry) -> None:
        for attempt in entry.attempts:
            self._metrics.attempted(attempt)


def count(counts: list[float], bounds: tuple[float, ...], values: Sequence[float]) -> None:
    """Count values in a histogram's list."""
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    counts[-1] += sum(values)


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}\n", f"# TYPE {name} {kind}\n"


def _line(name: str, labels: Labels, values: Labels, amount: float) -> str:
    if not labels:
        return f"{name} {_number(amount)}\n"
    pairs = ",".join(
        f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True)
    )
    return f"{name}{{{pairs}}} {_number(amount)}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
