"""Time series of requests: seconds, rolled up into minutes, hours and days.

    a second in memory ──► closed ──┬──► stored as a row of 1 s
                                    └──► merged into the running minute ──► closed ──► row of 1 min
           a closed minute ─────────┬──► merged into the running hour ────► closed ──► row of 1 h
                                    └──► merged into the running day ─────► closed ──► row of 1 day

Rows are written in batches by ``write_soon``. Whether a question is answered from seconds or
from days changes its steps, not its sums: every resolution holds every request exactly once. What
is not stored yet is read from memory, so that a request can be seen as soon as it is over. A
process that dies loses the second that was running and what was still queued for the writer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tokenhub.core.errors import InvalidRequest
from tokenhub.telemetry.cell import (
    COLUMNS,
    MOST,
    OTHER,
    PAIR,
    Cell,
    Cells,
    Label,
    Line,
    Totals,
    merge_into,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from tokenhub.storage.database import Also, Database, Rows, Transaction

log = logging.getLogger(__name__)

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
RESOLUTIONS = (SECOND, MINUTE, HOUR, DAY)
KEPT_MS = {SECOND: HOUR, MINUTE: 7 * DAY}
"""How long the finer rows are kept; hours and days as long as the retention says."""

RETENTION_DAYS = 400
MOST_DAYS = 3_660
MOST_UNWRITTEN = 50_000
FLUSH_AT = 500
PRUNE_SLICE = 2_000
LOAD_SLICE = 4  # cells before others get their turn on the loop
LOAD_SPANS = 60  # so many seconds, or minutes, of all labels are in memory while loading
_SETTING = "series_retention_days"
_CLOCK_SET_BACK = HOUR

_POINT_COLUMNS = ("label", "resolution", "at", *COLUMNS)
_UPSERT = f"""
INSERT INTO series_points ({", ".join(_POINT_COLUMNS)})
VALUES ({", ".join("?" * len(_POINT_COLUMNS))})
ON CONFLICT (label, resolution, at) DO UPDATE SET
{", ".join(f"{name} = excluded.{name}" for name in COLUMNS)}
"""  # noqa: S608 - constant names
_LABEL = """
INSERT INTO series_labels (id, kind, name, provider) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING
"""
_LABELS = "SELECT id, kind, name, provider FROM series_labels ORDER BY id"
_STATE = """
INSERT INTO series_state (id, minute, hour, day) VALUES (1, :minute, :hour, :day)
ON CONFLICT (id) DO UPDATE
SET minute = excluded.minute, hour = excluded.hour, day = excluded.day
"""
# Naming all labels lets the primary key serve: no second index has to be kept up.
_SINCE = f"""
SELECT label, at, {", ".join(COLUMNS)} FROM series_points
WHERE label IN (SELECT id FROM series_labels) AND resolution = :resolution
    AND at >= :since AND at < :until
ORDER BY at, label
"""  # noqa: S608 - constant names
_FIRST = """
SELECT MIN(at) FROM series_points
WHERE label IN (SELECT id FROM series_labels) AND resolution = :resolution
    AND at >= :since AND at < :until
"""
_ANY = """
SELECT 1 FROM series_points WHERE label = :label AND resolution = :resolution AND at < :before
LIMIT 1
"""
_PRUNE = """
DELETE FROM series_points WHERE (label, resolution, at) IN (
    SELECT label, resolution, at FROM series_points
    WHERE label = :label AND resolution = :resolution AND at < :before LIMIT :slice)
"""
_READ_SETTING = "SELECT value FROM settings WHERE key = :key"
_WRITE_SETTING = """
INSERT INTO settings (key, value) VALUES (:key, :value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""

Batch = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], dict[str, int]]


class RetentionFields(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT tsdb/retention."""

    days: int


class Snapshot(NamedTuple):
    """What is not stored yet of one resolution: the span that began at ``at``."""

    at: int
    cells: Cells


class Series:
    """Takes requests, second by second, and keeps them rolled up.

    Args:
        db: where rows go.
        closed: is told each second and minute that is over, once ``open`` is through: its
            resolution, when it began, and its cells by label, which change no more.
        retention_days: how long hours are kept where nothing else was set.

    Attributes:
        second: when the second that is not over began.
        written, dropped: rows, since the start; dropped are those that could not be written.
        changes: by resolution, a number that grows whenever rows are made or deleted, or are
            written later than they should have been.
    """

    def __init__(
        self,
        db: Database,
        closed: Callable[[int, int, Mapping[Label, Cell]], None],
        *,
        retention_days: int = RETENTION_DAYS,
    ) -> None:
        self._db = db
        self._closed = closed
        self._opened = False
        self.retention_days = retention_days
        self.second = 0
        self._active: list[Line] = []
        self._rolling = {MINUTE: Totals(), HOUR: Totals(), DAY: Totals()}
        self._starts: dict[int, int] = {MINUTE: 0, HOUR: 0, DAY: 0}
        self._ids: dict[Label, int] = {}
        self._next_id = 1
        self._live: set[Label] = set()
        self._counts = dict.fromkeys(MOST, 0)
        self._new_labels: list[tuple[Any, ...]] = []
        self._rows: list[tuple[Any, ...]] = []
        self._unwritten = 0
        self._behind = False  # a write failed, and its rows wait for the next one
        self.changes = dict.fromkeys(RESOLUTIONS, 0)
        self.written = 0
        self.dropped = 0

    async def configure(self) -> None:
        """Read what was set; before anybody asks or sets anew."""
        if found := await self._db.read(_READ_SETTING, {"key": _SETTING}):
            self.retention_days = int(found[0][0])

    async def open(self, now_ms: int) -> None:
        """Go on where the last life ended: roll up what it left, resume the running spans."""
        try:
            await self._resume(now_ms)
        finally:
            self._opened = True

    async def _resume(self, now_ms: int) -> None:
        for number, kind, name, provider in await self._db.read(_LABELS):
            self._ids[Label(kind, name, provider)] = number
            self._next_id = number + 1
        state = await self._db.read("SELECT minute, hour, day FROM series_state WHERE id = 1")
        minute, hour, day = state[0] if state else (0, 0, 0)
        self._starts = {MINUTE: minute, HOUR: hour, DAY: day}
        second = now_ms - now_ms % SECOND
        async for at, label, cell in self.stored(HOUR, day, hour):
            self._roll(at, {label: cell}, DAY)
        async for at, label, cell in self.stored(MINUTE, hour, minute):
            self._roll(at, {label: cell}, HOUR, DAY)
        async for at, label, cell in self.stored(SECOND, minute, second):
            self._roll(at, {label: cell}, MINUTE)
        # A restart within one second: it goes on being counted, and its row is replaced.
        async for _, label, cell in self.stored(SECOND, second, second + SECOND):
            line = Line(label)
            line.cell = cell
            self._active.append(line)
        self.second = second
        self._turn_all(second)
        await self.settled()

    def known(self, labels: Iterable[Label]) -> None:
        """The labels in use; others give way when there are too many to tell apart."""
        active = [line.labels for line in self._active]
        self._live = set(labels).union(self._rolling[MINUTE], *active)
        self._counts = dict.fromkeys(MOST, 0)
        for label in self._live:
            self._counts[label.kind] += 1

    def line(self, *labels: Label) -> Line:
        """A line for requests of these labels; ``other`` stands for those that are too many.

        It holds until ``known`` is called.
        """
        return Line(*map(self._told_apart, labels))

    def _told_apart(self, label: Label) -> Label:
        if label in self._live:
            return label
        if self._counts[label.kind] >= MOST[label.kind]:
            return Label(label.kind, OTHER, OTHER if label.kind == PAIR else "")
        self._live.add(label)
        self._counts[label.kind] += 1
        return label

    def cell(self, line: Line) -> Cell:
        """The running second's cell of a line."""
        found = line.cell
        if found is None:
            found = line.cell = Cell()
            self._active.append(line)
        return found

    @property
    def idle(self) -> bool:
        """Nothing was counted in the running second."""
        return not self._active

    def running(self) -> Cells:
        """The cells of the running second, as far as it has come."""
        cells: Cells = {}
        for line in self._active:
            if line.cell is not None:
                for label in line.labels:
                    merge_into(cells, label, line.cell)
        return cells

    def unfinished(self, resolution: int) -> tuple[Cells, ...]:
        """The cells that no closed second, or minute, holds yet; they stay as they are."""
        running = self.running()
        return (running,) if resolution == SECOND else (self._rolling[MINUTE].lend(), running)

    def advance(self, now_ms: int) -> None:
        """Close the spans that are over. To be called before requests of ``now_ms`` are added."""
        second = now_ms - now_ms % SECOND
        if second > self.second or second < self.second - _CLOCK_SET_BACK:
            self._close_second()
            self.second = second
            self._turn_all(second)
        if len(self._rows) >= FLUSH_AT:
            self.flush()

    def _close_second(self) -> None:
        cells = self._end()
        if cells:
            self._emit(SECOND, self.second, cells)
            self._roll(self.second, cells, MINUTE)
            self._closed(SECOND, self.second, cells)

    def _end(self) -> Cells:
        cells = self.running()
        for line in self._active:
            line.cell = None
        self._active = []
        return cells

    def _roll(self, at: int, cells: Cells, *resolutions: int) -> None:
        for resolution in resolutions:
            self._turn(at, resolution)
            rolling = self._rolling[resolution]
            for label, cell in cells.items():
                rolling.merge(label, cell)

    def _turn_all(self, at: int) -> None:
        for resolution in (MINUTE, HOUR, DAY):
            self._turn(at, resolution)

    def _turn(self, at: int, resolution: int) -> None:
        start = at - at % resolution
        if start == self._starts[resolution]:
            return
        cells = self._rolling[resolution].lend()
        began = self._starts[resolution]
        self._rolling[resolution] = Totals()
        self._starts[resolution] = start
        if cells:
            self._emit(resolution, began, cells)
            if resolution == MINUTE:
                self._roll(began, cells, HOUR, DAY)
                if self._opened:
                    self._closed(MINUTE, began, cells)

    def _emit(self, resolution: int, at: int, cells: Cells) -> None:
        self.changes[resolution] += 1
        for label, cell in cells.items():
            self._rows.append((self._id(label), resolution, at, *cell.row()))

    def _id(self, label: Label) -> int:
        number = self._ids.get(label)
        if number is None:
            number = self._ids[label] = self._next_id
            self._next_id += 1
            self._new_labels.append((number, *label))
        return number

    @property
    def pending(self) -> int:
        """Rows that are not stored yet."""
        return len(self._rows) + self._unwritten

    def flush(self) -> None:
        """Queue the rows that wait for the writer, now."""
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        labels, self._new_labels = self._new_labels, []
        starts = self._starts
        state = {"minute": starts[MINUTE], "hour": starts[HOUR], "day": starts[DAY]}
        self._unwritten += len(rows)

        def save(tx: Transaction) -> None:
            if labels:
                tx.executemany(_LABEL, labels)
            tx.executemany(_UPSERT, rows)
            tx.execute(_STATE, state)

        def done(error: BaseException | None) -> None:
            self._unwritten -= len(rows)
            if error is None:
                self.written += len(rows)
                self._caught_up()
            else:
                self._keep((labels, rows, state), error)

        self._db.write_soon(save, done)

    def _caught_up(self) -> None:
        if self._behind:
            self._behind = self.pending > 0
            for resolution in RESOLUTIONS:
                self.changes[resolution] += 1

    def _keep(self, batch: Batch, error: BaseException) -> None:
        # Upserts may be done twice, so rows that failed just wait for the next flush.
        labels, rows, _ = batch
        self._behind = True
        self._new_labels = labels + self._new_labels
        room = max(0, MOST_UNWRITTEN - self.pending)
        self._rows = rows[:room] + self._rows
        self.dropped += max(0, len(rows) - room)
        log.error("Points of the time series cannot be written now.", exc_info=error)

    def close(self) -> None:
        """Queue everything for the writer; the running minute and hour are rolled up at open."""
        self._emit(SECOND, self.second, self._end())
        self.flush()

    async def settled(self) -> None:
        """Wait until every closed span can be read."""
        self.flush()
        await self._db.write(lambda _: None)

    def snapshot(self, resolution: int) -> Snapshot:
        """The span of a resolution that is not over, as far as it has come."""
        if resolution == SECOND:
            return Snapshot(self.second, self.running())
        sources = [self._rolling[resolution].lend(), self.running()]
        if resolution != MINUTE:
            sources.append(self._rolling[MINUTE].lend())
        cells: Cells = {}
        for source in sources:
            for label, cell in source.items():
                merge_into(cells, label, cell)
        return Snapshot(self._starts[resolution], cells)

    def pairs(self, model: str = "", provider: str = "") -> dict[int, Label]:
        """The labels of a model, of a provider, or of both; by number, "" = any."""
        return {
            number: label
            for label, number in self._ids.items()
            if label.kind == PAIR and model in {"", label.name} and provider in {"", label.provider}
        }

    def id_of(self, label: Label) -> int:
        """The number of a label that has been counted."""
        return self._id(label)

    async def rows(self, sql: str, values: Mapping[str, Any]) -> Rows:
        """Read what is stored."""
        return await self._db.read(sql, values)

    async def stored(
        self, resolution: int, since: int, until: int
    ) -> AsyncIterator[tuple[int, Label, Cell]]:
        """Stored cells of all labels, oldest first: begin, label, cell."""
        names = {number: label for label, number in self._ids.items()}
        span = {"resolution": resolution, "since": since, "until": until}
        while True:
            [(first,)] = await self._db.read(_FIRST, span)
            if first is None:
                return
            page = span | {"since": first, "until": min(first + LOAD_SPANS * resolution, until)}
            for done, row in enumerate(await self._db.read(_SINCE, page), 1):
                yield row[1], names[row[0]], Cell.of_row(row[2:])
                if done % LOAD_SLICE == 0:
                    await asyncio.sleep(0)
            span["since"] = page["until"]

    async def prune(self, now_ms: int) -> int:
        """Delete what is older than its retention, in slices; how many rows."""
        await self.settled()
        total = 0
        for resolution in RESOLUTIONS:
            days = self.retention_days * DAY
            before = now_ms - min(KEPT_MS.get(resolution, days), days)
            for number in list(self._ids.values()):
                total += await self._prune(number, resolution, before)
        return total

    async def _prune(self, label: int, resolution: int, before: int) -> int:
        which = {
            "label": label, "resolution": resolution, "before": before, "slice": PRUNE_SLICE,
        }  # fmt: skip

        def delete(tx: Transaction) -> int:
            tx.execute(_PRUNE, which)
            return tx.changes()

        total = 0
        while True:
            # Most labels have nothing to delete, and asking is much cheaper than a write.
            if not await self._db.read(_ANY, which):
                return total
            total += await self._db.write(delete)
            self.changes[resolution] += 1
            await asyncio.sleep(0)

    async def set_retention(self, days: int, *, also: Also | None = None) -> None:
        """Keep hours for ``days`` from now on, also after a restart.

        Raises:
            InvalidRequest: not from 1 to 3660.
        """
        if not 1 <= days <= MOST_DAYS:
            raise InvalidRequest(f"`days` must be between 1 and {MOST_DAYS}.", param="days")
        before = self.retention_days

        def save(tx: Transaction) -> None:
            tx.execute(_WRITE_SETTING, {"key": _SETTING, "value": str(days)})
            if also:
                also(tx, {"days": before}, {"days": days})

        await self._db.write(save)
        self.retention_days = days
