"""Entries by hand, reports, and proofs that find what was tampered with."""

from __future__ import annotations

import asyncio

import apsw
import pytest
from tests.unit.access.money import PRICED, Key, most, used

from tokenhub.core.errors import InvalidRequest

BUDGET = Key(monthly_budget=1000)


async def spent(ledger, nano, key=BUDGET, model=PRICED, request="r", bound=None):
    async with ledger.spend(key, request, 1, model, most(bound or nano)) as hold:
        await hold.settle(used(nano))


def sums(ledger, kind="month", key="k"):
    account = ledger.accounts(key)[kind]
    return account.settled, account.reserved, account.overrun


async def test_a_credit_gives_room_back_and_stands_in_the_books(ledger, books):
    await spent(ledger, 900)
    seen = []
    changed = await books.adjust(
        "k", -300, " wrong price ", also=lambda tx, *texts: seen.append(texts)
    )
    assert changed == {"month": -300, "day": -300, "total": -300}
    assert sums(ledger) == (600, 0, 0)
    assert ledger.room(BUDGET) == 400
    assert await books.verify() == []
    _, entries = await books.show("k")
    assert {(e.kind, e.what, e.settled, e.reason) for e in entries} == {
        (kind, "adjust", -300, "wrong price") for kind in ("month", "day", "total")
    }
    [(before, after)] = seen
    assert before["month_usd"] == "0.0000009"
    assert after["month_usd"] == "0.0000006"
    assert after["reason"] == "wrong price"


async def test_a_debit_counts_as_overrun_whatever_the_limit(ledger, books):
    await spent(ledger, 900)
    await books.adjust("k", 250, "the provider's invoice")
    assert sums(ledger) == (900, 0, 250)
    assert ledger.room(BUDGET) == 0
    await books.adjust("k", -300, "a mistake")
    assert sums(ledger) == (850, 0, 0)
    assert await books.verify() == []


async def test_a_key_that_never_spent_can_be_debited(ledger, books):
    await books.adjust("new", 5, "opening balance")
    assert sums(ledger, key="new") == (0, 0, 5)
    assert await books.verify() == []


@pytest.mark.parametrize(
    ("nano", "reason", "param"),
    [
        (-901, "x", "amount_usd"),
        (0, "x", "amount_usd"),
        (5, "  ", "reason"),
        (5, "x" * 501, "reason"),
    ],
)
async def test_entries_that_make_no_sense(ledger, books, nano, reason, param):
    await spent(ledger, 900)
    with pytest.raises(InvalidRequest) as refused:
        await books.adjust("k", nano, reason)
    assert refused.value.param == param
    assert sums(ledger) == (900, 0, 0)


@pytest.mark.parametrize("step", range(1, 4))
async def test_an_entry_counts_also_when_the_admin_does_not_wait_for_it(ledger, books, db, step):
    await spent(ledger, 900)
    task = asyncio.create_task(books.adjust("k", 60, "the provider's invoice"))
    for _ in range(step):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await db.write(lambda _: None)
    [(overrun,)] = await db.read("SELECT overrun FROM ledger_accounts WHERE kind = 'month'")
    assert sums(ledger) == (900, 0, overrun)
    assert ledger.room(BUDGET) == 100 - overrun


async def test_a_failing_audit_undoes_the_entry(ledger, books):
    await spent(ledger, 900)

    def refuse(*_):
        raise ValueError

    with pytest.raises(ValueError):
        await books.adjust("k", -5, "x", also=refuse)
    assert sums(ledger) == (900, 0, 0)
    assert await books.verify() == []


async def test_paid_empties_the_month_but_not_the_total_nor_what_is_reserved(ledger, books, clock):
    await spent(ledger, 900)
    async with ledger.spend(BUDGET, "r2", 1, PRICED, most(100)) as hold:
        assert await books.mark_paid("k") == {"month": -900, "day": -900}
        assert sums(ledger) == (0, 100, 0)
        assert sums(ledger, "total") == (900, 100, 0)
        assert ledger.room(BUDGET) == 900
        await hold.settle(used(30))
    clock.set("2026-11-24T00:00:00")
    await spent(ledger, 70)
    assert sums(ledger) == (100, 0, 0)
    assert await books.verify() == []


async def test_spend_by_everything(ledger, books, clock):
    await spent(ledger, 10, request="a")
    await spent(ledger, 20, key=Key(key_id="other"), request="b")
    begin = clock.ms
    clock.set("2026-11-24T08:00:00")
    await spent(ledger, 5, request="c", bound=3)
    by_key = await books.spend("key")
    assert [(row.group, row.attempts, row.cost) for row in by_key] == [
        ("other", 1, 20),
        ("k", 2, 15),
    ]
    assert [(row.group, row.cost) for row in await books.spend("day")] == [
        ("20261123", 30),
        ("20261124", 5),
    ]
    [model] = await books.spend("model")
    assert (model.group, model.attempts, model.prompt, model.completion) == ("m", 3, 35, 0)
    [provider] = await books.spend("provider", since=begin + 1)
    assert (provider.group, provider.cost) == ("p", 5)
    assert await books.spend("key", until=begin) == []
    with pytest.raises(InvalidRequest):
        await books.spend("colour")


@pytest.mark.parametrize(
    ("sql", "table", "row", "text"),
    [
        (
            "UPDATE ledger_attempts SET settled = settled + 7 WHERE id = 1",
            "ledger_accounts",
            "k month 202611",
            "settled should be $0.000000007 higher",
        ),
        (
            "UPDATE ledger_accounts SET reserved = 9 WHERE kind = 'day'",
            "ledger_accounts",
            "k day 20261123",
            "reserved should be $0.000000009 lower",
        ),
        (
            "DELETE FROM ledger_accounts WHERE kind = 'total'",
            "ledger_accounts",
            "k total 0",
            "without",
        ),
        ("UPDATE ledger_attempts SET state = 'open'", "ledger_attempts", "1", "impossible"),
        ("UPDATE ledger_attempts SET day = 20260101", "ledger_attempts", "1", "impossible"),
        (
            "UPDATE ledger_attempts SET state = 'open', settled = 0, closed_at = NULL, epoch = 99",
            "ledger_attempts",
            "1",
            "its process is gone",
        ),
        (
            "INSERT INTO ledger_entries VALUES (9, 'k', 'month', 202611, 'paid', -1, 0, '', 0)",
            "ledger_accounts",
            "k month 202611",
            "settled should be $0.000000001 lower",
        ),
    ],
)
async def test_verify_names_the_row_that_was_tampered_with(
    ledger, books, tmp_path, sql, table, row, text
):
    await spent(ledger, 40)
    assert await books.verify() == []
    other = apsw.Connection(str(tmp_path / "money.sqlite"))
    other.execute(sql)
    other.close()
    problems = await books.verify()
    assert any(p.table == table and p.row == row and text in p.text for p in problems), problems


async def test_verify_compares_the_request_log_with_the_books(ledger, books, db):
    await spent(ledger, 40, request="right")
    await spent(ledger, 40, request="wrong")
    columns = [row[1:3] for row in await db.read("PRAGMA table_info(request_log)")]

    def log(seq, request_id, cost):
        values = dict.fromkeys((name for name, _ in columns), 0)
        values |= {"seq": seq, "request_id": request_id, "cost": cost}
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        return lambda tx: tx.execute(f"INSERT INTO request_log ({names}) VALUES ({marks})", values)

    await db.write(log(1, "right", 40))
    await db.write(log(2, "refused", 0))
    await db.write(log(3, "unpriced", None))
    assert await books.verify() == []
    await db.write(log(4, "wrong", 41))
    await db.write(log(5, "never booked", 7))
    assert [(one.table, one.row, one.text) for one in await books.verify()] == [
        ("request_log", "wrong", "logged as $0.000000041, booked as $0.00000004"),
        ("request_log", "never booked", "logged as $0.000000007, booked as $0.00"),
    ]


async def test_verify_while_money_is_being_spent(ledger, books):
    async with ledger.spend(BUDGET, "r", 1, PRICED, most(100)) as hold:
        assert await books.verify() == []
        await hold.settle(used(100))
    assert await books.verify() == []
