"""The ledger: the only way to spend.

    bound = ledger.bound(grant, model, size, max_tokens=chat.max_tokens)
    async with ledger.spend(grant, request_id, attempt, model, bound) as hold:
        hold.note(sent=True)                   # reserved, durably; the provider may bill from here
        ...
        await hold.settle(usage)               # booked before the last byte goes out

What decides is ``settled + reserved + bound <= budget`` for the key's month, day and total. The
sums are kept in memory, where one loop decides without waiting, and in the database, where a
CHECK holds the same line. Both change by the same batches, and this process owns the file.

A hold that is left without ``settle`` or ``release``, by whatever exception, is settled at what
was noted, without waiting. One that a dead process left open is settled at its bound, flagged
``crash``, at the next start.

Keys with a budget wait for the disk: for the reservation before the call, for the settlement before
the last byte. Both stand in the daybook then, synced; they are committed some 20 ms later. Keys
without one are booked the same and wait for neither: their settlement stands in the daybook, which
outlives this process, before the answer leaves (``put_down``). So no answer leaves without its row,
also under kill -9. What a kill may take without a trace is an attempt of a key without a budget
that has not ended and is younger than a commit; what a power cut may take is the last rows of such
keys.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.access import recovery
from tokenhub.access.accounts import (
    DAY,
    DAY_MS,
    KINDS,
    MONTH,
    TOTAL,
    Account,
    Books,
    day_of,
    day_start_ms,
)
from tokenhub.access.hold import Hold
from tokenhub.access.refusals import over_budget, unpriced, unwritten
from tokenhub.access.writer import Writer
from tokenhub.core.bounds import Bound, bound
from tokenhub.core.errors import Unavailable
from tokenhub.core.money import MAX_TOKENS, cost, sane

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.access.accounts import Budgeted
    from tokenhub.access.batch import Batch, Closing
    from tokenhub.core.bounds import Measure
    from tokenhub.core.catalog import Model
    from tokenhub.core.chat import Usage
    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Database
    from tokenhub.storage.spool import Spool

GRACE = 60.0
"""Seconds for which keys without a budget are served while the books cannot be written."""

_LOW_EVERY = 256  # batches between two notes of the oldest open attempt
_RARE = ("audio_in", "audio_out", "image_in", "image_out", "cached_write_1h")
_MAX_TIER = 32

_log = logging.getLogger(__name__)


class Ledger:
    """All keys' money. Make it with ``open``; use it from one loop only.

    Attributes:
        crashed: attempts that a dead process had left open, settled at this start.
        put_down: to be called before any byte of an answer leaves whose settlement did not wait
            for the disk: what was settled so far then outlives this process.
    """

    def __init__(
        self, db: Database, clock: Clock, start: recovery.Start, spool: Spool | None
    ) -> None:
        self._db = db
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(db, spool, clock, start.epoch, start.began_ms, self._note_low)
        self._daybook = self._writer.daybook
        self.put_down: Callable[[], None] = self._daybook.put_down
        self._epoch = start.epoch
        self._next_attempt = start.next_attempt
        self._next_account = start.next_account
        self._high_ms = day_start_ms(start.last_day) if start.last_day else 0
        self._day = 0
        self._until_ms = 0
        self._books: dict[str, Books] = {}
        self._holds: dict[int, Hold] = {}
        self._batches = 0
        self._closed = False
        self.crashed = start.crashed
        self._load(start.accounts)

    @classmethod
    async def open(cls, db: Database, clock: Clock, spool: Spool | None = None) -> Ledger:
        """Start the books: attempts that a dead process left open are settled at their bound.

        Without a spool every settlement waits for the disk.

        Raises:
            StorageRefused: the spool belongs to another database.
        """
        noted = [] if spool is None else spool.read()
        now_ms = clock.now_ms()
        start = await db.write(partial(recovery.start, now_ms=now_ms, noted=noted))
        if spool is not None:
            spool.clear()
        if start.replayed:
            _log.warning("What a killed process had settled was booked: %d.", start.replayed)
        if start.last_day > (today := day_of(now_ms)):
            _log.warning(
                "The clock says %d, and the books have come to %d: until then no day and no month "
                "begins, so no daily or monthly budget is renewed. Set the clock right, or give a "
                "key its budget back with `tokenhubctl apikey paid`.",
                today,
                start.last_day,
            )
        return cls(db, clock, start, spool)

    @property
    def epoch(self) -> int:
        """The number of this run of the server."""
        return self._epoch

    @property
    def failing(self) -> bool:
        """The books cannot be written now."""
        return self._writer.failing_since is not None

    @property
    def open_holds(self) -> int:
        """Attempts under way."""
        return len(self._holds)

    def bound(
        self,
        grant: Budgeted,
        model: Model,
        size: Measure,
        *,
        max_tokens: int | None = None,
        choices: int = 1,
        output: bool = True,
    ) -> Bound:
        """What an attempt may cost at most, its output lowered to what the key can pay now.

        Use it at once: the room it was made for is not held yet.

        Raises:
            InvalidRequest: ``model_unpriced``: the key has a budget, the model no price.
            PaymentRequired: not even 16 tokens of output can be paid for.
        """
        books = self._books.get(grant.key_id)
        if books is None or books.grant is not grant or books.limited:
            books = self._current(grant, self._clock.now_ms())
        tightest = books.tightest() if books.limited else None
        if tightest is None:
            return bound(size, model, max_tokens=max_tokens, choices=choices, output=output)
        room = max(tightest.room, 0)
        found = bound(size, model, max_tokens=max_tokens, choices=choices, room=room, output=output)
        if not found.priced:
            raise unpriced(model)
        if found.nano > room:
            raise over_budget(tightest, found.nano)
        return found

    def room(self, grant: Budgeted) -> int | None:
        """Nano-dollars a key may still reserve, None without a budget."""
        tightest = self._current(grant, self._clock.now_ms()).tightest()
        return None if tightest is None else max(tightest.room, 0)

    def spend(
        self, grant: Budgeted, request_id: str, attempt: int, model: Model, bound: Bound
    ) -> Hold:
        """The money for one attempt: ``async with`` reserves it and sees it settled.

        Entering raises:
            PaymentRequired: the key cannot pay ``bound``.
            InvalidRequest: ``model_unpriced``.
            Unavailable: the books cannot be written.
        """
        return Hold(self, grant, request_id, attempt, model, bound)

    def adopt(self, grant: Budgeted) -> None:
        """Put a key's changed budgets in force now instead of at its next request."""
        self._current(grant, self._clock.now_ms())
        if self._writer.pending:
            self._writer.hurry()

    def accounts(self, key_id: str) -> dict[str, Account]:
        """A key's running month, day and total, by kind; empty when it never spent. Read only."""
        books = self._books.get(key_id)
        if books is None:
            return {}
        if books.day != self._today():
            books = self._turn(key_id, books)
        return {account.kind: account for account in books.accounts}

    def reserve(self, hold: Hold) -> asyncio.Future[None] | None:
        """Reserve a hold's bound; a future if it may not be spent before that is durable."""
        hold.opened_ms = now_ms = self._clock.now_ms()
        hold.books = books = self._current(hold.grant, now_ms)
        nano = hold.reserved
        waits = False
        if books.limited:
            self._admit(books, hold.model, hold.bound, nano)
            waits = nano > 0
        writer = self._writer
        if self._closed or writer.failing_since is not None:
            self._refuse_unwritten(waits=waits)
        for account in books.accounts:
            account.reserved += nano
        hold.id = number = self._next_attempt
        self._next_attempt = number + 1
        hold.closed = False
        self._holds[number] = hold
        batch = writer.pending
        batch.opens[number] = hold
        daybook = self._daybook
        if not waits or daybook.sound:
            if not writer.busy:
                writer.schedule()
            if not waits:
                return None
            daybook.opened(batch.opening(hold))
            return daybook.durable(spends=True)
        if not writer.hurried:
            writer.hurry()
        future = self._loop.create_future()
        batch.reserving.append(future)
        return future

    def settle(
        self, hold: Hold, usage: Usage, flag: str, *, wait: bool = True
    ) -> asyncio.Future[None] | None:
        """Close a hold at what its usage costs; a future if that must become durable first.

        Else ``put_down`` must be called first.
        """
        if hold.closed:
            raise RuntimeError("the hold is closed: an attempt is settled once")
        hold.cost = amount = cost(usage, hold.model.prices)
        settled, overrun = amount or 0, 0
        if settled > hold.reserved:
            settled, overrun = _split(hold, settled)
            hold.overrun = overrun
            if overrun and not flag:
                flag = "overrun"
        if not flag and usage.source == "counted":
            flag = "counted"
        prompt, completion = usage.prompt, usage.completion
        read, write, reasoning = usage.cached_read, usage.cached_write, usage.reasoning
        if not (
            0 <= prompt <= MAX_TOKENS and 0 <= completion <= MAX_TOKENS
            and 0 <= read <= MAX_TOKENS and 0 <= write <= MAX_TOKENS
            and 0 <= reasoning <= MAX_TOKENS
        ):  # fmt: skip
            prompt, completion, reasoning = sane(prompt), sane(completion), sane(reasoning)
            read, write = sane(read), sane(write)
        sound = usage.audio_in or usage.audio_out
        rare = sound or usage.image_in or usage.image_out or usage.cached_write_1h
        closing: Closing = (
            "settled", settled, overrun, prompt, completion, read, write, reasoning,
            _further(usage) if rare or usage.tier else "", flag, self._clock.now_ms(),
        )  # fmt: skip
        row = self._close(hold, closing)
        writer, daybook = self._writer, self._daybook
        if not wait or writer.failing_since is not None:
            daybook.rows.append(row)
            return None
        if daybook.sound:
            daybook.rows.append(row)
            return daybook.durable(spends=False) if hold.books.limited else None
        if not writer.hurried:
            writer.hurry()
        future = self._loop.create_future()
        writer.pending.settling.append(future)
        return future

    def release(self, hold: Hold) -> None:
        """Close a hold at nothing; a second time is allowed."""
        if not hold.closed:
            hold.cost = 0
            now_ms = self._clock.now_ms()
            row = self._close(hold, ("released", 0, 0, 0, 0, 0, 0, 0, "", "", now_ms))
            self._daybook.rows.append(row)

    async def flush(self) -> None:
        """Wait until everything booked so far is durable.

        Raises:
            Unavailable: it cannot be written now.
        """
        await self._writer.flush()

    async def close(self) -> None:
        """Write what is booked and end the epoch.

        What cannot be written, and holds that are still open, the next start takes for crashed.
        """
        self._closed = True
        if await self._writer.stop() and not self._holds:
            now_ms = self._clock.now_ms()
            end = partial(recovery.end, epoch=self._epoch, low_id=self._next_attempt, now_ms=now_ms)
            try:
                await self._db.write(end)
            except Unavailable as error:
                _log.warning("The end of the books of this run cannot be written: %s", error)
        self._daybook.close()

    def booked(self, key_id: str, kind: str, period: int, settled: int, overrun: int) -> None:
        """Take over what an entry, now durable, added to an account."""
        for account in self.accounts(key_id).values():
            if account.kind == kind and account.period == period:
                account.settled += settled
                account.overrun += overrun

    def ensure(self, key_id: str) -> int:
        """See to it that a key has accounts for today (stored after a flush); returns the day."""
        day = self._today()
        books = self._books.get(key_id)
        if books is None or books.day != day:
            books = self._turn(key_id, books)
        for account in books.accounts:
            if not account.stored:
                self._writer.pending.limits[account] = None
        return day

    def _admit(self, books: Books, model: Model, bound: Bound, nano: int) -> None:
        if not bound.priced:
            raise unpriced(model)
        for account in books.limited:
            if nano and account.room < nano:
                raise over_budget(account, nano)

    def _close(self, hold: Hold, closing: Closing) -> tuple[Any, ...]:
        hold.closed = True
        del self._holds[hold.id]
        reserved, settled, overrun = hold.reserved, closing[1], closing[2]
        for account in hold.books.accounts:
            account.reserved -= reserved
            account.settled += settled
            if overrun:
                account.overrun += overrun
        writer = self._writer
        if not writer.busy:
            writer.schedule()
        return writer.pending.close(hold, closing)

    def _current(self, grant: Budgeted, now_ms: int) -> Books:
        books = self._books.get(grant.key_id)
        day = self._day if now_ms < self._until_ms else self._turned(now_ms)
        if books is None or books.day != day:
            books = self._turn(grant.key_id, books)
        if books.grant is not grant:
            for account in books.adopt(grant):
                self._writer.pending.limits[account] = None
        return books

    def _today(self) -> int:
        now_ms = self._clock.now_ms()
        return self._day if now_ms < self._until_ms else self._turned(now_ms)

    def _turned(self, now_ms: int) -> int:
        # It never goes back: the past's money is not handed out again when the clock is set back.
        self._high_ms = max(now_ms, self._high_ms)
        self._day = day_of(self._high_ms)
        self._until_ms = day_start_ms(self._day) + DAY_MS
        return self._day

    def _periods(self) -> dict[str, int]:
        day = self._today()
        return {MONTH: day // 100, DAY: day, TOTAL: 0}

    def _turn(self, key_id: str, books: Books | None) -> Books:
        """A key's books for today: accounts whose period still runs are carried over."""
        old = {account.kind: account for account in books.accounts} if books else {}
        found = {}
        for kind, period in self._periods().items():
            account = old.get(kind)
            if account is None or account.period != period:
                account = self._account(key_id, kind, period)
            found[kind] = account
        turned = books.turned(found) if books else Books(found[MONTH], found[DAY], found[TOTAL])
        self._books[key_id] = turned
        return turned

    def _account(self, key_id: str, kind: str, period: int) -> Account:
        number = self._next_account
        self._next_account = number + 1
        return Account(number, key_id, kind, period)

    def _load(self, accounts: list[Account]) -> None:
        periods = self._periods()
        running: dict[str, dict[str, Account]] = {}
        for account in accounts:
            if account.period == periods[account.kind]:
                running.setdefault(account.key_id, {})[account.kind] = account
        for key_id, found in running.items():
            for kind in KINDS:
                if kind not in found:
                    found[kind] = self._account(key_id, kind, periods[kind])
            self._books[key_id] = Books(found[MONTH], found[DAY], found[TOTAL])

    def _refuse_unwritten(self, *, waits: bool) -> None:
        since = self._writer.failing_since
        graced = since is not None and self._clock.monotonic() - since < GRACE
        if self._closed or waits or not graced:
            raise unwritten()

    def _note_low(self, batch: Batch) -> None:
        # Keeps the search for open rows short at a start after a crash.
        self._batches += 1
        if self._batches % _LOW_EVERY == 0:
            batch.low = (next(iter(self._holds), self._next_attempt), self._epoch)


def _split(hold: Hold, amount: int) -> tuple[int, int]:
    """What of an amount the accounts can still take, and the rest."""
    extra = amount - hold.reserved
    # Not ``limited``: a budget may have been set since the hold's day ended.
    room = min(account.room for account in hold.books.accounts)
    taken = min(extra, max(room, 0))
    return hold.reserved + taken, extra - taken


def _further(usage: Usage) -> str:
    """The rare kinds of usage as JSON."""
    found = {kind: sane(value) for kind in _RARE if (value := getattr(usage, kind))}
    tier = {"tier": usage.tier[:_MAX_TIER]} if usage.tier else {}
    return msgspec.json.encode(found | tier).decode()
