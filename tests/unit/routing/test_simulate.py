from __future__ import annotations

import pytest
from tests.unit.routing.world import ManualClock, attempt, catalog, model, per_million, query

from tokenhub.core.errors import HubError, InvalidRequest
from tokenhub.core.fields import decode_fields
from tokenhub.routing.router import Router
from tokenhub.routing.simulate import SimulateFields, simulate, table_of


@pytest.fixture
def router():
    router = Router(ManualClock())
    router.update(
        catalog=catalog(
            model("gpt-4o", "openai", weight=8, prices=per_million(2.5, 10.0)),
            model("mini", "openai", weight=5, prices=per_million(0.15, 0.6)),
        )
    )
    return router


def ask(router, text):
    decision = simulate(router, decode_fields(text.encode(), SimulateFields), {})
    return table_of(decision, router.rules)


def test_the_manuals_first_example(router):
    told = ask(router, '{"mode":"cheap","token_count":500}')
    assert told["decision"] == {
        "model_id": "mini",
        "provider_id": "openai",
        "estimated_cost_usd": 0.0003822,
        "reason": "routed-weight-5",
    }
    assert told["total"] == 2
    assert told["eligible"][0] == {
        "id": "mini",
        "provider_id": "openai",
        "weight": 5,
        "max_context_tokens": 0,
        "input_per_1k": 0.00015,
        "output_per_1k": 0.0006,
        "enabled": True,
        "selected": True,
    }
    assert told["policy"] == "weighted"
    assert told["candidates"][0]["terms"].keys() == {"cost", "latency", "failure", "weight"}


def test_the_manuals_second_example(router):
    told = ask(router, '{"mode":"high_confidence","token_count":2000,"max_budget_usd":0.10}')
    assert told["decision"]["model_id"] == "gpt-4o"
    assert told["candidates"][0]["output_cap"] == 9500
    assert told["limits"]["max_budget_usd"] == 0.1


def test_a_seed_makes_it_repeatable(router):
    for seed in range(20):
        text = f'{{"mode":"thompson","seed":{seed}}}'
        assert ask(router, text) == ask(router, text)
    chosen = {
        ask(router, f'{{"mode":"thompson","seed":{seed}}}')["decision"]["model_id"]
        for seed in range(20)
    }
    assert chosen == {"gpt-4o", "mini"}


def test_a_real_request_is_simulated_by_its_seed(router):
    for number in range(10):
        decision = router.decide(query(request_id=f"r-{number}", mode="thompson"))
        told = ask(router, f'{{"mode":"thompson","seed":{decision.seed}}}')
        assert told["decision"]["model_id"] == decision.chosen.model_id


def test_nothing_is_changed(router):
    decision = router.decide(query(mode="thompson"))
    router.record(decision, attempt(decision))
    before = (router.snapshot(), router.health.rows(["openai"]))
    for text in ('{"mode":"thompson"}', '{"model_hint":"mini"}', "{}"):
        ask(router, text)
    assert (router.snapshot(), router.health.rows(["openai"])) == before


def test_max_latency_is_obeyed(router):
    decision = router.decide(query(model="mini"))
    for _ in range(3):
        router.record(decision, attempt(decision, latency_ms=9000.0))
    told = ask(router, '{"mode":"cheap","max_latency_ms":5000,"stream":true}')
    assert told["decision"]["model_id"] == "mini"
    with pytest.raises(HubError, match="takes about 9000"):
        ask(router, '{"mode":"cheap","max_latency_ms":5000}')


@pytest.mark.parametrize(
    "text",
    [
        '{"mode":"cheep"}',
        '{"token_count":-1}',
        '{"max_tokens":0}',
        '{"max_budget_usd":-0.1}',
        '{"max_latency_ms":300001}',
        '{"min_weight":11}',
        '{"tokens":5}',
        '{"model_hint":"gpt"}',
    ],
)
def test_nonsense_is_an_error(router, text):
    with pytest.raises(HubError) as caught:
        ask(router, text)
    assert 400 <= caught.value.status < 500
    if '"model_hint"' not in text:
        assert isinstance(caught.value, InvalidRequest)
