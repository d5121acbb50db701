"""What every Database promises; run against each implementation."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from tokenhub.core.clock import SystemClock
from tokenhub.storage.database import ConstraintViolated, StorageFailed
from tokenhub.storage.sqlite import SqliteDatabase

TABLE = "CREATE TABLE jar (name TEXT PRIMARY KEY, marbles BIGINT NOT NULL CHECK (marbles >= 0))"
PUT = "INSERT INTO jar (name, marbles) VALUES (:name, :marbles)"


@asynccontextmanager
async def sqlite(tmp_path):
    db = await SqliteDatabase.open(tmp_path / "contract.sqlite", SystemClock())
    try:
        yield db
    finally:
        await db.close()


@pytest.fixture(params=[sqlite], ids=["sqlite"])
async def db(request, tmp_path):
    async with request.param(tmp_path) as database:
        await database.write(lambda tx: tx.execute(TABLE))
        yield database


def put(name, marbles=1):
    return lambda tx: tx.execute(PUT, {"name": name, "marbles": marbles})


async def names(db):
    return [name for (name,) in await db.read("SELECT name FROM jar ORDER BY name")]


async def test_a_write_returns_what_its_closure_returns(db):
    assert await db.write(lambda tx: tx.execute("SELECT 1 + 1")) == [(2,)]


async def test_parameters_go_by_name_and_by_position(db):
    await db.write(put("a", 3))
    assert await db.read("SELECT marbles FROM jar WHERE name = :n", {"n": "a"}) == [(3,)]
    assert await db.read("SELECT marbles FROM jar WHERE name = ?", ("a",)) == [(3,)]


async def test_a_parameter_is_never_sql(db):
    hostile = "'; DROP TABLE jar; --"
    await db.write(put(hostile))
    assert await names(db) == [hostile]


async def test_upsert_returning_and_changes(db):
    def fill(tx):
        tx.executemany(PUT, [{"name": name, "marbles": 1} for name in "abc"])
        tx.execute("UPDATE jar SET marbles = marbles + 1 WHERE name <> :n", {"n": "c"})
        changed = tx.changes()
        sql = PUT + " ON CONFLICT (name) DO UPDATE SET marbles = excluded.marbles RETURNING marbles"
        return changed, tx.execute(sql, {"name": "a", "marbles": 9})

    assert await db.write(fill) == (2, [(9,)])


async def test_big_integers_and_text_come_back_exactly(db):
    await db.write(put("héllo ☃ \x00 'q'", 2**63 - 1))
    assert await db.read("SELECT * FROM jar") == [("héllo ☃ \x00 'q'", 2**63 - 1)]


async def test_a_failing_closure_rolls_back_alone(db):
    def fails(tx):
        put("lost")(tx)
        raise ValueError("mine")

    results = await asyncio.gather(
        db.write(put("a")), db.write(fails), db.write(put("b")), return_exceptions=True
    )
    assert isinstance(results[1], ValueError)
    assert str(results[1]) == "mine"
    assert results[0] == results[2] == []
    assert await names(db) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "marbles", "kind"),
    [("a", 1, "unique"), ("b", -1, "check"), ("b", None, "not_null")],
)
async def test_a_broken_rule_has_a_kind(db, name, marbles, kind):
    await db.write(put("a"))
    with pytest.raises(ConstraintViolated) as caught:
        await db.write(put(name, marbles))
    assert caught.value.kind == kind
    assert await names(db) == ["a"]


async def test_foreign_keys_are_enforced_and_cascade(db):
    table = "CREATE TABLE lid (jar TEXT NOT NULL REFERENCES jar (name) ON DELETE CASCADE)"
    await db.write(lambda tx: tx.execute(table))
    with pytest.raises(ConstraintViolated) as caught:
        await db.write(lambda tx: tx.execute("INSERT INTO lid (jar) VALUES ('none')"))
    assert caught.value.kind == "foreign_key"
    await db.write(put("a"))
    await db.write(lambda tx: tx.execute("INSERT INTO lid (jar) VALUES ('a')"))
    await db.write(lambda tx: tx.execute("DELETE FROM jar"))
    assert await db.read("SELECT * FROM lid") == []


async def test_reads_see_every_acknowledged_write(db):
    for count in range(50):
        await db.write(put(f"{count:03}"))
        assert len(await names(db)) == count + 1
        assert db.read_now("SELECT count(*) FROM jar") == [(count + 1,)]


async def test_writes_run_in_the_order_they_were_queued(db):
    await db.write(put("a", 0))
    sql = "UPDATE jar SET marbles = marbles * 2 + :bit WHERE marbles < 1000000"
    for step in range(100):
        db.write_soon(lambda tx, bit=step % 2: tx.execute(sql, {"bit": bit}))
    await db.write(lambda tx: None)
    expected = 0
    for step in range(100):
        expected = expected * 2 + step % 2 if expected < 1_000_000 else expected
    assert await db.read("SELECT marbles FROM jar") == [(expected,)]


async def test_write_soon_reports_success_and_failure(db):
    heard = []
    db.write_soon(put("a"), heard.append)
    db.write_soon(put("a"), heard.append)
    await db.write(lambda tx: None)
    assert heard[0] is None
    assert isinstance(heard[1], ConstraintViolated)
    assert await names(db) == ["a"]


async def test_a_failure_nobody_listens_to_is_logged_without_its_values(db, caplog):
    db.write_soon(put("top-secret-value", -1))
    await db.write(lambda tx: None)
    assert "background failed" in caplog.text
    assert "top-secret-value" not in caplog.text


async def test_a_callback_that_raises_silences_nobody(db):
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def bad(_):
        raise ValueError("callback")

    heard = []
    db.write_soon(put("a"), bad)
    db.write_soon(put("b"), heard.append)
    await db.write(lambda tx: None)
    assert heard == [None]
    assert len(problems) == 1


async def test_a_cancelled_waiter_does_not_cancel_the_write(db):
    problems, told = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def told_put(n):
        def run(tx):
            tx.on_commit(lambda: told.append(n))
            return put(f"{n:02}")(tx)

        return run

    tasks = [asyncio.ensure_future(db.write(told_put(n))) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await db.write(lambda tx: None)
    assert len(await names(db)) == 20
    assert told == list(range(20))
    assert problems == []


async def test_on_commit_runs_before_the_caller_goes_on_and_only_for_what_lasts(db):
    told = []

    def lasts(tx):
        tx.on_commit(lambda: told.append("lasts"))

    def fails(tx):
        tx.on_commit(lambda: told.append("fails"))
        raise ValueError

    await db.write(lasts)
    assert told == ["lasts"]
    with pytest.raises(ValueError):
        await db.write(fails)
    assert told == ["lasts"]


async def test_an_error_of_on_commit_reaches_the_caller_and_nobody_else(db):
    def bad(tx):
        tx.on_commit(lambda: 1 / 0)

    results = await asyncio.gather(
        db.write(put("a")), db.write(bad), db.write(put("b")), return_exceptions=True
    )
    assert [type(result) for result in results] == [list, ZeroDivisionError, list]


async def test_a_transaction_is_dead_after_its_closure(db):
    kept = await db.write(lambda tx: tx)
    with pytest.raises(RuntimeError):
        kept.execute("SELECT 1")


async def test_wrong_sql_and_missing_parameters_hurt_only_their_caller(db):
    for bad in (
        lambda tx: tx.execute("SELEC 1"),
        lambda tx: tx.execute(PUT, {"name": "x"}),
        lambda tx: tx.execute(PUT, {"name": object(), "marbles": 1}),
    ):
        with pytest.raises(Exception):  # noqa: B017  # the driver's own kind of error
            await db.write(bad)
    with pytest.raises(Exception):  # noqa: B017
        await db.read("SELECT * FROM nowhere")
    await db.write(put("a"))
    assert await names(db) == ["a"]


async def test_reads_cannot_write(db):
    with pytest.raises(Exception):  # noqa: B017
        await db.read("DELETE FROM jar")
    with pytest.raises(Exception):  # noqa: B017
        db.read_now("DELETE FROM jar")


async def test_close_commits_all_that_is_queued_and_then_refuses(db, tmp_path):
    heard = []
    for count in range(1500):
        db.write_soon(put(f"{count:04}"), heard.append)
    await db.close()
    assert heard == [None] * 1500
    with pytest.raises(StorageFailed):
        await db.write(put("late"))
    with pytest.raises(StorageFailed):
        db.write_soon(put("late"))
    with pytest.raises(StorageFailed):
        await db.read("SELECT 1")
    await db.close()
    assert db.read_now("SELECT count(*) FROM jar") == [(1500,)]
