from __future__ import annotations

import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.routing.world import evidences, model, per_million, queries, query, rules, worlds

from tokenhub.core.decision import Evidence, ModelView, ProviderView
from tokenhub.core.errors import HubError
from tokenhub.routing.decide import decide
from tokenhub.routing.explain import describe
from tokenhub.routing.flip import smallest_flip
from tokenhub.routing.record import encode_record


@given(queries, worlds(), evidences, st.integers(0, 2**48 - 1))
def test_every_table_can_be_written_and_its_flip_flips(asked, ruled, seen, seed):
    try:
        decision = decide(asked, ruled, seen, seed)
    except HubError:
        return
    told = msgspec.json.decode(msgspec.json.encode(describe(decision, ruled)))
    for row in told["candidates"]:
        assert math.fsum(row["terms"].values()) == row["score"]
    assert {one["model_id"] for one in told["filtered"]} == {
        one.model_id for one in decision.filtered
    }
    if flip := told["flip"]:
        assert flip["chooses"] != decision.chosen.model_id
        assert _applied(decision, ruled, flip).chosen.model_id == flip["chooses"]
    encode_record(decision)


def _applied(decision, ruled, flip):
    """The decision again, changed as a reader of the flip would change it."""
    asked, seen, after = decision.query, decision.evidence, flip["after"]
    models, draw = ruled.catalog.models, decision.draw
    name = flip["model_id"]
    match flip["what"]:
        case "weight":
            changed = msgspec.structs.replace(models[name], weight=int(after))
            models = models | {name: changed}
        case "cost_usd":
            changed = msgspec.structs.replace(models[name], prices=_times(models[name], flip))
            models = models | {name: changed}
        case "latency_ms":
            own = seen.models.get(name, ModelView())
            own = msgspec.structs.replace(own, usual_ms=after)
            seen = msgspec.structs.replace(seen, models={**seen.models, name: own})
        case "error_rate":
            where = models[name].provider_id
            view = msgspec.structs.replace(seen.providers[where], error_rate=after)
            seen = msgspec.structs.replace(seen, providers={**seen.providers, where: view})
        case "draw":
            draw = after
        case "model":
            asked = msgspec.structs.replace(asked, model=after)
        case "max_budget_usd":
            asked = _limited(decision, asked, max_budget=round(after * 10**9))
        case limit:
            asked = _limited(decision, asked, **{limit: int(after)})
    catalog = msgspec.structs.replace(ruled.catalog, models=models)
    ruled = msgspec.structs.replace(ruled, catalog=catalog)
    return decide(asked, ruled, seen, decision.seed, draw=draw)


def _limited(decision, asked, **change):
    return msgspec.structs.replace(asked, limits=msgspec.structs.replace(decision.limits, **change))


def _times(found, flip):
    factor = flip["after"] / flip["before"]
    prices = found.prices
    return msgspec.structs.replace(
        prices,
        input=round(prices.input * factor),
        output=None if prices.output is None else round(prices.output * factor),
        request=round(prices.request * factor),
    )


def test_the_smallest_change_is_found_among_several():
    ruled = rules(model("near", weight=6), model("far", weight=1), model("best", weight=7))
    decision = decide(query(mode="high_confidence"), ruled, Evidence(), 1)
    flip = smallest_flip(decision, ruled)
    assert (decision.chosen.model_id, flip.what, flip.chooses) == ("best", "weight", "near")
    assert flip.change <= 0.2


def test_a_limit_that_removed_the_better_model_is_named():
    ruled = rules(
        model("cheap", weight=1, prices=per_million(1)),
        model("good", weight=10, prices=per_million(100)),
    )
    asked = query(mode="high_confidence", max_budget=100_000_000)
    decision = decide(asked, ruled, Evidence(), 1)
    assert decision.chosen.model_id == "cheap"
    told = describe(decision, ruled)
    assert told["flip"]["what"] == "max_budget_usd"
    assert told["flip"]["chooses"] == "good"
    assert told["flip"]["after"] == told["filtered"][0]["value"]
    assert told["filtered"][0]["limit"] == 0.1


def test_of_many_models_over_a_limit_only_the_nearest_are_tried(monkeypatch):
    tried = []

    def counted(*args, **fields):
        tried.append(args)
        return decide(*args, **fields)

    monkeypatch.setattr("tokenhub.routing.flip.decide", counted)
    dear = (model(f"m{n}", weight=1, prices=per_million(100 + n)) for n in range(500))
    ruled = rules(*dear, model("fits", weight=1), model("good", weight=5, prices=per_million(90)))
    decision = decide(query(mode="high_confidence", max_budget=70_000_000), ruled, Evidence(), 1)
    flip = smallest_flip(decision, ruled)
    assert (decision.chosen.model_id, decision.count) == ("fits", 1)
    assert (flip.what, flip.chooses) == ("max_budget_usd", "good")
    assert len(tried) < 100


def test_all_rules_that_a_model_breaks_are_told():
    ruled = rules(model("m"), model("bad", "q", weight=1, tools=False, max_context_tokens=100))
    seen = Evidence(providers={"q": ProviderView(closed="down", retry_ms=5)})
    asked = query(tools=True, min_weight=4)
    told = describe(decide(asked, ruled, seen, 1), ruled)
    assert [row["reason"] for row in told["filtered"]] == [
        "tools_unsupported",
        "weight_below_minimum",
        "context_overflow",
        "health_down",
    ]
    assert all(row["text"] for row in told["filtered"])


def test_the_reason_is_a_sentence():
    ruled = rules(model("a"), model("b"))
    for asked in (query(), query(model="a"), query(mode="thompson")):
        why = describe(decide(asked, ruled, Evidence(), 1), ruled)["why"]
        assert "`a`" in why or "`b`" in why
        assert why.endswith(".")
