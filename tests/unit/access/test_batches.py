"""What goes to the disk together."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.access.money import PRICED, Key, most, used

from tokenhub.access import batch
from tokenhub.access.ledger import Ledger
from tokenhub.access.writer import PACE

STATES = "SELECT request_id, state, settled FROM ledger_attempts ORDER BY id"
FREE = Key(key_id="free")


class Gate:
    """A database whose commits of batches wait for ``let``."""

    def __init__(self, db):
        self._db = db
        self.waiting = []
        self.written = []
        self.write = db.write

    def write_soon(self, fn, done):
        self.waiting.append((fn, done))

    async def reached(self):
        """Wait for a batch."""
        async with asyncio.timeout(5):
            while not self.waiting:  # noqa: ASYNC110
                await asyncio.sleep(PACE / 4)

    async def let(self):
        """Commit what waits, and let the loop see it."""
        fn, done = self.waiting.pop(0)
        await self._db.write(lambda tx: fn(Noting(tx, self.written)))
        done(None)
        await asyncio.sleep(0)


class Noting:
    def __init__(self, tx, written):
        self._tx = tx
        self._written = written
        self.execute = tx.execute

    def executemany(self, sql, rows):
        verb, table = sql.split()[0], sql.split("ledger_")[1].split()[0]
        self._written.append((verb, table, len(rows)))
        self._tx.executemany(sql, rows)


@pytest.fixture
def gate(db):
    return Gate(db)


@pytest.fixture
async def gated(gate, clock):
    ledger = await Ledger.open(gate, clock)
    yield ledger
    while gate.waiting:
        await gate.let()


async def sent(ledger):
    """What is booked goes out now, though nobody waits for it."""
    ledger._writer.hurry()
    await asyncio.sleep(0)


def begin(ledger, request, key=FREE, nano=10):
    hold = ledger.spend(key, request, 1, PRICED, most(nano))
    return hold, hold.reserve()


async def test_a_quick_attempt_beside_others_is_one_row_written_once(gated, gate, db):
    first, _ = begin(gated, "first")
    await sent(gated)  # the disk was free: it is on its way
    second, _ = begin(gated, "second")
    third, _ = begin(gated, "third")
    assert second.book() is not None
    await gate.let()
    del gate.written[:]
    await gate.let()
    rows = [one for one in gate.written if one[1] == "attempts"]
    assert rows == [("INSERT", "attempts", 1), ("INSERT", "attempts", 1)]
    states = [("first", "open", 0), ("second", "settled", 25), ("third", "open", 0)]
    assert await db.read(STATES) == states
    first.release()
    third.release()


async def test_what_nobody_waits_for_is_written_together(gated, gate):
    holds = []
    for number in range(3):
        holds.append(begin(gated, f"r{number}")[0])
        await asyncio.sleep(0)
    assert not gate.waiting
    await gate.reached()
    assert len(gate.waiting) == 1
    holds[0].release()
    await gate.let()
    assert not gate.waiting  # not at once, either, what came meanwhile
    await gate.reached()
    holds[1].release()
    holds[2].release()


async def test_who_waits_takes_along_what_nobody_waits_for(gated, gate, db):
    free, _ = begin(gated, "free")
    await asyncio.sleep(0)
    hold, opening = begin(gated, "paid", Key(monthly_budget=100))
    await asyncio.sleep(0)
    assert len(gate.waiting) == 1
    await gate.let()
    assert opening.done()
    assert [row[0] for row in await db.read(STATES)] == ["free", "paid"]
    free.release()
    hold.release()


async def test_a_budget_set_goes_out_at_once(gated, gate):
    free, _ = begin(gated, "free")
    gated.adopt(Key(key_id="free", monthly_budget=100))
    await asyncio.sleep(0)
    assert len(gate.waiting) == 1
    free.release()


async def test_only_one_batch_is_on_its_way(gated, gate):
    """Two files are enough for what is noted only as long as this holds."""
    for number in range(5):
        hold, _ = begin(gated, f"r{number}", Key(monthly_budget=1000))
        gated.adopt(Key(monthly_budget=1000 + number))
        await asyncio.sleep(0)
        hold.release()
        await asyncio.sleep(PACE * 1.5)
        assert len(gate.waiting) == 1


async def test_a_limit_set_meanwhile_meets_complete_sums(gated, gate, db):
    """Else its ceiling would be too low for the openings that follow."""
    first, _ = begin(gated, "first", nano=30)
    await sent(gated)
    second, _ = begin(gated, "second", nano=60)
    third, _ = begin(gated, "third")
    third.book()
    gated.adopt(Key(key_id="free", monthly_budget=50))
    await gate.let()
    await gate.let()
    month = "SELECT reserved, ceiling FROM ledger_accounts WHERE kind = 'month'"
    assert await db.read(month) == [(90, 115)]  # 25 are settled
    first.release()
    second.release()
    await sent(gated)
    await gate.let()
    assert await db.read(month) == [(0, 50)]
    assert not gated.failing


async def test_two_days_of_one_month_are_added_in_one_step(gated, gate, clock, db):
    """Either day alone could break the ceiling for a moment, though both together do not."""
    key = Key(key_id="tight", monthly_budget=100)
    old, _ = begin(gated, "old", key, nano=90)
    await asyncio.sleep(0)
    await gate.let()
    clock.ms += 86_400_000
    small, _ = begin(gated, "small", key, nano=5)
    old.release()
    large, _ = begin(gated, "large", key, nano=90)
    while gate.waiting or gated._writer.busy:
        await asyncio.sleep(0)
        await gate.let()
    assert await db.read("SELECT reserved FROM ledger_accounts WHERE kind = 'month'") == [(95,)]
    small.release()
    large.release()


@pytest.mark.parametrize("key", [Key(monthly_budget=100), Key()])
async def test_by_hand_it_ends_as_with_async_with(ledger, db, key):
    hold, opening = begin(ledger, "settled", key)
    if opening is not None:
        await hold.opened(opening)
    hold.note(usage=used(7))
    if (closing := hold.book()) is not None:
        await closing
    left, opening = begin(ledger, "left", key)
    if opening is not None:
        await left.opened(opening)
    left.sent = True
    left.leave()
    cancelled, opening = begin(ledger, "cancelled", key)
    if opening is not None:
        task = asyncio.create_task(cancelled.opened(opening))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        cancelled.leave()
    await ledger.flush()
    assert await db.read(STATES) == [
        ("settled", "settled", 7),
        ("left", "settled", 25),
        ("cancelled", "released", 0),
    ]
    assert ledger.open_holds == 0


OPENING = (
    "id", "key_id", "month", "day", "request_id", "attempt", "model_id", "provider_id", "reserved",
    "price_source", "price_version", "epoch", "opened_at",
)  # fmt: skip
CLOSING = (
    "state", "settled", "overrun", "prompt", "completion", "cached_read", "cached_write",
    "reasoning", "further", "flag", "closed_at",
)  # fmt: skip
NUMBERS = {
    "id", "month", "day", "attempt", "reserved", "epoch", "opened_at", "settled", "overrun",
    "prompt", "completion", "cached_read", "cached_write", "reasoning", "closed_at",
}  # fmt: skip


async def test_statements_without_names_of_columns_meet_the_right_ones(db):
    names = [row[1] for row in await db.read("PRAGMA table_info(ledger_attempts)")]
    row = {
        name: 100 + place if name in NUMBERS else name
        for place, name in enumerate((*OPENING, *CLOSING))
    }
    opening, closing = [row[name] for name in OPENING], [row[name] for name in CLOSING]

    async def written():
        [values] = await db.read("SELECT * FROM ledger_attempts")
        return dict(zip(names, values, strict=True))

    await db.write(lambda tx: tx.execute(batch._OPEN, opening))
    fresh = dict.fromkeys(CLOSING, 0) | {
        "state": "open", "further": "", "flag": "", "closed_at": None,
    }  # fmt: skip
    assert await written() == row | fresh
    await db.write(lambda tx: tx.execute(batch.CLOSE, (*closing, row["id"])))
    assert await written() == row
    await db.write(lambda tx: tx.execute("DELETE FROM ledger_attempts"))
    await db.write(lambda tx: tx.execute(batch.WHOLE, (*opening, *closing)))
    assert await written() == row
