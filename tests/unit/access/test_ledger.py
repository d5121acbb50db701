"""The ledger on a real database: what is admitted, what is settled, and what is never lost."""

from __future__ import annotations

import asyncio
import contextlib
import random

import apsw
import pytest
from msgspec.structs import replace
from tests.unit.access.money import FREE, PRICED, SIZE, UNPRICED, Key, most, used

from tokenhub.access.ledger import GRACE, Ledger
from tokenhub.core.bounds import bound
from tokenhub.core.catalog import Prices
from tokenhub.core.chat import Usage
from tokenhub.core.errors import InvalidRequest, PaymentRequired, Unavailable
from tokenhub.storage.database import StorageFailed

ROWS = """
SELECT state, reserved, settled, overrun, flag FROM ledger_attempts ORDER BY id
"""


def spend(ledger, key, nano, model=PRICED, request="r"):
    return ledger.spend(key, request, 1, model, most(nano))


def sums(ledger, kind="month", key="k"):
    account = ledger.accounts(key)[kind]
    return account.settled, account.reserved, account.overrun


async def stored(ledger, db, sql=ROWS):
    await ledger.flush()
    return await db.read(sql)


async def test_a_reservation_is_durable_before_the_call(ledger, tmp_path, clock):
    async with spend(ledger, Key(monthly_budget=100), 30) as hold:
        other = apsw.Connection(str(tmp_path / "money.sqlite"))
        assert other.execute(ROWS).fetchall() == [("open", 30, 0, 0, "")]
        found = other.execute("SELECT kind, settled, reserved, ceiling FROM ledger_accounts")
        assert set(found) == {
            ("month", 0, 30, 100),
            ("day", 0, 30, 1 << 62),
            ("total", 0, 30, 1 << 62),
        }
        await hold.settle(used(12))
        assert other.execute(ROWS).fetchall() == [("settled", 30, 12, 0, "")]
        other.close()
    assert hold.cost == 12
    assert sums(ledger) == (12, 0, 0)


async def test_what_a_row_says(ledger, db, clock):
    usage = Usage(
        prompt=50, completion=9, cached_read=4, cached_write=3, reasoning=2, audio_in=1, tier="flex"
    )
    async with ledger.spend(Key(monthly_budget=100), "r-1", 2, PRICED, most(80)) as hold:
        clock.ms += 500
        await hold.settle(usage)
    [row] = await db.read("SELECT * FROM ledger_attempts")
    opened = clock.ms - 500
    assert row == (
        *(1, "k", 202611, 20261123, "r-1", 2, "m", "p", "settled", 80, 59, 0, 50, 9, 4, 3, 2),
        *('{"audio_in":1,"tier":"flex"}', "manual", "", "", 1, opened, clock.ms),
    )


@pytest.mark.parametrize("period", ["monthly", "daily", "total"])
async def test_a_budget_for_exactly_k_admits_exactly_k(ledger, books, period):
    key = Key(**{f"{period}_budget": 100 * 37 + 99})
    admitted = refused = 0

    async def one(number):
        nonlocal admitted, refused
        await asyncio.sleep(0)
        try:
            async with spend(ledger, key, 100, request=f"r{number}") as hold:
                admitted += 1
                await asyncio.sleep(0.001 * (number % 3))
                await hold.settle(used(100))
        except PaymentRequired:
            refused += 1

    await asyncio.gather(*[one(number) for number in range(400)])
    assert (admitted, refused) == (37, 363)
    assert sums(ledger) == (3700, 0, 0)
    assert ledger.open_holds == 0
    assert await books.verify() == []


async def test_hundreds_at_once_leave_no_hold_behind_whatever_happens_to_them(ledger, books):
    key = Key(monthly_budget=10_000)
    draw = random.Random("holds")

    async def one(number):
        fate = draw.choice(["settle", "fail", "fail-sent", "cancel", "release", "forget"])
        async with spend(ledger, key, draw.randrange(1, 60), request=f"r{number}") as hold:
            await asyncio.sleep(draw.random() / 50)
            if fate in {"fail-sent", "forget"}:
                hold.note(content_bytes=8)
            if fate in {"settle", "cancel"}:
                await hold.settle(used(draw.randrange(80)))
            if fate.startswith("fail"):
                raise RuntimeError(fate)
            if fate == "release":
                hold.release()

    tasks = [asyncio.create_task(one(number)) for number in range(600)]
    for task in draw.sample(tasks, 200):
        await asyncio.sleep(0.0003)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    month = ledger.accounts("k")["month"]
    assert ledger.open_holds == 0
    assert month.reserved == 0
    assert 0 < month.settled <= 10_000
    assert await books.verify() == []


async def test_a_refusal_says_everything_and_costs_nothing(ledger, db):
    key = Key(monthly_budget=2_500_000_000, daily_budget=5_000_000_000)
    async with spend(ledger, key, 2_000_000_000) as hold:
        with pytest.raises(PaymentRequired) as refused:
            async with spend(ledger, key, 600_000_000):
                raise AssertionError
        await hold.settle(used(1_500_000_000))
    assert refused.value.extra == {
        "period": "month",
        "limit_usd": 2.5,
        "spent_usd": 0.0,
        "reserved_usd": 2.0,
        "needed_usd": 0.6,
        "resets_at": "2026-12-01T00:00:00Z",
    }
    assert refused.value.headers == ((b"x-should-retry", b"false"),)
    assert refused.value.status == 402
    assert len(await stored(ledger, db)) == 1


async def test_the_tightest_of_several_budgets_refuses(ledger):
    key = Key(monthly_budget=100, daily_budget=50, total_budget=1000)
    with pytest.raises(PaymentRequired) as refused:
        async with spend(ledger, key, 60):
            raise AssertionError
    assert refused.value.extra["period"] == "day"
    assert refused.value.extra["resets_at"] == "2026-11-24T00:00:00Z"


async def test_spending_exactly_the_budget_is_allowed_and_one_more_is_not(ledger):
    key = Key(monthly_budget=100)
    async with spend(ledger, key, 100) as hold:
        await hold.settle(used(100))
    with pytest.raises(PaymentRequired):
        async with spend(ledger, key, 1):
            raise AssertionError


async def test_a_bound_takes_what_is_left_and_refuses_below_the_floor(ledger):
    key = Key(monthly_budget=1000)
    # SIZE is 100 tokens of prompt at one nano-dollar each.
    assert ledger.bound(key, PRICED, SIZE, max_tokens=5000).max_tokens == 900
    assert ledger.bound(key, PRICED, SIZE, max_tokens=500).max_tokens is None
    async with spend(ledger, key, 885):
        with pytest.raises(PaymentRequired) as refused:
            ledger.bound(key, PRICED, SIZE, max_tokens=500)
    assert refused.value.extra["needed_usd"] == 116 / 1e9
    assert ledger.room(key) == 1000
    assert ledger.room(Key(key_id="free")) is None


async def test_a_model_without_a_price_is_refused_to_keys_with_a_budget_only(ledger, db):
    budgeted = Key(monthly_budget=1000)
    with pytest.raises(InvalidRequest) as refused:
        ledger.bound(budgeted, UNPRICED, SIZE)
    assert refused.value.code == "model_unpriced"
    assert "tokenhubctl prices set u" in refused.value.hint
    with pytest.raises(InvalidRequest):
        async with ledger.spend(budgeted, "r", 1, UNPRICED, bound(SIZE, UNPRICED)):
            raise AssertionError
    free = Key(key_id="free")
    limit = ledger.bound(free, UNPRICED, SIZE)
    async with ledger.spend(free, "r", 1, UNPRICED, limit) as hold:
        await hold.settle(used(7))
    assert hold.cost is None
    found = await stored(ledger, db, "SELECT settled, prompt, price_source FROM ledger_attempts")
    assert found == [(0, 7, "unknown")]


async def test_a_free_model_needs_no_money(ledger):
    key = Key(monthly_budget=100)
    async with spend(ledger, key, 100) as hold:
        limit = ledger.bound(key, FREE, SIZE)
        assert limit.nano == 0
        async with ledger.spend(key, "r", 2, FREE, limit) as free:
            await free.settle(used(5000))
        await hold.settle(used(1))
    assert free.cost == 0
    assert sums(ledger) == (1, 0, 0)


async def test_usage_beyond_the_bound_takes_the_room_and_the_rest_is_overrun(ledger, db, books):
    key = Key(monthly_budget=100)
    async with spend(ledger, key, 40) as first, spend(ledger, key, 30) as second:
        await first.settle(used(90))  # 40 reserved, 30 free, 20 too many
        assert sums(ledger) == (70, 30, 20)
        assert first.overrun == 20
        await second.settle(used(10))
    assert sums(ledger) == (80, 0, 20)
    assert await stored(ledger, db) == [
        ("settled", 40, 70, 20, "overrun"),
        ("settled", 30, 10, 0, ""),
    ]
    # 80 settled of 100, but 100 spent: nothing is left.
    assert ledger.room(key) == 0
    assert await books.verify() == []


async def test_a_key_without_a_budget_never_overruns(ledger, db):
    async with spend(ledger, Key(), 10) as hold:
        await hold.settle(used(10_000))
    assert await stored(ledger, db) == [("settled", 10, 10_000, 0, "")]


async def test_a_provider_that_reports_nonsense_cannot_overflow_the_books(ledger, db, books):
    dear = replace(PRICED, prices=Prices(input=10**15, output=0))
    for prompt in (10**30, -(10**30)):
        async with spend(ledger, Key(), 10, dear) as hold:
            await hold.settle(Usage(prompt=prompt, completion=-7, audio_in=10**30, tier="x" * 99))
    assert sums(ledger) == (10**14 + 0, 0, 0)
    assert await db.read("SELECT prompt, completion FROM ledger_attempts") == [(10**12, 0), (0, 0)]
    assert await books.verify() == []


async def test_unsent_is_released_sent_is_settled_as_noted(ledger, db):
    key = Key(monthly_budget=1000)
    for noted in ({}, {"content_bytes": 42}, {"usage": used(77)}, {"sent": True}):
        with contextlib.suppress(RuntimeError):
            async with spend(ledger, key, 100) as hold:
                if noted:
                    hold.note(**noted)
                raise RuntimeError
    assert await stored(ledger, db) == [
        ("released", 100, 0, 0, ""),
        ("settled", 100, 25 + 11, 0, "cut"),  # 100 bytes of prompt and 42 of answer, 4 a token
        ("settled", 100, 77, 0, "cut"),
        ("settled", 100, 25, 0, "cut"),
    ]


async def test_no_usage_settles_what_was_counted_and_says_so(ledger, db):
    async with spend(ledger, Key(monthly_budget=1000), 100) as hold:
        hold.note(content_bytes=400)
        await hold.settle()
    assert await stored(ledger, db) == [("settled", 100, 125, 0, "counted")]


@pytest.mark.parametrize("key", [Key(monthly_budget=1000), Key()])
async def test_cancelled_in_each_window(ledger, books, key):
    """Waiting for the reservation, holding it, waiting for the settlement."""

    async def one():
        async with spend(ledger, key, 100) as hold:
            hold.note(sent=True)
            await asyncio.sleep(0.002)
            await hold.settle(used(60))

    for steps in range(12):
        task = asyncio.create_task(one())
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert ledger.open_holds == 0
    assert sums(ledger)[1] == 0
    assert await books.verify() == []


async def test_a_hold_is_settled_once(ledger):
    async with spend(ledger, Key(monthly_budget=100), 10) as hold:
        await hold.settle(used(3))
        hold.release()
        with pytest.raises(RuntimeError):
            await hold.settle(used(3))
    assert sums(ledger) == (3, 0, 0)


async def test_the_month_ends_at_its_last_millisecond(ledger, clock, db):
    key = Key(monthly_budget=100)
    clock.set("2026-11-30T23:59:59.999")
    async with spend(ledger, key, 100) as late:
        with pytest.raises(PaymentRequired):
            async with spend(ledger, key, 1):
                raise AssertionError
        clock.set("2026-12-01T00:00:00")
        async with spend(ledger, key, 100) as early:
            await early.settle(used(60))
        await late.settle(used(70))
    assert sums(ledger) == (60, 0, 0)
    found = await stored(
        ledger, db, "SELECT period, settled FROM ledger_accounts WHERE kind = 'month' ORDER BY 1"
    )
    assert found == [(202611, 70), (202612, 60)]
    assert sums(ledger, "total") == (130, 0, 0)


async def test_a_day_budget_is_for_a_day(ledger, clock):
    key = Key(daily_budget=100)
    async with spend(ledger, key, 100) as hold:
        await hold.settle(used(100))
    clock.set("2026-11-23T23:59:59.999")
    assert ledger.room(key) == 0
    clock.set("2026-11-24T00:00:00")
    assert ledger.room(key) == 100


async def test_a_clock_set_back_gives_no_money_back(ledger, db, clock):
    key = Key(monthly_budget=100)
    clock.set("2026-11-30T23:00:00")
    async with spend(ledger, key, 90) as hold:
        await hold.settle(used(90))
    clock.set("2026-12-01T00:00:01")
    async with spend(ledger, key, 80) as hold:
        await hold.settle(used(80))
    clock.set("2026-10-15T00:00:00")
    assert ledger.room(key) == 20
    await ledger.close()
    again = await Ledger.open(db, clock)
    assert again.room(key) == 20
    async with spend(again, key, 20) as hold:
        await hold.settle(used(20))
    found = await stored(
        again, db, "SELECT period, settled FROM ledger_accounts WHERE kind = 'month' ORDER BY 1"
    )
    assert found == [(202611, 90), (202612, 100)]
    await again.close()


async def test_a_clock_behind_the_books_is_said_at_the_start(ledger, db, clock, caplog):
    async with spend(ledger, Key(), 1):
        pass
    await ledger.close()
    await (await Ledger.open(db, clock)).close()
    assert "renewed" not in caplog.text
    clock.set("2026-10-15T00:00:00")
    await (await Ledger.open(db, clock)).close()
    assert "The clock says 20261015, and the books have come to 20261123" in caplog.text
    assert "apikey paid" in caplog.text


async def test_a_changed_limit_holds_at_once_in_both_directions(ledger, db, books):
    low, high = Key(monthly_budget=50), Key(monthly_budget=200)
    async with spend(ledger, Key(monthly_budget=100), 90) as hold:
        assert ledger.room(high) == 110
        async with spend(ledger, high, 100) as second:
            assert ledger.room(low) == 0  # lowered under 190
            await ledger.flush()
            ceiling = "SELECT budget, ceiling FROM ledger_accounts WHERE kind = 'month'"
            assert await db.read(ceiling) == [(50, 190)]
            assert await books.verify() == []
            await hold.settle(used(10))
            assert await stored(ledger, db, ceiling) == [(50, 110)]
            second.release()
        assert await stored(ledger, db, ceiling) == [(50, 50)]
    assert ledger.room(low) == 40
    assert await books.verify() == []


async def test_a_request_under_way_does_not_bring_an_old_limit_back(ledger):
    old, new = Key(monthly_budget=100), Key(revision=1, monthly_budget=20)
    assert ledger.room(old) == 100
    assert ledger.room(new) == 20
    assert ledger.room(old) == 20
    assert ledger.room(Key(revision=2, monthly_budget=100)) == 100


@pytest.mark.parametrize("limits", [[100], list(range(100, 110))])
async def test_an_old_limit_stays_away_whatever_was_changed_since(ledger, clock, limits):
    """Also where the key was changed in something else first, or often."""
    first, *changed = [
        Key(revision=number, monthly_budget=nano) for number, nano in enumerate([100, *limits, 20])
    ]
    for key in (first, *changed):
        ledger.adopt(key)
    assert ledger.room(first) == 20
    assert ledger.room(changed[-1]) == 20
    clock.set("2026-11-24T00:00:00")
    assert ledger.room(first) == 20
    assert ledger.room(changed[-1]) == 20


async def test_a_total_set_after_the_hold_s_day_bounds_its_overrun(ledger, clock, books):
    async with spend(ledger, Key(), 10) as hold:
        clock.set("2026-11-24T00:00:00")
        ledger.adopt(Key(total_budget=50))
        await hold.settle(used(500))
    assert sums(ledger, "total") == (50, 0, 450)
    assert await books.verify() == []


async def test_the_database_itself_refuses_to_go_over_a_limit(ledger, tmp_path):
    async with spend(ledger, Key(monthly_budget=100), 60) as hold:
        other = apsw.Connection(str(tmp_path / "money.sqlite"))
        for sql in (
            "UPDATE ledger_accounts SET reserved = reserved + 41 WHERE kind = 'month'",
            "UPDATE ledger_accounts SET settled = 101 WHERE kind = 'month'",
            "UPDATE ledger_accounts SET reserved = -1 WHERE kind = 'month'",
            "UPDATE ledger_accounts SET ceiling = 59 WHERE kind = 'month'",
        ):
            with pytest.raises(apsw.ConstraintError):
                other.execute(sql)
        other.execute("UPDATE ledger_accounts SET reserved = reserved + 40 WHERE kind = 'month'")
        other.execute("UPDATE ledger_accounts SET reserved = reserved - 40 WHERE kind = 'month'")
        other.close()
        await hold.settle(used(1))


async def test_while_the_books_cannot_be_written_nothing_budgeted_is_spent(
    ledger, db, books, clock, monkeypatch, caplog
):
    monkeypatch.setattr("tokenhub.access.writer._RETRY_MOST", 0.05)
    budgeted, free = Key(monthly_budget=1000), Key(key_id="free")
    async with spend(ledger, budgeted, 100) as before:
        await db.write(
            lambda tx: tx.execute(
                "CREATE TRIGGER broken BEFORE INSERT ON ledger_attempts "
                "BEGIN SELECT RAISE(ABORT, 'broken'); END"
            )
        )
        with pytest.raises(Unavailable):
            async with spend(ledger, budgeted, 100):
                raise AssertionError
        assert ledger.failing
        with pytest.raises(Unavailable):
            async with spend(ledger, budgeted, 100):
                raise AssertionError
        async with spend(ledger, free, 5) as hold:
            await hold.settle(used(5))
        clock.ms += int(GRACE * 1000)
        with pytest.raises(Unavailable):
            async with spend(ledger, free, 5):
                raise AssertionError
        await before.settle(used(60))  # answers although it cannot be written yet
        await db.write(lambda tx: tx.execute("DROP TRIGGER broken"))
        async with asyncio.timeout(10):
            while ledger.failing:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    async with spend(ledger, budgeted, 100) as hold:
        await hold.settle(used(1))
    assert sums(ledger) == (61, 0, 0)
    assert sums(ledger, key="free") == (5, 0, 0)
    assert await books.verify() == []
    assert "cannot be written" in caplog.text


async def test_nothing_is_spent_after_closing(ledger):
    await ledger.close()
    for key in (Key(), Key(monthly_budget=9)):
        with pytest.raises(Unavailable):
            async with spend(ledger, key, 1):
                raise AssertionError


async def test_what_a_dead_process_left_open_is_settled_at_its_bound(ledger, db, clock):
    hold = spend(ledger, Key(monthly_budget=100), 40)
    free = spend(ledger, Key(key_id="free"), 7)
    await hold.__aenter__()
    await free.__aenter__()
    await ledger.flush()
    ledger._writer._write = lambda *_: None
    clock.ms += 1000
    again = await Ledger.open(db, clock)
    assert again.crashed == 2
    assert sums(again) == (40, 0, 0)
    assert sums(again, key="free") == (7, 0, 0)
    assert await stored(again, db) == [
        ("settled", 40, 40, 0, "crash"),
        ("settled", 7, 7, 0, "crash"),
    ]
    await again.close()
    assert (await Ledger.open(db, clock)).crashed == 0
    del ledger._holds[hold.id], ledger._holds[free.id]
    ledger._writer.pending.__init__(1)
    ledger._writer.busy = False


async def test_a_disk_that_is_full_at_the_end_does_not_stop_the_stop(ledger, db, monkeypatch):
    async def full(_):
        raise StorageFailed("The disk with the database is full.")

    monkeypatch.setattr(db, "write", full)
    await ledger.close()


async def test_a_clean_stop_leaves_nothing_to_recover(ledger, db, clock):
    async with spend(ledger, Key(), 40) as hold:
        await hold.settle(used(2))
    await ledger.close()
    assert await db.read("SELECT closed_at, low_id FROM ledger_epochs") == [(clock.ms, 2)]
    again = await Ledger.open(db, clock)
    assert again.crashed == 0
    assert sums(again) == (2, 0, 0)
    await again.close()
