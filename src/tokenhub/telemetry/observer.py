"""Where finished requests become numbers: statistics, time series and metrics from one queue.

On the request's way there is one append to a list. Folding, about 10 us a request, comes a quarter
of a second later, when the list is long, or when somebody asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenhub.telemetry import query
from tokenhub.telemetry.cell import KEY, MODE, PAIR, Seen, pair_of, sample_of
from tokenhub.telemetry.metrics import Metrics
from tokenhub.telemetry.series import DAY, HOUR, MINUTE, RETENTION_DAYS, SECOND, Series
from tokenhub.telemetry.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.clock import Clock
    from tokenhub.core.decision import Filtered
    from tokenhub.storage.database import Database
    from tokenhub.telemetry.journal import Entry
    from tokenhub.telemetry.query import Question
    from tokenhub.telemetry.stats import Report

TICK_S = 0.25
FOLD_AT = 256
FLUSH_TICKS = 8


class Observer:
    """Takes finished requests; answers with numbers.

    Args:
        db: where roll-ups go.
        clock: wall time.
        call_later: the loop's; a timer runs only while something waits.
        retention_days: how long hours of the time series are kept if nothing else was set.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        call_later: Callable[[float, Callable[[], None]], object],
        *,
        retention_days: int = RETENTION_DAYS,
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._waiting: list[Seen] = []
        self._ticking = False
        self._ticks = 0
        self.metrics = Metrics()
        self.stats = Stats()
        self.series = Series(db, self.stats.add, retention_days=retention_days)

    async def open(self) -> None:
        """Take up what the last life stored."""
        now = self._clock.now_ms()
        await self.series.open(now)
        for resolution, back in ((MINUTE, DAY), (SECOND, HOUR)):
            until = now - now % resolution
            async for at, label, cell in self.series.stored(resolution, now - back, until):
                self.stats.load(at, label, cell, resolution)
        # The running minute stands in no row of a minute yet.
        async for at, label, cell in self.series.stored(
            SECOND, now - now % MINUTE, now - now % SECOND
        ):
            self.stats.load(at, label, cell, MINUTE)
        self.stats.expire(now)
        self.series.known(self.stats.labels())

    def observe(self, entry: Entry, upstream_s: float, filtered: tuple[Filtered, ...] = ()) -> None:
        """Take a request that is over; never waits."""
        waiting = self._waiting
        waiting.append(Seen(entry, upstream_s, filtered))
        if len(waiting) >= FOLD_AT:
            self.fold()
        if not self._ticking:
            self._ticking = True
            self._call_later(TICK_S, self._tick)

    def fold(self) -> None:
        """Count what waits, and close what is over."""
        waiting, self._waiting = self._waiting, []
        series, metrics = self.series, self.metrics
        now = self._clock.now_ms()
        for seen in waiting:
            entry = seen.entry
            ended = entry.at_ms + int(entry.latency_ms)
            if series.second + SECOND <= ended <= now:
                series.advance(ended)
            sample = sample_of(entry)
            series.cell(PAIR, *pair_of(entry)).add(sample)
            series.cell(KEY, entry.key_id).add(sample)
            series.cell(MODE, entry.mode).add(sample)
            metrics.add(seen)
        series.advance(now)

    def _tick(self) -> None:
        self.fold()
        self._ticks += 1
        if self._ticks % FLUSH_TICKS == 0 or not self.series.running:
            self.series.flush()
        self.stats.expire(self._clock.now_ms())
        self._ticking = bool(self.series.running or self.series.pending)
        if self._ticking:
            self._call_later(TICK_S, self._tick)

    async def report(self, key_name: Callable[[str], str]) -> Report:
        """The figures of all windows."""
        self.fold()
        return await self.stats.report(self._clock.now_ms(), self.series.running, key_name)

    async def query(self, asked: Question) -> dict[str, Any]:
        """A time series; see ``query.answer``."""
        self.fold()
        return await query.answer(self.series, asked, self._clock.now_ms())

    async def prune(self) -> int:
        """Delete what is older than its retention; how many rows."""
        self.fold()
        now = self._clock.now_ms()
        self.stats.expire(now)
        self.series.known(self.stats.labels())
        return await self.series.prune(now)

    def close(self) -> None:
        """Queue everything for the writer."""
        self.fold()
        self.series.close()
