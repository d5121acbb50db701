"""Where finished requests become numbers: statistics, time series and metrics from one queue.

On the request's way there is one append to a list. Counting comes a twentieth of a second later,
when the list is long, or when somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tokenhub.core.errors import HubError
from tokenhub.telemetry.cell import KEY, MODE, PAIR, Group, Label, pair_of
from tokenhub.telemetry.metrics import Metrics
from tokenhub.telemetry.past import Memory
from tokenhub.telemetry.series import MINUTE, RETENTION_DAYS, SECOND, Series
from tokenhub.telemetry.stats import Stats, reach

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.clock import Clock
    from tokenhub.core.decision import Filtered
    from tokenhub.storage.database import Database
    from tokenhub.telemetry.cell import Line
    from tokenhub.telemetry.journal import Entry
    from tokenhub.telemetry.metrics import Counts
    from tokenhub.telemetry.query import Question
    from tokenhub.telemetry.stats import Report

    _Waiting = tuple[Entry, float, tuple[Filtered, ...]]

log = logging.getLogger(__name__)

TICK_S = 0.05  # what one tick counts keeps everybody else from the loop
FOLD_AT = 512  # 0.6 ms
FLUSH_TICKS = 40
MOST_TALLIES = 4_096

Which = tuple[str, str, str, str, str, int, str]


class _Tally:
    """Where requests of some kinds are counted.

    Kinds that are not told apart share one: most of a thousand models are counted as ``other``, and
    in a group of many a request costs a quarter of what it costs alone.
    """

    __slots__ = ("counts", "line")

    def __init__(self, line: Line, counts: Counts) -> None:
        self.line = line
        self.counts = counts


class Observer:
    """Takes finished requests; answers with numbers.

    Requests may be observed before ``open`` is through: they are counted then, and questions wait.

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
        self._waiting: list[_Waiting] = []
        self._tallies: dict[Which, _Tally] = {}
        self._shared: dict[tuple[object, ...], _Tally] = {}  # by what tells their places apart
        self._ticking = False
        self._catching_up = False
        self._ticks = 0
        self._opened = asyncio.Event()
        self.metrics = Metrics()
        self.stats = Stats()
        self._memory = Memory()
        self.series = Series(db, self.stats.add, retention_days=retention_days)

    async def open(self) -> None:
        """Take up what the last life stored, a little at a time; others get their turn."""
        try:
            await self._take_up(self._clock.now_ms())
        except HubError as error:
            log.error("Statistics begin anew, what is stored cannot be read: %s", error.message)  # noqa: TRY400
        finally:
            self._opened.set()
        self.fold()

    async def _take_up(self, now: int) -> None:
        await self.series.open(now)
        for resolution in (MINUTE, SECOND):
            until = now - now % resolution
            async for at, label, cell in self.series.stored(
                resolution, now - reach(resolution), until
            ):
                self.stats.load(at, label, cell, resolution, now)
        self.stats.expire(now)
        self.series.known(self.stats.labels())

    def observe(self, entry: Entry, upstream_s: float, filtered: tuple[Filtered, ...] = ()) -> None:
        """Take a request that is over; never waits.

        Args:
            entry: what the request log holds of it.
            upstream_s: how long the provider was waited for; counts only where one try was made.
            filtered: models that could not be asked.
        """
        waiting = self._waiting
        waiting.append((entry, upstream_s, filtered))
        if len(waiting) >= FOLD_AT:
            self.fold()
        if not self._ticking:
            self._ticking = True
            self._call_later(TICK_S, self._tick)

    def fold(self) -> None:
        """Count what waits, and close what is over."""
        if not self._opened.is_set():
            return
        waiting, self._waiting = self._waiting, []
        series = self.series
        now = self._clock.now_ms()
        over = series.second + SECOND  # when the running second is
        tallies = self._tallies
        groups: dict[_Tally, list[_Waiting]] = {}
        for one in waiting:
            entry = one[0]
            ended = entry.at_ms + int(entry.latency_ms)
            if ended >= over:
                self._count(groups)
                groups = {}
                series.advance(min(ended, now))
                over = series.second + SECOND
            model, provider = entry.model_id, entry.provider_id
            if not model:
                model, provider = pair_of(entry)
            which = (
                model, provider, entry.key_id, entry.mode, entry.endpoint, entry.status,
                entry.error_class,
            )  # fmt: skip
            tally = tallies.get(which) or self._tally(which)
            some = groups.get(tally)
            if some is None:
                groups[tally] = [one]
            else:
                some.append(one)
        self._count(groups)
        series.advance(now)

    def _count(self, groups: dict[_Tally, list[_Waiting]]) -> None:
        # Together, since a step of a loop costs a third of what it costs alone.
        for tally, some in groups.items():
            entries, waits, filtered = zip(*some, strict=True)
            group = Group(entries)
            line = tally.line
            (line.cell or self.series.cell(line)).add(group)
            tally.counts.add(group, waits)
            if any(filtered):
                for models in filtered:
                    self.metrics.skipped(models)

    def _tally(self, which: Which) -> _Tally:
        model, provider, key_id, mode, endpoint, status, error_class = which
        line = self.series.line(Label(PAIR, model, provider), Label(KEY, key_id), Label(MODE, mode))
        counts = self.metrics.counts(model, provider, mode, endpoint, status, error_class)
        if len(self._tallies) >= MOST_TALLIES:
            self._forget()
        place = (*line.labels, *counts.kind)
        tally = self._shared.get(place)
        if tally is None:
            tally = self._shared[place] = _Tally(line, counts)
        self._tallies[which] = tally
        return tally

    def _forget(self) -> None:
        self._tallies.clear()
        self._shared.clear()

    def _tick(self) -> None:
        if not self._opened.is_set():
            self._call_later(TICK_S, self._tick)
            return
        self.fold()
        self._ticks += 1
        if self._ticks % FLUSH_TICKS == 0 or self.series.idle:
            self.series.flush()
        if not self.stats.late:
            self.stats.expire(self._clock.now_ms())
        elif not self._catching_up:
            self._catching_up = True
            self._call_later(0, self._catch_up)
        self._ticking = bool(self.series.pending or not self.series.idle)
        if self._ticking:
            self._call_later(TICK_S, self._tick)

    def _catch_up(self) -> None:
        """One step, then everybody else's turn."""
        self._catching_up = self.stats.late
        if self._catching_up:
            self.stats.catch_up()
            self._call_later(0, self._catch_up)

    async def report(self, key_name: Callable[[str], str]) -> Report:
        """The figures of all windows."""
        await self._opened.wait()
        self.fold()
        return await self.stats.report(self._clock.now_ms(), self.series.unfinished, key_name)

    async def query(self, asked: Question) -> dict[str, Any]:
        """A time series; see ``query.answer``."""
        from tokenhub.telemetry import query  # noqa: PLC0415  # for admins only

        await self._opened.wait()
        self.fold()
        return await query.answer(self.series, asked, self._clock.now_ms(), self._memory)

    async def prune(self) -> int:
        """Delete what is older than its retention; how many rows."""
        await self._opened.wait()
        self.fold()
        now = self._clock.now_ms()
        self.stats.expire(now)
        self.series.known(self.stats.labels())
        self._forget()
        return await self.series.prune(now)

    def close(self) -> None:
        """Queue everything for the writer."""
        self.fold()
        self.series.close()
