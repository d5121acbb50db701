"""Properties of every decision, over random catalogs, policies and health."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.routing.world import (
    ManualClock,
    catalog,
    evidences,
    model,
    per_million,
    queries,
    query,
    rules,
    worlds,
)

from tokenhub.core.bounds import Measure, bound
from tokenhub.core.decision import NOBODY, Evidence, Limits, ModelView, ProviderView
from tokenhub.core.errors import Forbidden, HubError, InvalidRequest, NotFound, VaultLocked
from tokenhub.routing.decide import MIXED, decide, draw_of
from tokenhub.routing.record import encode_record
from tokenhub.routing.router import Router
from tokenhub.routing.rules import decode, encode
from tokenhub.routing.shortlist import MOST_KINDS, Shortlists

SEEDS = st.integers(0, 2**49 - 1)
OLD_DRAWS = [0.8833108082136426, 0.1330796686614273, 0.7725119991880458, 0.7843749792024878]


def decided(asked, ruled, seen, seed):
    try:
        return decide(asked, ruled, seen, seed)
    except HubError:
        return None


@given(queries, worlds(), evidences, SEEDS)
def test_hard_constraints_hold_for_every_candidate(asked, ruled, seen, seed):
    decision = decided(asked, ruled, seen, seed)
    for one in decision.candidates if decision else ():
        found = one.model
        provider = ruled.catalog.providers[found.provider_id]
        assert found.enabled
        assert provider.enabled
        assert found.tools or not asked.tools
        assert found.images or not asked.images
        assert found.provider_id not in seen.unavailable
        assert not seen.providers.get(found.provider_id, ProviderView()).closed
        assert not found.max_context_tokens or asked.input_tokens <= found.max_context_tokens
        _keeps_limits(asked.limits, asked, one, seen)
        if asked.models:
            alias = ruled.aliases["alias"]
            through_alias = "alias" in asked.models and alias.enabled
            variants = {each.model_id for each in alias.variants} if through_alias else set()
            assert found.id in {*asked.models, *variants}


def _keeps_limits(limits, asked, candidate, seen):
    found = candidate.model
    assert found.weight >= (limits.min_weight or 0)
    if limits.max_budget:
        size = Measure(text=asked.input_tokens)
        output = candidate.output_cap or asked.max_tokens or 512
        most = bound(size, found, max_tokens=output, choices=asked.choices)
        assert most.priced
        assert most.nano <= limits.max_budget
        assert candidate.bound <= limits.max_budget
    if limits.max_latency_ms:
        own, view = seen.models.get(found.id), seen.providers.get(found.provider_id)
        field = "ttft_ms" if asked.stream else "latency_ms"
        expected = (own and getattr(own, field)) or (view and getattr(view, field)) or 0
        assert expected <= limits.max_latency_ms


@given(queries, worlds(), evidences, SEEDS)
def test_routed_models_also_keep_the_stored_defaults_and_their_window(asked, ruled, seen, seed):
    decision = decided(asked, ruled, seen, seed)
    if decision is None or decision.policy in {"named", "alias"}:
        return
    limits = asked.limits.completed(ruled.settings.limits)
    for one in decision.candidates:
        _keeps_limits(limits, asked, one, seen)
        if window := one.model.max_context_tokens:
            room = 512 if asked.max_tokens is None else asked.max_tokens
            room = min(room, one.model.max_output_tokens or room)
            assert int(asked.input_tokens * 1.15) + room <= window


@given(queries, worlds(), evidences, SEEDS)
def test_every_model_is_either_a_candidate_or_filtered(asked, ruled, seen, seed):
    decision = decided(asked, ruled, seen, seed)
    if decision is None:
        return
    ids = [one.model_id for one in decision.candidates]
    ids += [one.model_id for one in decision.filtered]
    assert len(ids) == len(set(ids))
    if decision.policy in {"weighted", "softmax", "thompson"} or asked.allow_fallback:
        unregistered = {one.model_id for one in decision.filtered if not one.provider_id}
        assert set(ids) - unregistered == set(ruled.catalog.models)


@given(queries, worlds(), evidences, SEEDS)
def test_the_terms_sum_to_the_score_exactly(asked, ruled, seen, seed):
    decision = decided(asked, ruled, seen, seed)
    for one in decision.candidates if decision else ():
        forward = backward = 0.0
        for term in one.terms.values():
            forward += term
        for term in reversed(one.terms.values()):
            backward += term
        assert forward == backward == math.fsum(one.terms.values()) == one.score


@given(queries, worlds(), evidences, SEEDS)
def test_the_same_record_and_seed_give_the_same_decision(asked, ruled, seen, seed):
    first = decided(asked, ruled, seen, seed)
    stored_rules = decode(encode(ruled))
    assert stored_rules.digest == ruled.digest
    read = msgspec.json.decode(msgspec.json.encode(seen), type=Evidence)
    again = decided(asked, stored_rules, read, seed)
    assert (first is None) == (again is None)
    if first is not None:
        assert encode_record(again) == encode_record(first)
        assert [one.terms for one in again.candidates] == [one.terms for one in first.candidates]


@given(queries, worlds(), evidences, SEEDS)
def test_propensities_of_a_decision_sum_to_one(asked, ruled, seen, seed):
    decision = decided(asked, ruled, seen, seed)
    if decision is None or decision.policy == "alias":
        return
    assert math.fsum(one.propensity for one in decision.candidates) == pytest.approx(1.0)
    assert decision.propensity > 0


@given(queries, worlds(), evidences, SEEDS)
def test_without_permission_nobody_but_the_named_model_answers(asked, ruled, seen, seed):
    decision = decided(asked, ruled, seen, seed)
    if decision is None or decision.policy != "named" or asked.allow_fallback:
        return
    assert [one.model_id for one in decision.candidates] == [asked.model]


@pytest.mark.parametrize("mode", ["thompson", "normal"])
def test_the_recorded_propensity_is_how_often_the_choice_is_made(mode):
    ruled = rules(*(model(f"m{i}", weight=i) for i in range(4)), exploration_temp=0.7)
    arms = {f"m{i}": (0.4 + 0.1 * i, 0.1) for i in range(4)}
    asked = query(mode=mode)
    chances = {}
    seen = Counter()
    for seed in range(4000):
        decision = decide(asked, ruled, Evidence(arms=arms), seed)
        chances = {one.model_id: one.propensity for one in decision.candidates}
        seen[decision.chosen.model_id] += 1
    for name, chance in chances.items():
        assert seen[name] / 4000 == pytest.approx(chance, abs=0.03)


def test_ties_go_to_the_lower_id():
    ruled = rules(model("b"), model("c"), model("a"))
    ranking = decide(query(), ruled, Evidence(), 1).candidates
    assert [one.model_id for one in ranking] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("cheap", "small"), ("high_confidence", "large"), ("planning", "large")],
)
def test_modes_choose_what_they_are_for(mode, expected):
    ruled = rules(
        model("small", weight=2, prices=per_million(0.1)),
        model("large", weight=10, prices=per_million(10.0)),
    )
    assert decide(query(mode=mode), ruled, Evidence(), 1).chosen.model_id == expected


def test_a_missing_price_never_makes_a_model_the_cheapest():
    ruled = rules(model("known"), model("unknown", prices=per_million(0), weight=5))
    free = decide(query(mode="cheap"), ruled, Evidence(), 1)
    assert free.chosen.model_id == "unknown"
    nameless = model("unknown", prices=msgspec.structs.replace(per_million(1), input=None))
    ruled = rules(model("known"), nameless)
    assert decide(query(mode="cheap"), ruled, Evidence(), 1).chosen.model_id == "known"


def test_the_mode_comes_from_policy_then_name_then_key_then_default():
    ruled = rules(model("m"), default_mode="planning")
    full = query(mode="cheap", model="auto:normal", key_mode="adversarial")
    assert decide(full, ruled, Evidence(), 1).mode == "cheap"
    for change, expected in (
        ({"mode": ""}, "normal"),
        ({"mode": "", "model": "auto"}, "adversarial"),
        ({"mode": "", "model": "", "key_mode": ""}, "planning"),
    ):
        asked = msgspec.structs.replace(full, **change)
        assert decide(asked, ruled, Evidence(), 1).mode == expected


def test_an_explicit_zero_lifts_the_stored_default():
    ruled = rules(model("m", prices=per_million(1000)), default_max_budget=1)
    with pytest.raises(InvalidRequest, match="limit"):
        decide(query(), ruled, Evidence(), 1)
    assert decide(query(max_budget=0), ruled, Evidence(), 1).chosen.model_id == "m"


def test_stored_defaults_do_not_touch_a_named_model():
    ruled = rules(model("m", prices=per_million(1000)), default_max_budget=1)
    assert decide(query(model="m"), ruled, Evidence(), 1).reason == "routed-hint-exact"


def test_the_output_is_capped_at_what_the_budget_affords():
    ruled = rules(model("m", prices=per_million(1.0, 2.0)))
    # 500 tokens in at $1/M leave $0.0095 of $0.01: 4750 tokens at $2/M.
    decision = decide(query(max_budget=10_000_000), ruled, Evidence(), 1)
    assert decision.chosen.output_cap == 4750
    assert decision.chosen.bound == 10_000_000
    asked = query(max_budget=10_000_000, max_tokens=100)
    assert decide(asked, ruled, Evidence(), 1).chosen.output_cap is None


@pytest.mark.parametrize(
    ("fields", "changes", "kind", "code"),
    [
        ({"enabled": False}, {}, NotFound, "model_disabled"),
        ({"tools": False}, {"tools": True}, InvalidRequest, "tools_unsupported"),
        ({"images": False}, {"images": True}, InvalidRequest, "images_unsupported"),
        ({"weight": 3}, {"min_weight": 4}, InvalidRequest, "weight_below_minimum"),
        ({"max_context_tokens": 499}, {}, InvalidRequest, "context_length_exceeded"),
        ({}, {"max_budget": 1}, InvalidRequest, "request_budget_exceeded"),
        ({}, {"models": ("other",)}, Forbidden, "model_not_allowed"),
    ],
)
def test_a_named_model_is_refused_with_the_limit_that_refused_it(fields, changes, kind, code):
    ruled = rules(model("m", **fields), model("other"))
    with pytest.raises(kind) as caught:
        decide(query(model="m", **changes), ruled, Evidence(), 1)
    assert caught.value.code == code
    assert caught.value.hint


def test_a_refusal_says_when_to_come_back():
    ruled = rules(model("m"))
    seen = Evidence(
        at_ms=1000, providers={"p": ProviderView(closed="rate_limited", retry_ms=8_500)}
    )
    with pytest.raises(HubError) as caught:
        decide(query(model="m"), ruled, seen, 1)
    assert caught.value.status == 429
    assert dict(caught.value.headers) == {b"retry-after": b"8"}


def test_a_locked_vault_is_said_to_be_locked():
    with pytest.raises(VaultLocked):
        decide(query(), rules(model("m")), Evidence(unavailable={"p": "vault_locked"}), 1)


def test_a_fallback_is_taken_only_with_permission_and_says_so():
    ruled = rules(model("m", "p"), model("other", "q"))
    seen = Evidence(providers={"p": ProviderView(closed="down")})
    with pytest.raises(HubError) as caught:
        decide(query(model="m"), ruled, seen, 1)
    assert caught.value.code == "provider_down"
    assert "tokenhubctl health" in (caught.value.hint or "")
    decision = decide(query(model="m", allow_fallback=True), ruled, seen, 1)
    assert (decision.chosen.model_id, decision.reason) == ("other", "routed-fallback")
    assert decision.filtered[0].reason == "health_down"


def test_limits_combine_to_the_narrower_one():
    client = Limits(max_budget=5, max_latency_ms=0, min_weight=3)
    key = Limits(max_budget=9, max_latency_ms=100)
    assert client.narrowed(key) == Limits(max_budget=5, max_latency_ms=100, min_weight=3)
    assert key.narrowed(client) == client.narrowed(key)


def test_draws_are_even():
    draws = sorted(draw_of(seed) for seed in range(2000))
    assert all(0 <= draw < 1 for draw in draws)
    assert max(abs(draw - (i + 0.5) / 2000) for i, draw in enumerate(draws)) < 0.05


def test_a_seed_of_an_older_record_stands_for_the_same_number_as_ever():
    assert [draw_of(seed) for seed in (0, 12345, MIXED - 1, 2 * MIXED)] == OLD_DRAWS


def test_a_mixed_seed_is_its_own_number():
    assert [draw_of(MIXED + part) for part in (0, MIXED // 4, MIXED - 1)] == [
        0.0,
        0.25,
        1.0 - 2.0**-48,
    ]


@pytest.mark.parametrize("lag", [0, 1, 16])
def test_requests_that_follow_each_other_draw_independently(lag):
    router = Router(ManualClock(), seed=7, share_s=1.0)
    router.update(catalog=catalog(model("a")))
    draws = [
        router.decide(query(request_id=f"r-3f9a0c1b2d4e-{number:x}", mode="thompson")).draw
        for number in range(20_000)
    ]
    pairs = Counter(
        (int(one * 10), int(other * 10) if lag else 0)
        for one, other in zip(draws, draws[lag:], strict=False)
    )
    cells = 100 if lag else 10
    expected = (20_000 - lag) / cells
    assert len(pairs) == cells
    spread = sum((found - expected) ** 2 / expected for found in pairs.values())
    assert spread < cells + 5 * (2 * cells) ** 0.5


@given(queries, worlds(), evidences, SEEDS)
def test_who_may_stand_in_is_never_first_by_chance(asked, ruled, seen, seed):
    asked = msgspec.structs.replace(asked, model="alias", allow_fallback=True)
    decision = decided(asked, ruled, seen, seed)
    if decision and decision.reason == "routed-alias":
        own = {one.model_id for one in ruled.aliases["alias"].variants}
        strangers = [one for one in decision.candidates if one.model_id not in own]
        assert not any(one.propensity for one in strangers)


@given(queries, worlds(), evidences)
def test_the_propensity_of_a_variant_is_how_often_it_comes_first(asked, ruled, seen):
    alias = msgspec.structs.replace(ruled.aliases["alias"], sticky_by="round_robin")
    ruled = ruled.changed(aliases={"alias": alias})
    asked = msgspec.structs.replace(asked, model="alias")
    came, said = Counter(), {}
    for turn in range(alias.total):
        decision = decided(asked, ruled, msgspec.structs.replace(seen, turn=turn), 1)
        if not decision or decision.reason != "routed-alias":
            return
        came[decision.chosen.model_id] += 1
        said[decision.chosen.model_id] = decision.propensity
    assert said == {name: count / alias.total for name, count in came.items()}


def test_a_named_model_is_certain_and_its_stand_ins_are_not():
    ruled = rules(model("a"), model("b"), model("c"))
    decision = decide(query(model="b", allow_fallback=True), ruled, Evidence(), 1)
    assert [(one.model_id, one.propensity) for one in decision.candidates] == [
        ("b", 1.0),
        ("a", 0.0),
        ("c", 0.0),
    ]


@given(st.lists(queries, min_size=2, max_size=5), worlds(), evidences, SEEDS)
def test_shortlists_change_nothing(several, ruled, seen, seed):
    shortlists = Shortlists()
    several = [msgspec.structs.replace(asked, mode="thompson") for asked in several] + several
    for asked in [*several, *several]:
        plain = decided(asked, ruled, seen, seed)
        try:
            short = decide(asked, ruled, seen, seed, shortlists=shortlists)
        except HubError:
            short = None
        assert (short is None) == (plain is None)
        if plain is not None:
            assert _without_figures(short.chosen) == _without_figures(plain.chosen)
            assert short.count == plain.count == len(plain.candidates)
            assert encode_record(short) == encode_record(plain)
            assert tuple(short.candidates) == tuple(plain.candidates)
            assert _all_but_candidates(short) == _all_but_candidates(plain)


@given(st.lists(queries, min_size=1, max_size=3), worlds(), st.lists(evidences, min_size=2), SEEDS)
def test_what_screening_found_serves_the_looks_it_holds_under(several, ruled, looks, seed):
    shortlists = Shortlists()
    several = [msgspec.structs.replace(asked, mode="thompson") for asked in several]
    for seen in [*looks, *looks]:
        shortlists.look_again()
        for asked in several:
            plain = decided(asked, ruled, seen, seed)
            try:
                short = decide(asked, ruled, seen, seed, shortlists=shortlists)
            except HubError:
                short = None
            assert (short is None) == (plain is None)
            if plain is not None:
                assert tuple(short.candidates) == tuple(plain.candidates)
                assert _all_but_candidates(short) == _all_but_candidates(plain)


@pytest.mark.parametrize(
    ("seen", "same"),
    [
        ({}, True),
        ({"arms": {"a": (0.9, 0.01)}, "models": {"b": ModelView(usual_ms=9.0)}}, True),
        ({"providers": {"p": ProviderView(usual_ms=9.0, error_rate=0.5)}}, True),
        ({"providers": {"q": ProviderView(closed="down")}}, False),
        ({"unavailable": {"q": "vault_locked"}}, False),
    ],
)
def test_models_are_screened_anew_only_when_others_may_answer(seen, same):
    ruled = rules(model("a"), model("b", provider="q"))
    shortlists = Shortlists()

    def screened():
        shortlists.look_again()
        asked = query(model="auto:thompson")
        decide(asked, ruled, Evidence(**seen), 1, shortlists=shortlists)
        return next(iter(shortlists.screened.values()))

    first = screened()
    assert screened() is first
    before = Evidence()
    assert first.holds_under(before) is same


def test_no_more_kinds_are_kept_than_said():
    shortlists = Shortlists()
    for number in range(MOST_KINDS + 10):
        asked = query(model="auto:thompson", min_weight=0, models=("a", f"x{number}"))
        decide(asked, rules(model("a")), Evidence(), 1, shortlists=shortlists)
    assert len(shortlists.screened) <= MOST_KINDS


def _all_but_candidates(decision):
    return msgspec.structs.replace(decision, chosen=NOBODY, ranking=(), record_end="")


def _without_figures(chosen):
    return msgspec.structs.replace(chosen, cost=None, expected_ms=0.0)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "auto:normal"},
        {"mode": "normal"},
        {"models": ("a",)},
        {"tools": True},
        {"images": True},
        {"min_weight": 6},
        {"max_latency_ms": 1},
        {"max_budget": 1_000},
        {"input_tokens": 2_000},
        {"input_tokens": 20_000},
    ],
)
def test_a_shortlist_is_only_used_for_requests_of_its_kind(other):
    ruled = rules(
        model("a"),
        model("b", tools=False, weight=9),
        model("c", images=False, max_context_tokens=15_000),
    )
    seen = Evidence(providers={"p": ProviderView(latency_ms=50.0)})
    shortlists = Shortlists()
    decide(query(model="auto:thompson"), ruled, seen, 1, shortlists=shortlists)
    assert shortlists.found
    asked = query(**({"model": "auto:thompson"} | other))
    plain = decided(asked, ruled, seen, 1)
    if plain is None:
        with pytest.raises(HubError):
            decide(asked, ruled, seen, 1, shortlists=shortlists)
        return
    short = decide(asked, ruled, seen, 1, shortlists=shortlists)
    assert tuple(short.candidates) == tuple(plain.candidates)
    assert _all_but_candidates(short) == _all_but_candidates(plain)
