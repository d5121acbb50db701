from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.unit.routing.world import ManualClock, attempt, catalog, model, per_million, query

from tokenhub.core.decision import encode_attempts
from tokenhub.core.errors import FailureClass, InvalidRequest, NotFound
from tokenhub.routing.decide import draw_of
from tokenhub.routing.explain import explain, replay
from tokenhub.routing.reward import reward_of
from tokenhub.routing.rewards import RewardLog
from tokenhub.routing.router import Router

MODELS = (
    model("a", "p", weight=3, prices=per_million(1.0)),
    model("b", "q", weight=8, prices=per_million(5.0)),
    model("c", "q", weight=5, enabled=False),
)


def finish(router, decision, tries, outcome):
    router.finish(decision, tries, outcome, encode_attempts(tries))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def router(clock):
    router = Router(clock, seed=3)
    router.update(catalog=catalog(*MODELS))
    return router


@pytest.fixture
async def logged(clock, db):
    loop = asyncio.get_running_loop()
    log = RewardLog(db, loop.call_later)
    router = Router(clock, seed=3, log=log)
    router.update(catalog=catalog(*MODELS))
    return router, log


@pytest.mark.parametrize(
    ("cost", "latency", "budget", "reward"),
    [
        (0, 0, 1000, 1.0),
        (100_000_000, 0, 1000, 0.7),
        (100_000_000, 1000, 1000, 0.4),
        (50_000_000, 0, 1000, 0.85),
        (None, 0, 1000, 0.7),
        (0, 500, 0, 1.0 - 0.3 * 500 / 20_000),
        (0, 900, 100, 1.0 - 0.3 * 0.9),
    ],
)
def test_rewards_by_the_formula(router, cost, latency, budget, reward):
    decision = router.decide(query(max_latency_ms=budget))
    assert reward_of(decision, attempt(decision, cost=cost, latency_ms=latency)) == pytest.approx(
        reward
    )


@pytest.mark.parametrize(
    ("kind", "reward"),
    [
        (FailureClass.SERVER, 0.0),
        (FailureClass.TIMEOUT, 0.0),
        (FailureClass.RATE_LIMITED, 0.0),
        (FailureClass.CLIENT, None),
        (FailureClass.CANCELLED, None),
        (FailureClass.CONTEXT, None),
        (FailureClass.CONTENT_FILTER, None),
    ],
)
def test_only_the_arms_own_failures_cost_it(router, kind, reward):
    decision = router.decide(query(model="auto:thompson"))
    assert router.record(decision, attempt(decision, kind=kind)) == reward


def test_a_failure_counts_against_the_arm_that_failed(router, clock):
    decision = router.decide(query(model="auto:thompson"))
    failed, other = (one.model_id for one in decision.candidates)
    for number in (1, 2):
        router.record(decision, attempt(decision, kind=FailureClass.SERVER, number=number))
    arms = router.bandit.view([failed, other], "small", clock.now_ms())
    assert arms[failed][0] < 0.3
    assert other not in arms


def test_learning_is_in_the_next_decision(router):
    first = router.decide(query(model="auto:thompson"))
    for _ in range(3):
        router.record(first, attempt(first, kind=FailureClass.SERVER))
    then = router.decide(query(model="auto:thompson"))
    chances = {one.model_id: one.propensity for one in then.candidates}
    assert chances[first.chosen.model_id] < 0.25


def test_seeds_differ_by_request_and_by_router(router, clock):
    def seed_of(router, request_id):
        router.update(catalog=catalog(*MODELS))
        decision = router.decide(query(request_id=request_id, mode="thompson"))
        assert decision.draw == draw_of(decision.seed)
        return decision.seed

    assert seed_of(router, "r-1") == seed_of(Router(clock, seed=3), "r-1")
    assert seed_of(router, "r-1") != seed_of(router, "r-2")
    assert seed_of(router, "r-1") != seed_of(Router(clock, seed=4), "r-1")
    assert seed_of(router, "") != seed_of(router, "")


def test_feedback_replaces_what_was_assumed_of_quality(router, clock):
    decision = router.decide(query(model="auto:thompson"))
    router.record(decision, attempt(decision, cost=0, latency_ms=0))
    for score in (0.0, 0.5):
        router.feedback("r-1", score)
    other = Router(clock)
    other.bandit.update(decision.chosen.model_id, "small", 0.8, clock.now_ms())
    name = decision.chosen.model_id
    now = clock.now_ms()
    learned = router.bandit.view([name], "small", now)[name]
    assert learned == pytest.approx(other.bandit.view([name], "small", now)[name])


def test_feedback_must_name_an_answer_and_a_share(router):
    with pytest.raises(NotFound):
        router.feedback("r-9", 0.5)
    for score in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidRequest):
            router.feedback("r-1", score)


def test_a_snapshot_makes_a_new_router_decide_alike(router, clock):
    for number in range(30):
        decision = router.decide(query(request_id=f"r-{number}", model="auto:thompson"))
        router.record(decision, attempt(decision, cost=number))
    other = Router(clock, seed=3)
    other.update(catalog=catalog(*MODELS))
    other.restore(router.snapshot())
    for number in range(30, 60):
        asked = query(request_id=f"r-{number}", model="auto:thompson")
        one, two = other.decide(asked).candidates, router.decide(asked).candidates
        assert [(c.model_id, c.propensity) for c in one] == [
            (c.model_id, c.propensity) for c in two
        ]


async def test_the_log_rebuilds_what_was_learned(logged, db, clock):
    router, log = logged
    for number in range(20):
        decision = router.decide(query(request_id=f"r-{number}", model="auto:thompson"))
        kind = FailureClass.SERVER if number % 5 == 0 else ""
        done = attempt(decision, at_ms=clock.now_ms(), kind=kind, cost=10**6)
        router.record(decision, done)
        finish(router, decision, [done], kind or "ok")
        if not kind:
            router.feedback(f"r-{number}", 0.25)
        clock.advance(30)
    log.flush()
    await db.write(lambda _: None, patient=True)
    again = Router(clock, seed=3, log=RewardLog(db, asyncio.get_running_loop().call_later))
    assert [count async for count in again.recall()] == [20]
    now = clock.now_ms()
    for bucket in ("small",):
        one, two = (each.bandit.view(["a", "b"], bucket, now) for each in (router, again))
        assert one.keys() == two.keys()
        for name in one:
            assert one[name] == pytest.approx(two[name], rel=1e-2)
    again.feedback("r-19", 0.75)


async def test_what_is_recalled_while_requests_go_on_is_as_if_it_had_come_first(
    logged, db, clock, monkeypatch
):
    monkeypatch.setattr("tokenhub.routing.rewards.REBUILD_PAGE", 3)
    monkeypatch.setattr("tokenhub.routing.router.LATEST", 6)

    def answer(routers, number, at):
        decision = routers[0].decide(query(request_id=f"r-{number}", model="auto:thompson"))
        done = attempt(decision, at_ms=at, cost=number * 10**6)
        for router in routers:
            router.record(decision, done)
        return decision, done

    router, log = logged
    for number in range(20):
        decision, done = answer([router], number, clock.now_ms())
        finish(router, decision, [done], "ok")
        clock.advance(61)
    await log.stored("r-0")
    again = Router(clock, seed=3, log=RewardLog(db, asyncio.get_running_loop().call_later))
    recalled = again.recall()
    assert await anext(recalled) == 8
    counts = []
    async for count in recalled:
        counts.append(count)
        answer([router, again], 100 + count, clock.now_ms())
        clock.advance(61)
    assert counts == [11, 14, 17, 20]
    now = clock.now_ms()
    one, two = (each.bandit.view(["a", "b"], "small", now) for each in (router, again))
    assert one.keys() == two.keys()
    for name, arm in one.items():
        assert two[name] == pytest.approx(arm)
    again.feedback("r-0", 0.5)


async def test_rows_are_written_in_batches_without_being_asked(logged, db):
    router, log = logged
    decision = router.decide(query())
    finish(router, decision, [attempt(decision, cost=5)], "ok")
    assert await db.read("SELECT count(*) FROM decision_log") == [(0,)]
    for _ in range(100):
        await asyncio.sleep(0.02)
        if rows := await log.rewards():
            break
    assert rows[0]["request_id"] == "r-1"
    assert rows[0]["propensity"] == 1.0
    assert rows[0]["token_bucket"] == "small"
    assert rows[0]["cost"] == 5


async def test_a_full_queue_counts_what_it_drops(db, monkeypatch):
    monkeypatch.setattr("tokenhub.routing.rewards.MOST_PENDING", 2)
    log = RewardLog(db, lambda *_: None)
    for number in range(5):
        log.feedback(f"r-{number}", 1, 0.5, 0.0)
    assert log.dropped == 3


async def test_a_past_decision_is_explained_and_replayed(logged):
    router, log = logged
    decision = router.decide(query(mode="cheap"))
    tries = [attempt(decision, kind=FailureClass.SERVER, status=500), attempt(decision, number=2)]
    finish(router, decision, tries, "ok")
    # What happens later must not change what happened then.
    router.update(catalog=catalog(model("z", prices=per_million(0))))
    stored = await log.stored("r-1")
    told = explain("r-1", stored)
    assert told["decision"]["model_id"] == decision.chosen.model_id == "a"
    assert [one["error"] for one in told["attempts"]] == ["server", ""]
    assert told["replayed_same"]
    for row in told["candidates"]:
        assert sum(row["terms"].values()) == row["score"]
    assert [(one["model_id"], one["reason"]) for one in told["filtered"]] == [("c", "disabled")]
    assert replay("r-1", stored)["same"]
    assert await log.stored("r-2") is None


async def test_a_decision_whose_rules_change_before_its_answer_ends_is_explained(logged):
    router, log = logged
    decision = router.decide(query(mode="cheap"))
    router.update(catalog=catalog(model("a", "p", weight=9)))
    finish(router, decision, [attempt(decision)], "ok")
    stored = await log.stored("r-1")
    assert explain("r-1", stored)["rules"] == decision.rules
    assert replay("r-1", stored)["same"]


async def test_rules_that_could_not_be_written_are_written_with_the_next_decision(logged, db):
    router, log = logged
    one, two = (router.decide(query(request_id=f"r-{number}", mode="cheap")) for number in (1, 2))
    router.update(catalog=catalog(model("a", "p", weight=9)))
    await db.write(lambda tx: tx.execute("ALTER TABLE decision_log RENAME TO away"))
    finish(router, one, [], "ok")
    log.flush()
    await db.write(lambda _: None, patient=True)
    assert log.dropped == 1
    await db.write(lambda tx: tx.execute("ALTER TABLE away RENAME TO decision_log"))
    finish(router, two, [], "ok")
    assert await log.stored("r-1") is None
    assert replay("r-2", await log.stored("r-2"))["same"]


async def test_every_decision_in_the_log_replays(logged):
    router, log = logged
    for number in range(40):
        mode = ("thompson", "cheap", "normal")[number % 3]
        decision = router.decide(query(request_id=f"r-{number}", mode=mode))
        done = attempt(decision, cost=number * 10**6, latency_ms=100.0 * number)
        router.record(decision, done)
        finish(router, decision, [done], "ok")
    for number in range(40):
        told = replay(f"r-{number}", await log.stored(f"r-{number}"))
        assert told["same"]
        assert told["recorded_propensity"] == told["replayed_propensity"]


OLD_RECORD = """{"query": {"request_id": "r-1", "model": "auto:thompson", "input_tokens": 212,
"size": {"text": 851, "images": 0, "files": 0, "audio": 0, "hour": false, "tier": ""},
"features": {"version": 1, "bytes": 691, "digits": 0.25, "json": 1.0}}, "seed": %d,
"draw": 0.5, "reason": "routed-weight-5", "bucket": "small", "choice": "%s",
"propensity": %r}"""


async def test_a_record_with_what_is_no_longer_stored_still_replays(logged):
    router, log = logged
    decision = router.decide(query(model="auto:thompson", input_tokens=212))
    finish(router, decision, [], "ok")
    new = await log.stored("r-1")
    told = (decision.seed, decision.chosen.model_id, decision.propensity)
    old = msgspec.structs.replace(new, record=OLD_RECORD % told)
    assert replay("r-1", old) == replay("r-1", new)
    one, other = explain("r-1", old), explain("r-1", new)
    assert one.pop("query")["features"] == {"version": 1, "bytes": 691, "digits": 0.25, "json": 1.0}
    assert other.pop("query")["request_id"] == "r-1"
    assert one == other


async def test_a_refused_request_is_explained_too(logged):
    router, log = logged
    with pytest.raises(NotFound):
        router.decide(query(model="c"))
    told = explain("r-1", await log.stored("r-1"))
    assert told["outcome"] == "model_disabled"
    assert told["refused"]["reason"] == "disabled"
    assert replay("r-1", await log.stored("r-1"))["same"]


async def test_pruning_keeps_the_rules_of_what_is_left(logged, clock, db):
    router, log = logged
    for number in range(2):
        finish(router, router.decide(query(request_id=f"r-{number}")), [], "ok")
        log.flush()
        clock.advance(3600)
    await log.prune(clock.now_ms() - 5_000_000)
    assert await log.stored("r-0") is None
    assert replay("r-1", await log.stored("r-1"))["same"]
    clock.advance(3 * 3600)
    await log.prune(clock.now_ms())
    assert await db.read("SELECT count(*) FROM decision_rules") == [(0,)]
    finish(router, router.decide(query(request_id="r-9")), [], "ok")
    assert replay("r-9", await log.stored("r-9"))["same"]


async def test_rules_stay_as_long_as_the_last_decision_under_them(logged, clock):
    router, log = logged
    for number in range(20):
        finish(router, router.decide(query(request_id=f"r-{number}")), [], "ok")
        clock.advance(1800)
        assert await log.stored(f"r-{number}")
    await log.prune(clock.now_ms() - 9_000_000)
    kept = [number for number in range(20) if await log.stored(f"r-{number}")]
    assert kept == [15, 16, 17, 18, 19]
    assert replay("r-15", await log.stored("r-15"))["same"]


@pytest.fixture
def sharing(clock):
    router = Router(clock, seed=3, share_s=0.05)
    router.update(catalog=catalog(*MODELS))
    # A provider's first answer is news; from here on answers are plain.
    for _ in range(20):
        decision = router.decide(query(mode="thompson"))
        router.record(decision, attempt(decision))
    return router


def test_decisions_share_a_look_while_only_answers_come(sharing, clock):
    clock.advance(0.06)
    first = sharing.decide(query(mode="thompson"))
    sharing.record(first, attempt(first))
    assert sharing.decide(query(mode="thompson")).evidence is first.evidence
    clock.advance(0.06)
    then = sharing.decide(query(mode="thompson")).evidence
    assert then.arms[first.chosen.model_id] != first.evidence.arms[first.chosen.model_id]


@pytest.mark.parametrize(("count", "seconds"), [(50, 0.05), (200, 0.2), (9000, 1.0)])
def test_a_look_at_many_models_lasts_longer(sharing, clock, count, seconds):
    many = [model(f"m-{number}") for number in range(count)]
    sharing.update(catalog=catalog(*many))
    first = sharing.decide(query(mode="thompson")).evidence
    clock.advance(seconds - 0.005)
    assert sharing.decide(query(mode="thompson")).evidence is first
    clock.advance(0.01)
    assert sharing.decide(query(mode="thompson")).evidence is not first


@pytest.mark.parametrize(
    "happens",
    [
        lambda router, seen: router.record(seen, attempt(seen, kind=FailureClass.RATE_LIMITED)),
        lambda router, seen: router.health.probed(seen.chosen.provider_id, "refused"),
        lambda router, _: router.update(catalog=catalog(*MODELS)),
    ],
)
def test_what_no_decision_may_overlook_is_seen_by_the_next_one(sharing, clock, happens):
    clock.advance(0.06)
    first = sharing.decide(query(mode="thompson"))
    happens(sharing, first)
    assert sharing.decide(query(mode="thompson")).evidence is not first.evidence


def test_a_closed_provider_is_not_chosen_in_the_same_look(sharing, clock):
    clock.advance(0.06)
    first = sharing.decide(query(mode="thompson"))
    sharing.record(first, attempt(first, kind=FailureClass.RATE_LIMITED))
    closed = first.chosen.provider_id
    for number in range(20):
        chosen = sharing.decide(query(mode="thompson", request_id=f"r-{number}")).chosen
        assert chosen.provider_id != closed


def test_another_vault_state_is_another_look(sharing, clock):
    clock.advance(0.06)
    first = sharing.decide(query(mode="thompson"))
    other = sharing.decide(query(mode="thompson"), {"p": "vault_locked"})
    assert first.evidence is not other.evidence
    assert other.chosen.provider_id == "q"
