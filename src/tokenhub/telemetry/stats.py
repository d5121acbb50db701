"""Figures of the last minute, five minutes, hour and day: in all, by model, provider, key, mode.

Each window is a ring of time slots and a running total: a slot is added to the total as it fills
and taken out again when it is over. So reading costs nothing per request, and memory is bounded by
228 slots x 416 labels (``cell.MOST``) x 1 KB, whoever reads or does not; ten models and ten keys
need 2 MB.

A window reaches back at least its length and at most one slot more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenhub.telemetry.cell import KEY, MODE, PAIR, Cell, Cells, Totals, merge_into

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokenhub.telemetry.cell import Label

SHARES = (0.5, 0.95, 0.99)
SECOND_MS, MINUTE_MS = 1_000, 60_000
# Cells or groups before others get their turn on the loop: about 0.2 ms. A chat takes several
# turns and waits for a slice at each of them.
_SLICE = 4


class Span(NamedTuple):
    """A window: its name, its length and that of a slot, in milliseconds."""

    name: str
    length: int
    slot: int


SPANS = (
    Span("1m", 60_000, 5_000),
    Span("5m", 300_000, 5_000),
    Span("1h", 3_600_000, 60_000),
    Span("24h", 86_400_000, 900_000),
)


def reach(resolution: int) -> int:
    """How far back, in milliseconds, windows need stored rows of a second or of a minute."""
    return max(span.length + span.slot for span in SPANS if _takes(span, resolution))


def _takes(span: Span, resolution: int) -> bool:
    return _resolution(span) == resolution


def _resolution(span: Span) -> int:
    # Windows whose slots hold whole minutes take minutes, the others seconds.
    return MINUTE_MS if span.slot >= MINUTE_MS else SECOND_MS


class Window:
    """One window: slots, oldest first, packed once they are full, and their sum by label."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.totals = Totals()
        self._at = 0
        self._filling: Cells = {}
        self._full: deque[tuple[int, dict[Label, bytes]]] = deque()

    def add(self, at_ms: int, cells: Mapping[Label, Cell]) -> None:
        """Take in cells of a moment; moments must not go back by more than a slot."""
        at = at_ms - at_ms % self.span.slot
        if at > self._at:
            self._turn(at)
        for label, cell in cells.items():
            merge_into(self._filling, label, cell)
            self.totals.merge(label, cell)

    def reaches(self, at_ms: int, now_ms: int) -> bool:
        """Whether a moment is not over yet."""
        span = self.span
        return at_ms - at_ms % span.slot > now_ms - span.length - span.slot

    def _turn(self, at: int) -> None:
        if self._filling:
            packed = {label: cell.pack() for label, cell in self._filling.items()}
            self._full.append((self._at, packed))
        self._at, self._filling = at, {}

    def expire(self, now_ms: int) -> None:
        """Take out the slots that are over."""
        span, totals, full = self.span, self.totals, self._full
        over = now_ms - span.length - span.slot
        if self._filling and self._at <= over:
            self._turn(self._at)
        while full and full[0][0] <= over:
            for label, packed in full.popleft()[1].items():
                totals.subtract(label, Cell.unpack(packed))


class Stats:
    """All windows.

    Those whose slots hold whole minutes take minutes, the others seconds: a second with 200 labels
    is 200 cells to merge for each window that takes it. What is closed waits until each window has
    taken it in: all at once would keep everybody else from the loop for milliseconds. Whoever asks
    finds all of it taken in.
    """

    def __init__(self) -> None:
        self._windows = tuple(Window(span) for span in SPANS)
        self._late: deque[tuple[Window, int, Mapping[Label, Cell]]] = deque()

    def add(self, resolution: int, at_ms: int, cells: Mapping[Label, Cell]) -> None:
        """Take the second or minute that began at ``at_ms`` and is over, for ``catch_up``."""
        while len(self._late) >= len(self._windows):  # should nobody have had the time
            self.catch_up()
        for window in self._windows:
            if _takes(window.span, resolution):
                self._late.append((window, at_ms, cells))

    @property
    def late(self) -> bool:
        """There is something to catch up with."""
        return bool(self._late)

    def catch_up(self) -> None:
        """Let one window take in what one span came to, and let go of what is over by then."""
        window, at_ms, cells = self._late.popleft()
        window.expire(at_ms)
        window.add(at_ms, cells)

    def load(self, at_ms: int, label: Label, cell: Cell, resolution: int, now_ms: int) -> None:
        """Take in a stored cell of a second or a minute, as of now; oldest first."""
        self._catch_up()
        for window in self._windows:
            if _takes(window.span, resolution) and window.reaches(at_ms, now_ms):
                window.add(at_ms, {label: cell})

    def expire(self, now_ms: int) -> None:
        """Let go of what is over."""
        self._catch_up()
        for window in self._windows:
            window.expire(now_ms)

    def labels(self) -> set[Label]:
        """The labels of the last day."""
        self._catch_up()
        return set(self._windows[-1].totals)

    def _catch_up(self) -> None:
        while self._late:
            self.catch_up()

    async def report(
        self,
        now_ms: int,
        unfinished: Callable[[int], Sequence[Cells]],
        key_name: Callable[[str], str],
    ) -> Report:
        """All figures; others get their turn on the loop in between.

        Args:
            now_ms: wall time.
            unfinished: gives the cells that no closed second, or minute, of a resolution holds;
                they stay as they are.
            key_name: an API key's name by its id; where it has none the id is shown.
        """
        self.expire(now_ms)
        report: Report = {"global": [], "by_model": {}, "by_provider": {}, "by_api_key": {}}
        report["by_mode"] = {}
        done = 0
        for window in self._windows:
            name = window.span.name
            self._catch_up()
            # At one moment, so that each request is in one of them.
            sources = window.totals.lend(), *unfinished(_resolution(window.span))
            groups = await _grouped(sources, key_name)
            for dimension, members in groups.items():
                if members and dimension != "global":
                    report[dimension][name] = []
                for shown, cell in members.values():
                    row = {"window": name} | shown | figures(cell)
                    if dimension == "global":
                        report["global"].append(row)
                    else:
                        report[dimension][name].append(row)
                    done += 1
                    if done % _SLICE == 0:
                        await asyncio.sleep(0)
        return report


Report = dict[str, Any]
Groups = dict[str, dict[str, tuple[dict[str, str], Cell]]]


async def _grouped(sources: Sequence[Cells], key_name: Callable[[str], str]) -> Groups:
    groups: Groups = {
        "global": {}, "by_model": {}, "by_provider": {}, "by_api_key": {}, "by_mode": {},
    }  # fmt: skip

    def count(dimension: str, name: str, shown: dict[str, str], cell: Cell) -> None:
        group = groups[dimension]
        if name not in group:
            group[name] = (shown, Cell())
        group[name][1].merge(cell)

    for source in sources:
        for done, (label, cell) in enumerate(sorted(source.items()), 1):
            if done % _SLICE == 0:
                await asyncio.sleep(0)
            if label.kind == PAIR:
                count("global", "", {}, cell)
                count("by_model", label.name, {"model_id": label.name}, cell)
                count("by_provider", label.provider, {"provider_id": label.provider}, cell)
            elif label.kind == KEY:
                name = key_name(label.name) or label.name
                shown = {"api_key_id": label.name, "api_key_name": name}
                count("by_api_key", label.name, shown, cell)
            elif label.kind == MODE:
                count("by_mode", label.name, {"mode": label.name}, cell)
    return groups


def figures(cell: Cell) -> dict[str, Any]:
    """The figures of a cell; times in milliseconds, None where nothing was measured."""
    p50, p95, p99 = cell.latency.quantiles(SHARES)
    first50, first95, first99 = cell.ttft.quantiles(SHARES)
    return {
        "request_count": cell.requests,
        "error_count": cell.errors,
        "cancelled_count": cell.cancelled,
        "error_rate": round(cell.errors / cell.requests, 6),
        "errors_by_class": dict(sorted(cell.classes.items())),
        "avg_latency_ms": _ms(cell.latency.mean_ms),
        "p50_latency_ms": _ms(p50),
        "p95_latency_ms": _ms(p95),
        "p99_latency_ms": _ms(p99),
        "avg_ttft_ms": _ms(cell.ttft.mean_ms),
        "p50_ttft_ms": _ms(first50),
        "p95_ttft_ms": _ms(first95),
        "p99_ttft_ms": _ms(first99),
        "total_cost_usd": cell.cost / 1e9,
        "unpriced_count": cell.unpriced,
        "input_tokens": cell.input,
        "output_tokens": cell.output,
        "total_tokens": cell.input + cell.output,
    }


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
