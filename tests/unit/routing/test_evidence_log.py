from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from tests.unit.routing.world import ManualClock, attempt, catalog, model, query

from tokenhub.core.decision import Evidence, ModelView, encode_attempts
from tokenhub.routing import evidence_log as module
from tokenhub.routing.evidence_log import EvidenceLog, read_evidence
from tokenhub.routing.explain import replay
from tokenhub.routing.record import encode_evidence
from tokenhub.routing.rewards import RewardLog
from tokenhub.routing.router import Router

NOW = 1_800_000_000_000
MANY = [f"m{number:03}" for number in range(150)]


def seen(at, *, arms=MANY, **fields):
    return Evidence(at_ms=at, arms=dict.fromkeys(arms, (0.5, 0.1)), **fields)


def changed(evidence, at, **arms):
    return msgspec.structs.replace(evidence, at_ms=at, arms=evidence.arms | arms)


async def written(db, log, *several, bucket="small"):
    return [await db.write(lambda tx, one=one: log.write(tx, one, bucket)) for one in several]


async def complete(db):
    return await db.read("SELECT count(*) FROM decision_evidence WHERE base = ''")


async def test_what_was_stored_as_differences_is_read_whole(db):
    log, rng = EvidenceLog(), random.Random(3)
    evidence, several = seen(NOW), []
    for step in range(100):
        some = {name: (rng.random(), 0.1) for name in rng.sample(MANY, 5)}
        evidence = changed(evidence, NOW + step, **some)
        models = evidence.models | {rng.choice(MANY): ModelView(usual_ms=step + 1.0)}
        evidence = msgspec.structs.replace(evidence, models=models)
        several.append(evidence)
    digests = await written(db, log, *several)
    for digest, one in zip(digests, several, strict=True):
        found = msgspec.json.decode(await read_evidence(db, digest), type=Evidence)
        assert found == one
    assert await complete(db) == [(2,)]  # 100 and MOST_LINKS in a row
    [(size,)] = await db.read("SELECT sum(length(body)) FROM decision_evidence")
    assert size < 0.2 * sum(len(encode_evidence(one)) for one in several)


@pytest.mark.parametrize(
    "other",
    [
        seen(NOW + 1, arms=MANY[:-1]),  # a model has gone
        seen(NOW + 1, arms=MANY[:50]),
        seen(NOW + module.OLDEST_BASE_MS + 1),
        seen(NOW - 1),  # the clock was set back
        msgspec.structs.replace(seen(NOW + 1), arms=dict.fromkeys(MANY, (0.6, 0.1))),
    ],
)
async def test_what_a_difference_cannot_say_is_stored_complete(db, other):
    log = EvidenceLog()
    _, digest = await written(db, log, seen(NOW), other)
    assert msgspec.json.decode(await read_evidence(db, digest), type=Evidence) == other
    assert await complete(db) == [(2,)]


async def test_the_same_evidence_is_stored_once(db):
    log, evidence = EvidenceLog(), seen(NOW)
    assert len(set(await written(db, log, evidence, evidence))) == 1
    assert await db.read("SELECT count(*) FROM decision_evidence") == [(1,)]


def looks(count):
    """Evidence of looks one after the other; between two, two arms have learned."""
    several = [seen(NOW)]
    for step in range(1, count):
        some = {MANY[2 * step + more]: (0.9, 0.1) for more in (0, 1)}
        several.append(changed(several[-1], NOW + step, **some))
    return several


async def test_requests_that_end_in_any_order_store_each_look_once(db):
    several = looks(40)
    shuffled = random.Random(5).choices(several, k=400)
    log = EvidenceLog()
    digests = await written(db, log, *several[:1], *shuffled)
    assert len(set(digests)) == len({one.at_ms for one in [several[0], *shuffled]})
    assert await db.read("SELECT count(*) FROM decision_evidence") == [(len(set(digests)),)]
    assert await complete(db) == [(1,)]
    for digest, one in zip(digests[1:], shuffled, strict=True):
        found = msgspec.json.decode(await read_evidence(db, digest), type=Evidence)
        assert found == one


async def test_what_comes_late_is_no_base_for_what_follows(db):
    first, late, second, third = looks(4)
    _, base, _, digest = await written(db, EvidenceLog(), first, second, late, third)
    rows = await db.read(f"SELECT base FROM decision_evidence WHERE digest = '{digest}'")
    assert rows == [(base,)]


async def test_a_clock_set_back_far_begins_anew(db):
    log = EvidenceLog()
    past = seen(NOW - 3_600_000)
    await written(db, log, seen(NOW), past, changed(past, past.at_ms + 1, m000=(0.9, 0.1)))
    assert await complete(db) == [(2,)]


async def test_requests_that_read_no_arms_do_not_disturb_those_that_do(db):
    log, several = EvidenceLog(), looks(20)
    models = dict.fromkeys(MANY, ModelView(usual_ms=5.0))
    for one in several:
        await written(db, log, one)
        without = msgspec.structs.replace(one, arms={}, models=models)
        await written(db, log, without)
        await written(db, log, without, bucket="large")
    assert await complete(db) == [(2,)]
    assert await db.read("SELECT count(*) FROM decision_evidence") == [(2 * len(several),)]


async def test_the_turn_of_an_alias_makes_no_other_evidence(db):
    look = seen(NOW)
    turns = [look, *(msgspec.structs.replace(look, turn=turn) for turn in range(1, 9))]
    assert len(set(await written(db, EvidenceLog(), *turns))) == 1


async def test_only_the_latest_looks_are_remembered(db, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 1_000)
    log, several = EvidenceLog(), looks(20)
    for one in several:
        await written(db, log, one)
    assert len(log._known) == 4
    await written(db, log, *several)
    assert log._weight == sum(map(module._weight, (one for one, _ in log._known.values())))


async def test_few_models_and_other_buckets_are_stored_complete(db):
    log = EvidenceLog()
    few = seen(NOW, arms=MANY[:10])
    await written(db, log, few, changed(few, NOW + 1, m000=(0.9, 0.1)))
    many = seen(NOW)
    await written(db, log, many)
    await written(db, log, changed(many, NOW + 1, m000=(0.9, 0.1)), bucket="large")
    assert await complete(db) == [(4,)]


async def test_a_base_that_was_lost_is_not_referred_to(db):
    log, evidence = EvidenceLog(), seen(NOW)

    def lost(tx):
        log.write(tx, evidence, "small")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        await db.write(lost)
    other = changed(evidence, NOW + 1, m000=(0.9, 0.1))
    [digest] = await written(db, log, other)
    assert msgspec.json.decode(await read_evidence(db, digest), type=Evidence) == other
    [again] = await written(db, log, other)
    assert again == digest


async def test_an_evidence_without_its_base_is_not_there(db):
    log, evidence = EvidenceLog(), seen(NOW)
    first, second = await written(db, log, evidence, changed(evidence, NOW + 1, m000=(0.9, 0.1)))
    await db.write(
        lambda tx: tx.execute("DELETE FROM decision_evidence WHERE digest = ?", (first,))
    )
    assert await read_evidence(db, first) is None
    assert await read_evidence(db, second) is None


async def test_decisions_over_many_models_replay_also_after_pruning(db):
    clock = ManualClock()
    log = RewardLog(db, asyncio.get_running_loop().call_later)
    router = Router(clock, seed=3, log=log, share_s=0.05)
    router.update(catalog=catalog(*map(model, MANY)))
    begun = clock.now_ms()
    for number in range(2_000):
        asked = query(request_id=f"r-{number}", mode="thompson")
        decision = router.decide(asked)
        done = attempt(decision, cost=number * 10**4, latency_ms=100.0 + number % 7)
        router.record(decision, done)
        router.finish(decision, [done], "ok", encode_attempts([done]))
        clock.advance(0.06)
    await log.stored("r-0")
    [(all_of_them,)] = await db.read("SELECT count(*) FROM decision_evidence")
    assert await complete(db) < [(all_of_them // 10,)]
    await log.prune(begun + 110_000)
    assert await log.stored("r-0") is None
    kept = [int(name[2:]) for (name,) in await db.read("SELECT request_id FROM decision_log")]
    assert 100 < len(kept) < 300
    for number in kept:
        told = replay(f"r-{number}", await log.stored(f"r-{number}"))
        assert told["same"]
        assert told["recorded_propensity"] == told["replayed_propensity"]
