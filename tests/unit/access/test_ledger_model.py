"""Random lives of the ledger against dictionaries: money is neither made nor lost.

What a rule books with the loop running is flushed. What it books without is lost by a crash right
after (and settled at its bound, where its opening stands) unless it was noted: then a crash changes
nothing about it.

TOKENHUB_LEDGER_RUNS=200 and TOKENHUB_LEDGER_STEPS=100 make it long.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.access.money import PRICED, Key, StillClock, at_ms, most, used

from tokenhub.access.accounts import day_of
from tokenhub.access.bookkeeper import Bookkeeper
from tokenhub.access.ledger import Ledger
from tokenhub.access.past_days import add_up
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import InvalidRequest, PaymentRequired
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase

RUNS = int(os.environ.get("TOKENHUB_LEDGER_RUNS", "60"))
STEPS = int(os.environ.get("TOKENHUB_LEDGER_STEPS", "40"))

KEYS = st.sampled_from(["month", "day", "all", "none"])
NANO = st.integers(0, 60)
BUDGETS = st.one_of(st.none(), st.integers(0, 400))
CHOICE = st.integers(0, 1000)


def start_of(key_id):
    budgets = {
        "month": {"monthly_budget": 200},
        "day": {"daily_budget": 150},
        "all": {"monthly_budget": 300, "daily_budget": 200, "total_budget": 500},
        "none": {},
    }
    return Key(key_id=key_id, **budgets[key_id])


class Sums:
    def __init__(self):
        self.settled = self.reserved = self.overrun = 0

    def values(self):
        return self.settled, self.reserved, self.overrun


class Open:
    """A hold, and the model's idea of it."""

    def __init__(self, hold, nano, accounts):
        self.hold = hold
        self.nano = nano
        self.accounts = accounts


class LedgerLife(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = StillClock()
        self.latest = self.clock.ms
        self.grants = {name: start_of(name) for name in ("month", "day", "all", "none")}
        self.replaced: list[Key] = []
        self.accounts: dict[tuple[str, str, int], Sums] = {}
        self.open: list[Open] = []
        # Closed, but in no file yet; whether their opening is; and what they were settled at.
        self.unsynced: list[tuple[Open, bool, int, int]] = []

    @initialize()
    def begin(self):
        self.runner = asyncio.Runner()
        self.runner.run(self.start())

    async def start(self):
        path = Path(self.folder.name) / "money.sqlite"
        self.db = await SqliteDatabase.open(path, SystemClock())
        self.spool = FileSpool(path)
        self.ledger = await Ledger.open(self.db, self.clock, self.spool)
        self.books = Bookkeeper(self.db, self.clock, self.ledger)
        self.latest = self.clock.ms
        if self.ledger._today() > day_of(self.clock.ms):
            self.latest = self.ledger._high_ms
        for key, sums in self.accounts.items():
            assert key[1] != "day" or key[2] <= self.ledger._day or not any(sums.values())

    def teardown(self):
        async def finish():
            for one in self.open:
                one.hold.release()
            assert await self.books.verify() == []
            await self.ledger.close()
            found = await self.db.read(
                "SELECT key_id, kind, period, settled, overrun FROM ledger_accounts"
            )
            for key_id, kind, period, settled, overrun in found:
                sums = self.accounts.get((key_id, kind, period), Sums())
                assert (settled, overrun) == (sums.settled, sums.overrun)
            await self.db.close()

        try:
            self.run(finish())
        finally:
            self.runner.close()
            self.folder.cleanup()

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def run_and_flush(self, coroutine):
        async def both():
            try:
                return await coroutine
            finally:
                await self.ledger.flush()

        self.unsynced.clear()
        return self.runner.run(both())

    def running(self, key_id):
        """The model's three accounts of a key now."""
        self.latest = max(self.latest, self.clock.ms)
        day = day_of(self.latest)
        names = (("month", day // 100), ("day", day), ("total", 0))
        return [self.accounts.setdefault((key_id, *name), Sums()) for name in names]

    def room(self, key_id):
        grant = self.grants[key_id]
        budgets = (grant.monthly_budget, grant.daily_budget, grant.total_budget)
        return min(
            (
                budget - sum(sums.values())
                for budget, sums in zip(budgets, self.running(key_id), strict=True)
                if budget is not None
            ),
            default=1 << 62,
        )

    @rule(key_id=KEYS, nano=NANO)
    def reserve(self, key_id, nano):
        grant = self.grants[key_id]
        room = self.room(key_id)
        hold = self.ledger.spend(grant, "r", 1, PRICED, most(nano))
        try:
            self.run_and_flush(hold.__aenter__())
        except PaymentRequired:
            assert nano > room
            return
        assert nano <= room or nano == 0
        accounts = self.running(key_id)
        for sums in accounts:
            sums.reserved += nano
        self.open.append(Open(hold, nano, accounts))

    @rule(key_id=KEYS, nano=NANO)
    def reserve_without_a_commit(self, key_id, nano):
        """What a budget waits for is noted, and no batch follows."""
        if self.room(key_id) == 1 << 62 or not 0 < nano <= self.room(key_id):
            return
        hold = self.ledger.spend(self.grants[key_id], "r", 1, PRICED, most(nano))
        self.run(hold.__aenter__())
        self.unsynced.clear()
        accounts = self.running(key_id)
        for sums in accounts:
            sums.reserved += nano
        self.open.append(Open(hold, nano, accounts))

    @precondition(lambda self: self.open)
    @rule(choice=CHOICE, amount=st.integers(0, 90))
    def settle_without_a_commit(self, choice, amount):
        if not self.open[choice % len(self.open)].hold.books.limited:
            return
        one = self.open.pop(choice % len(self.open))
        settled, overrun = self.split(one, amount)
        self.run(one.hold.settle(used(amount)))
        self.unsynced.clear()
        self.close(one, settled, overrun)

    @rule(key_id=KEYS, nano=NANO)
    def cancelled_while_reserving(self, key_id, nano):
        async def cancelled():
            task = asyncio.ensure_future(
                self.ledger.spend(self.grants[key_id], "r", 1, PRICED, most(nano)).__aenter__()
            )
            await asyncio.sleep(0)
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            return result

        self.running(key_id)
        result = self.run_and_flush(cancelled())
        if not isinstance(result, BaseException):  # it needed no wait
            result.release()
            self.run_and_flush(asyncio.sleep(0))

    @rule(
        key_ids=st.lists(KEYS, min_size=1, max_size=6),
        nano=NANO,
        amount=st.integers(0, 90),
        turns=st.integers(0, 63),
        stay=st.integers(0, 63),
        monthly=BUDGETS,
    )
    def crowd(self, key_ids, nano, amount, turns, stay, monthly):
        """Several at once, some of them quick, while batches are on their way."""

        async def all_of_them():
            began = []
            for number, key_id in enumerate(key_ids):
                room = self.room(key_id)
                hold = self.ledger.spend(self.grants[key_id], "r", 1, PRICED, most(nano))
                try:
                    hold.reserve()
                except PaymentRequired:
                    assert nano > room
                    continue
                assert nano <= room or nano == 0
                accounts = self.running(key_id)
                for sums in accounts:
                    sums.reserved += nano
                began.append(Open(hold, nano, accounts))
                if turns >> number & 1:
                    await asyncio.sleep(0)
            if stay & 1:
                self.change(key_ids[-1], monthly_budget=monthly)
            for number, one in enumerate(began):
                if stay >> number & 1:
                    self.open.append(one)
                    continue
                settled, overrun = self.split(one, amount)
                one.hold.note(usage=used(amount))
                one.hold.book()
                self.close(one, settled, overrun)
                if turns >> number & 1:
                    await asyncio.sleep(0.003)  # the batch on its way arrives

        self.run_and_flush(all_of_them())

    def split(self, one, amount):
        if amount <= one.nano:
            return amount, 0
        room = max(0, min(account.room for account in one.hold.books.accounts))
        taken = min(amount - one.nano, room)
        return one.nano + taken, amount - one.nano - taken

    @precondition(lambda self: self.open)
    @rule(choice=CHOICE, amount=st.integers(0, 90))
    def settle(self, choice, amount):
        one = self.open.pop(choice % len(self.open))
        settled, overrun = self.split(one, amount)
        self.run_and_flush(one.hold.settle(used(amount)))
        assert (one.hold.cost, one.hold.overrun) == (amount, overrun)
        self.close(one, settled, overrun)

    @precondition(lambda self: self.open)
    @rule(choice=CHOICE, amount=st.integers(0, 90), sent=st.booleans())
    def leave(self, choice, amount, sent):
        """The client goes away: released when nothing was sent, else settled as noted."""
        one = self.open.pop(choice % len(self.open))
        settled, overrun = self.split(one, amount) if sent else (0, 0)
        if sent:
            one.hold.note(usage=used(amount))
        with pytest.raises(StopIteration):
            one.hold.__aexit__(asyncio.CancelledError, None, None).send(None)
        self.close(one, settled, overrun)
        self.unsynced.append((one, True, settled, overrun))

    @rule(key_id=KEYS, nano=NANO, amount=st.integers(0, 90))
    def answer(self, key_id, nano, amount):
        """Begun and ended without the loop, as only a key without a budget can."""
        if self.room(key_id) < 1 << 62:
            return
        hold = self.ledger.spend(self.grants[key_id], "r", 1, PRICED, most(nano))
        assert hold.reserve() is None
        one = Open(hold, nano, self.running(key_id))
        for sums in one.accounts:
            sums.reserved += nano
        hold.note(usage=used(amount))
        assert hold.book() is None
        self.close(one, amount, 0)
        self.unsynced.append((one, False, amount, 0))

    @rule()
    def note(self):
        """An answer leaves."""
        self.ledger.put_down()
        self.unsynced.clear()

    @rule(
        key_id=KEYS,
        nanos=st.lists(NANO, min_size=1, max_size=6),
        amount=st.integers(0, 90),
        turns=st.integers(0, 63),
        stay=st.integers(0, 63),
        twice=st.booleans(),
    )
    def killed_in_a_crowd(self, key_id, nanos, amount, turns, stay, twice):
        """Batches are under way, and neither they nor what follows arrives."""
        limited = self.room(key_id) < 1 << 62

        async def all_of_them():
            await self.ledger.flush()
            self.unsynced.clear()
            self.ledger._writer._write = lambda *_: None
            began, waits = [], []
            for number, nano in enumerate(nanos):
                hold = self.ledger.spend(self.grants[key_id], "r", 1, PRICED, most(nano))
                try:
                    waits.append(hold.reserve())
                except PaymentRequired:
                    continue
                one = Open(hold, nano, self.running(key_id))
                for sums in one.accounts:
                    sums.reserved += nano
                began.append(one)
                if turns >> number & 1:
                    self.ledger._writer.hurry()
                    await asyncio.sleep(0)
            await all_done(waits)
            waits.clear()
            for number, one in enumerate(began):
                if limited and one.nano and stay >> number & 1:
                    self.open.append(one)
                    continue
                settled, overrun = self.split(one, amount)
                one.hold.note(usage=used(amount))
                waits.append(one.hold.book())
                self.close(one, settled, overrun)
            self.ledger.put_down()
            await all_done(waits)

        async def all_done(waits):
            await asyncio.gather(*(future for future in waits if future is not None))

        self.run(all_of_them())
        self.crash(twice)

    def close(self, one, settled, overrun):
        for sums in one.accounts:
            sums.reserved -= one.nano
            sums.settled += settled
            sums.overrun += overrun

    @rule()
    def flush(self):
        self.run_and_flush(asyncio.sleep(0))

    @rule(twice=st.booleans())
    def dies(self, twice):
        self.crash(twice)

    def crash(self, twice):
        """The process dies: what is in no file is gone, what is left open is settled.

        ``twice``: the next one dies too, after it has booked what was noted.
        """
        self.die()
        for one, opened, settled, overrun in self.unsynced:
            for sums in one.accounts:
                sums.settled += (one.nano if opened else 0) - settled
                sums.overrun -= overrun
        for one in self.open:
            for sums in one.accounts:
                sums.reserved -= one.nano
                sums.settled += one.nano
        left = len(self.open) + sum(opened for _, opened, *_ in self.unsynced)
        self.open.clear()
        self.unsynced.clear()
        noted = {path: path.read_bytes() for path in Path(self.folder.name).glob("*-spool-*")}
        self.runner = asyncio.Runner()
        self.runner.run(self.start())
        assert self.ledger.crashed == left
        if twice:
            self.die()
            for path, content in noted.items():
                path.write_bytes(content)
            self.runner = asyncio.Runner()
            self.runner.run(self.start())
            assert self.ledger.crashed == 0

    def die(self):
        # Before the loop runs again: what it has not given to the system yet dies with it.
        self.ledger._writer._write = lambda *_: None
        self.ledger._daybook.rows.clear()
        self.ledger._daybook._waiting.clear()
        self.spool.close()
        self.run(self.db.close())
        self.runner.close()

    @precondition(lambda self: not self.open)
    @rule()
    def restart(self):
        async def stop():
            await self.ledger.close()
            await self.db.close()

        self.run(stop())
        self.unsynced.clear()
        self.run(self.start())
        assert self.ledger.crashed == 0

    @rule(hours=st.integers(0, 40))
    def time_passes(self, hours):
        self.clock.ms += hours * 3_600_000
        self.ledger._today()

    @rule()
    def month_turns(self):
        """To the last millisecond of the month, or over it."""
        month_end = [at_ms(f"20{y}-{m:02}-01T00:00:00") for y in (26, 27, 28) for m in range(1, 13)]
        ahead = min((ms for ms in month_end if ms > self.clock.ms), default=self.clock.ms)
        self.clock.ms = ahead - 1 if self.clock.ms < ahead - 1 else ahead
        self.ledger._today()

    @rule(days=st.integers(1, 60))
    def clock_jumps_back(self, days):
        self.clock.ms -= days * 86_400_000

    @rule(key_id=KEYS, monthly=BUDGETS, daily=BUDGETS, total=BUDGETS)
    def limits_change(self, key_id, monthly, daily, total):
        self.change(key_id, monthly_budget=monthly, daily_budget=daily, total_budget=total)

    @rule(key_id=KEYS)
    def renamed(self, key_id):
        self.change(key_id)

    def change(self, key_id, **budgets):
        old = self.grants[key_id]
        grant = msgspec.structs.replace(old, revision=old.revision + 1, **budgets)
        self.grants[key_id] = grant
        self.replaced.append(old)
        self.running(key_id)
        self.ledger.adopt(grant)

    @precondition(lambda self: self.replaced)
    @rule(choice=CHOICE, nano=NANO)
    def an_old_request_tries_once_more(self, choice, nano):
        """It began before its key was changed."""
        old = self.replaced[choice % len(self.replaced)]
        if self.ledger.accounts(old.key_id):
            self.ledger.adopt(self.grants[old.key_id])  # after a start the ledger knows no grant
        else:
            return
        room = self.room(old.key_id)
        hold = self.ledger.spend(old, "r", 2, PRICED, most(nano))
        try:
            self.run_and_flush(hold.__aenter__())
        except PaymentRequired:
            assert nano > room
            return
        assert nano <= room or nano == 0
        accounts = self.running(old.key_id)
        for sums in accounts:
            sums.reserved += nano
        self.open.append(Open(hold, nano, accounts))

    @rule(key_id=KEYS, nano=st.integers(-80, 80).filter(bool))
    def adjust(self, key_id, nano):
        self.book(key_id, nano, self.books.adjust(key_id, nano, "because"))

    @rule(key_id=KEYS, nano=st.integers(-80, 80).filter(bool), turns=st.integers(0, 3))
    def adjust_and_leave(self, key_id, nano, turns):
        """The admin does not wait for the end: booked all the same, or not at all."""

        async def leave():
            await self.ledger.flush()
            task = asyncio.ensure_future(self.books.adjust(key_id, nano, "because"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            await self.db.write(lambda _: None)
            after = await self.db.read("SELECT COUNT(*) FROM ledger_entries")
            if isinstance(result, InvalidRequest):
                raise result
            return after != before

        before = self.run(self.db.read("SELECT COUNT(*) FROM ledger_entries"))
        self.book(key_id, nano, leave())

    def book(self, key_id, nano, booking):
        accounts = self.running(key_id)
        month = accounts[0]
        try:
            if not self.run_and_flush(booking):
                return
        except InvalidRequest:
            assert nano < 0
            assert month.settled + month.overrun < -nano
            return
        for sums in accounts:
            if nano > 0:
                sums.overrun += nano
                continue
            less = min(sums.overrun, -nano)
            sums.overrun -= less
            sums.settled -= min(sums.settled, -nano - less)

    @rule(key_id=KEYS)
    def paid(self, key_id):
        month, day, _ = self.running(key_id)
        self.run_and_flush(self.books.mark_paid(key_id))
        for sums in (month, day):
            sums.settled = sums.overrun = 0

    @rule(quarters=st.integers(0, 2), days=st.integers(0, 40))
    def old_attempts_are_added_up(self, quarters, days):
        self.clock.ms += quarters * 92 * 86_400_000
        self.ledger._today()
        before = self.clock.ms - days * 86_400_000
        self.run_and_flush(add_up(self.db, self.clock, before))
        assert self.run(self.books.verify()) == []

    @invariant()
    def the_books_agree(self):
        if not hasattr(self, "ledger"):
            return
        for key_id in self.grants:
            found = self.ledger.accounts(key_id)
            for kind, sums in zip(("month", "day", "total"), self.running(key_id), strict=True):
                if kind in found:
                    account = found[kind]
                    got = account.settled, account.reserved, account.overrun
                    assert got == sums.values(), (key_id, kind)
                else:
                    assert sums.values() == (0, 0, 0)


TestLedgerLife = LedgerLife.TestCase
TestLedgerLife.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLedgerLife.pytestmark = [pytest.mark.timeout(3600 if RUNS > 60 else 300)]
