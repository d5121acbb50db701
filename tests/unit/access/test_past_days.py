"""Old attempts are added up: the books stay what they were, and nothing counts twice."""

from __future__ import annotations

from functools import partial

from tests.unit.access.money import PRICED, UNPRICED, Key, most, used

from tokenhub.access import past_days
from tokenhub.access.bookkeeper import GROUPS, Bookkeeper
from tokenhub.access.daybook import replay
from tokenhub.access.ledger import Ledger
from tokenhub.access.past_days import add_up
from tokenhub.storage.spool import FileSpool

BUDGET = Key(monthly_budget=10_000)
FREE = Key(key_id="free")
IDS = "SELECT id FROM ledger_attempts ORDER BY id"


async def spent(ledger, nano, key=BUDGET, model=PRICED, flag=""):
    async with ledger.spend(key, "r", 1, model, most(nano)) as hold:
        await hold.settle(used(nano), flag=flag)


async def test_no_sum_changes(ledger, books, db, clock, monkeypatch):
    monkeypatch.setattr(past_days, "SLICE", 2)
    for day in range(24, 28):
        clock.set(f"2026-11-{day}T23:00:00")
        await spent(ledger, day)
        await spent(ledger, 3, FREE, flag="cut")
        await spent(ledger, 5, FREE, UNPRICED)
    await books.adjust("k", -7, "wrong price")
    clock.set("2027-03-01T00:00:00")
    await spent(ledger, 11)
    before = [await books.spend(by) for by in GROUPS]
    accounts = await books.show("k")
    assert await add_up(db, clock, clock.ms) == 12
    assert await db.read(IDS) == [(13,)]
    assert [await books.spend(by) for by in GROUPS] == before
    assert await books.show("k") == accounts
    assert await books.verify() == []
    clock.set("2026-11-26T00:00:00")
    assert [row.group for row in await books.spend("day", since=clock.ms)] == [
        "20261126", "20261127", "20270301",
    ]  # fmt: skip
    await db.write(lambda tx: tx.execute("UPDATE ledger_days SET settled = settled + 1"))
    assert {one.row for one in await books.verify()} >= {"k total 0", "k month 202611"}


async def test_this_month_and_the_last_stay_whatever_is_asked(ledger, db, clock):
    clock.set("2026-11-30T23:59:59")
    await spent(ledger, 5)
    for at, count in (("2026-12-31T23:59:59", 0), ("2027-01-01T00:00:00", 1)):
        clock.set(at)
        assert await add_up(db, clock, clock.ms + 86_400_000) == count


async def test_days_within_the_retention_stay(ledger, db, clock):
    await spent(ledger, 5)
    kept_from = clock.ms
    clock.set("2027-06-01T00:00:00")
    assert await add_up(db, clock, kept_from) == 0
    assert await add_up(db, clock, kept_from + 86_400_000) == 1


async def test_an_attempt_under_way_stays_until_it_has_ended(ledger, books, db, clock):
    await spent(ledger, 4)
    async with ledger.spend(BUDGET, "r", 1, PRICED, most(100)) as hold:
        await spent(ledger, 6)
        clock.set("2027-06-01T00:00:00")
        assert await add_up(db, clock, clock.ms) == 2
        assert await books.verify() == []
        await hold.settle(used(30))
    await ledger.flush()
    assert await add_up(db, clock, clock.ms) == 1
    assert await books.verify() == []
    [row] = await books.spend("day")
    assert (row.group, row.attempts, row.cost, row.reserved) == ("20261123", 3, 40, 0)


async def test_numbers_go_on_after_all_rows_have_gone(db, clock):
    ledger = await Ledger.open(db, clock)
    for _ in range(3):
        await spent(ledger, 5)
    await ledger.close()
    clock.set("2027-06-01T00:00:00")
    await add_up(db, clock, clock.ms)
    ledger = await Ledger.open(db, clock)
    await spent(ledger, 5)
    assert await db.read(IDS) == [(4,)]
    assert await Bookkeeper(db, clock, ledger).verify() == []
    await ledger.close()


async def test_a_note_of_what_was_added_up_is_not_booked_again(db, clock, tmp_path, monkeypatch):
    noted = []
    append = FileSpool.append
    monkeypatch.setattr(
        FileSpool, "append", lambda self, data: (noted.append(bytes(data)), append(self, data))
    )
    ledger = await Ledger.open(db, clock, FileSpool(tmp_path / "money.sqlite"))
    await spent(ledger, 5)
    await ledger.flush()
    clock.set("2027-06-01T00:00:00")
    assert await add_up(db, clock, clock.ms) == 1
    assert noted
    assert await db.write(partial(replay, records=noted)) == 0
    assert await db.read(IDS) == []
    assert await Bookkeeper(db, clock, ledger).verify() == []
    await ledger.close()


async def test_runs_that_are_long_over_are_forgotten_but_not_the_last(db, clock):
    for _ in range(3):
        await (await Ledger.open(db, clock)).close()
    clock.set("2027-06-01T00:00:00")
    await add_up(db, clock, clock.ms)
    assert await db.read("SELECT epoch FROM ledger_epochs") == [(3,)]
    ledger = await Ledger.open(db, clock)
    assert ledger.epoch == 4
    await ledger.close()


async def test_the_request_log_of_such_days_is_not_compared(ledger, books, db, clock):
    columns = [row[1] for row in await db.read("PRAGMA table_info(request_log)")]
    await spent(ledger, 40)
    await ledger.flush()

    def log(seq, cost):
        values = dict.fromkeys(columns, 0)
        values |= {"seq": seq, "request_id": "r", "cost": cost, "at_ms": clock.ms}
        marks = ", ".join(f":{name}" for name in values)
        return lambda tx: tx.execute(
            f"INSERT INTO request_log ({', '.join(values)}) VALUES ({marks})", values
        )

    await db.write(log(1, 41))
    assert [one.table for one in await books.verify()] == ["request_log"]
    clock.set("2027-06-01T00:00:00")
    await add_up(db, clock, clock.ms)
    assert await books.verify() == []
    await db.write(log(2, 41))
    assert [one.table for one in await books.verify()] == ["request_log"]
