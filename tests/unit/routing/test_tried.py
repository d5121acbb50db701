"""Rewards as they are read back: from rows of decisions, and from rows written before those."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from tests.unit.routing.world import ManualClock, attempt, catalog, model, query

from tokenhub.core.decision import Decision, Limits, encode_attempts
from tokenhub.core.errors import FailureClass
from tokenhub.routing import tried as module
from tokenhub.routing.reward import QUALITY_SHARE, reward_of
from tokenhub.routing.rewards import RewardLog
from tokenhub.routing.router import Router
from tokenhub.routing.rules import Rules
from tokenhub.storage import migrate
from tokenhub.storage.sqlite import SqliteDatabase

NOW = 1_800_000_000_000
OLD = """
INSERT INTO reward_log (request_id, attempt, at, model_id, provider_id, mode, estimated_tokens,
    token_bucket, latency_budget_ms, latency_ms, ttft_ms, cost, error_class, reward, propensity,
    feedback) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
OLD_DECISION = """
INSERT INTO decision_log (request_id, at, mode, policy, model_id, answered_by, outcome, rules,
    record, attempts, evidence) VALUES (?, ?, 'cheap', '', 'a', 'a', 'ok', '', '{}', '[]', '')
"""


def old(number, at, tries=1, reward=0.5, feedback=None):
    return [
        (f"r-{number}", n, at + n, "a", "p", "cheap", 7, "small", 20_000, 1.5, None, 5, "",
         reward, 0.25, feedback)
        for n in range(1, tries + 1)
    ]  # fmt: skip


def decided(number, mode="cheap", limits=None):
    router = Router(ManualClock(), seed=1)
    router.update(catalog=catalog(model("a"), model("b")))
    return router.decide(query(request_id=f"r-{number}", mode=mode, limits=limits or Limits()))


def put(log, decision, tries, outcome, at):
    log.in_use(Rules(), at)
    log.decision(decision, tries, outcome, at, encode_attempts(tries))


@pytest.fixture
async def log(db):
    return RewardLog(db, lambda *_: None)


async def test_a_request_with_two_tries_is_two_rows_newest_first(log):
    decision: Decision = decided(1, limits=Limits(max_latency_ms=2_000))
    tries = [
        attempt(decision, at_ms=NOW, kind=FailureClass.SERVER, latency_ms=3.25),
        attempt(decision, number=2, at_ms=NOW + 5, cost=10**7, ttft_ms=100.0),
    ]
    put(log, decision, tries, "ok", NOW + 9)
    log.feedback("r-1", 2, 0.25, QUALITY_SHARE * (0.25 - 1.0))
    new, first = await log.rewards()
    asked = decision.query
    assert new == {
        "request_id": "r-1", "attempt": 2, "at": NOW + 5, "model_id": tries[1].model_id,
        "provider_id": "p", "mode": "cheap", "estimated_tokens": asked.input_tokens,
        "token_bucket": decision.bucket, "latency_budget_ms": 2_000, "latency_ms": 500.0,
        "ttft_ms": 100.0, "cost": 10**7, "error_class": "",
        "reward": reward_of(decision, tries[1]) + QUALITY_SHARE * (0.25 - 1.0),
        "propensity": decision.propensity, "feedback": 0.25,
    }  # fmt: skip
    assert (first["reward"], first["error_class"], first["feedback"]) == (0.0, "server", None)


async def learned(log):
    return [one async for some in log.learned(NOW) for one in some]


async def test_what_says_nothing_of_the_model_has_no_reward_and_is_not_learned(log):
    decision = decided(1)
    put(log, decision, [attempt(decision, kind=FailureClass.CANCELLED)], "x", NOW)
    put(log, decided(2), [], "refused", NOW)
    [row] = await log.rewards()
    assert row["reward"] is None
    assert await learned(log) == []


async def test_pages_are_in_the_order_of_begin_though_rows_are_in_that_of_end(log, monkeypatch):
    monkeypatch.setattr("tokenhub.routing.rewards.LIST_PAGE", 3)
    draw = random.Random(5)
    begins = []
    for number in range(40):
        decision = decided(number)
        begin = NOW + draw.randrange(50)
        tries = [
            attempt(decision, number=n, at_ms=begin + 3 * n, kind="" if n == 2 else "server")
            for n in (1, 2)
        ]
        begins += [(one.at_ms, f"r-{number}", one.number) for one in tries]
        end = begin + 9 + draw.choice((0, 1, 40))
        put(log, decision, tries, "ok", end)
    found = await log.rewards(1000)
    assert [(one["at"], one["request_id"], one["attempt"]) for one in found] == sorted(
        begins, reverse=True
    )
    assert await log.rewards(7, 21) == found[21:28]
    assert await log.rewards(7, 78) == found[78:]


@pytest.fixture
async def upgraded(tmp_path):
    """A database of the release before, opened by this one."""
    path, clock = tmp_path / "old.sqlite", ManualClock()
    before = [one for one in migrate.shipped() if one.version <= 8]
    database = await SqliteDatabase.open(path, clock, before)
    rows = [
        *old(1, NOW - 50, tries=2), *old(2, NOW - 30, reward=None), *old(3, NOW - 20, feedback=0.1),
    ]  # fmt: skip

    def fill(tx):
        tx.executemany(OLD, rows)
        tx.executemany(OLD_DECISION, [(f"r-{number}", NOW) for number in (1, 2, 3)])

    await database.write(fill)
    await database.close()
    database = await SqliteDatabase.open(path, clock)
    yield database, rows
    await database.close()


async def test_rows_of_the_release_before_are_listed_learned_judged_and_pruned(
    upgraded, monkeypatch
):
    monkeypatch.setattr("tokenhub.routing.rewards.LIST_PAGE", 2)
    db, rows = upgraded
    log = RewardLog(db, asyncio.get_running_loop().call_later)
    newest_first = sorted(rows, key=lambda row: row[2], reverse=True)
    assert [tuple(one.values()) for one in await log.rewards()] == newest_first
    decision = decided(4)
    done = attempt(decision, at_ms=NOW, cost=5)
    put(log, decision, [done], "ok", NOW + 1)
    log.feedback("r-1", 1, 0.5, -0.2)
    listed = await log.rewards()
    assert [one["request_id"] for one in listed] == ["r-4", "r-3", "r-2", "r-1", "r-1"]
    assert listed[0]["reward"] == reward_of(decision, done)
    assert (listed[-1]["feedback"], listed[-1]["reward"]) == (0.5, pytest.approx(0.3))
    assert [(one.request_id, one.attempt) for one in await learned(log)] == [
        ("r-4", 1), ("r-3", 1), ("r-1", 2), ("r-1", 1),
    ]  # fmt: skip
    await log.prune(NOW - 25)
    assert [one["request_id"] for one in await log.rewards()] == ["r-4", "r-3"]


async def test_at_start_the_latest_are_learned_latest_first(log, monkeypatch):
    monkeypatch.setattr("tokenhub.routing.rewards.REBUILD_ROWS", 3)
    monkeypatch.setattr("tokenhub.routing.rewards.REBUILD_PAGE", 2)
    for number in range(5):
        decision = decided(number)
        put(log, decision, [attempt(decision, at_ms=NOW + number)], "ok", NOW + number)
    log.flush()
    await log._db.write(lambda _: None, patient=True)
    assert [one.request_id for one in await learned(log)] == ["r-4", "r-3", "r-2"]


async def test_rows_that_cannot_be_written_are_counted_as_dropped(log, db, caplog):
    await db.write(lambda tx: tx.execute("ALTER TABLE decision_log RENAME TO away"))
    for number in range(3):
        put(log, decided(number), [], "ok", NOW)
    log.flush()
    await db.write(lambda _: None, patient=True)
    assert log.dropped == 3
    assert "The decision log cannot be written; its rows are lost." in caplog.text


async def test_what_the_writer_has_not_taken_fills_the_queue_too(log, db, monkeypatch):
    monkeypatch.setattr("tokenhub.routing.rewards.MOST_PENDING", 2)
    at_work, go_on = threading.Event(), threading.Event()

    def hold_up(_):
        at_work.set()
        go_on.wait(10)

    busy = asyncio.create_task(db.write(hold_up))
    await asyncio.to_thread(at_work.wait, 10)
    for number in range(3):
        put(log, decided(number), [], "ok", NOW)
        log.flush()
    assert log.dropped == 1
    go_on.set()
    await busy
    await db.write(lambda _: None, patient=True)
    put(log, decided(4), [], "ok", NOW)
    assert log.dropped == 1


async def test_the_plan_of_a_page_sorts_no_table(db):
    plan = await db.read("EXPLAIN QUERY PLAN " + module._PAGE, {
        "at": NOW, "request_id": "", "attempt": 0, "most": 200,
    })  # fmt: skip
    text = "\n".join(str(row[-1]) for row in plan)
    assert "reward_log_at" in text
    assert "decision_log_at" in text
    assert "SCAN" not in text
    assert "TEMP B-TREE FOR ORDER BY" not in text


async def test_many_decisions_are_written_in_pieces_and_judged_after(log, db, monkeypatch):
    monkeypatch.setattr("tokenhub.routing.rewards.PIECE", 2)
    for number in range(5):
        decision = decided(number)
        put(log, decision, [attempt(decision, at_ms=NOW + number)], "ok", NOW + number)
    log.feedback("r-4", 1, 0.5, 0.0)
    assert len(await log.rewards()) == 5
    judged = "SELECT request_id FROM decision_log WHERE feedback = 0.5"
    assert await db.read(judged) == [("r-4",)]
    assert await db.read("SELECT count(*) FROM decision_rules") == [(1,)]
