from __future__ import annotations

from collections import Counter

import pytest
from tests.unit.routing.world import ManualClock, catalog, model, query, rules

from tokenhub.core.decision import Evidence, ProviderView
from tokenhub.core.errors import Conflict, InvalidRequest, NotFound
from tokenhub.routing.aliases import Alias, Aliases, AliasFields, Variant, fnv1a, pick
from tokenhub.routing.decide import decide
from tokenhub.routing.router import Router

CATALOG = catalog(model("a"), model("b"))
TWO = (Variant("a", 2), Variant("b", 1))


@pytest.mark.parametrize(
    ("text", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)]
)
def test_fnv1a_as_published(text, value):
    assert fnv1a(text) == value


def test_shares_follow_the_weights():
    alias = Alias(name="x", variants=(Variant("a", 3), Variant("b", 1)))
    seen = Counter(pick(alias, query(request_id=f"r-{i}"), 0, 0.0) for i in range(4000))
    assert 0.70 < seen[0] / 4000 < 0.80


@pytest.mark.parametrize(("sticky_by", "changes"), [("api_key", "request_id"), ("", "key_id")])
def test_the_same_key_meets_the_same_variant(sticky_by, changes):
    alias = Alias(name="x", variants=TWO, sticky_by=sticky_by)
    base = {"request_id": "r", "key_id": "k"}
    picks = {pick(alias, query(**{**base, changes: str(i)}), 0, 0.0) for i in range(50)}
    assert len(picks) == 1


def test_round_robin_gives_a_weight_of_two_two_turns():
    alias = Alias(name="x", variants=TWO, sticky_by="round_robin")
    assert [pick(alias, query(), turn, 0.0) for turn in range(6)] == [0, 0, 1, 0, 0, 1]


def test_simulating_consumes_no_turn():
    router = Router(ManualClock())
    alias = Alias(name="x", variants=TWO, sticky_by="round_robin")
    router.update(catalog=CATALOG, aliases={"x": alias})
    chosen = []
    for _ in range(6):
        router.simulate(query(model="x"))
        router.simulate(query(model="x"))
        chosen.append(router.decide(query(model="x")).chosen.model_id)
    assert chosen == ["a", "a", "b", "a", "a", "b"]


def test_another_variant_stands_in_for_one_that_cannot_answer():
    variants = (Variant("a", 1), Variant("b", 1), Variant("gone", 1))
    ruled = rules(
        model("a", "p"), model("b", "q"), model("c", "q"),
        aliases=[Alias(name="x", variants=variants)],
    )  # fmt: skip
    seen = Evidence(providers={"p": ProviderView(closed="down")})
    for number in range(12):
        decision = decide(query(model="x", request_id=f"r{number}"), ruled, seen, 1)
        assert [one.model_id for one in decision.candidates] == ["b"]
        assert decision.alias == "x"
        assert {one.reason for one in decision.filtered} == {"health_down", "not_registered"}


def test_variants_that_all_fail_are_refused_with_the_reason():
    ruled = rules(model("a"), aliases=[Alias(name="x", variants=(Variant("gone"),))])
    with pytest.raises(NotFound) as caught:
        decide(query(model="x"), ruled, Evidence(), 1)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": " x"},
        {"name": "x\n"},
        {"name": "auto"},
        {"name": "auto:cheap"},
        {"variants": ()},
        {"variants": (Variant(""),)},
        {"variants": (Variant("x"),)},
        {"variants": (Variant("a"), Variant("a"))},
        {"variants": (Variant("a", 0),)},
        {"sticky_by": "moon"},
    ],
)
async def test_nonsense_is_refused(fields, db):
    aliases = await Aliases.open(db, ManualClock())
    with pytest.raises(InvalidRequest):
        await aliases.put(AliasFields(**{"name": "x", "variants": TWO, **fields}), CATALOG)


async def test_a_models_own_id_cannot_be_taken(db):
    aliases = await Aliases.open(db, ManualClock())
    with pytest.raises(Conflict):
        await aliases.put(AliasFields(name="a", variants=(Variant("b"),)), CATALOG)


async def test_aliases_survive_and_are_audited(db):
    clock = ManualClock()
    aliases = await Aliases.open(db, clock)
    seen = []

    def also(_tx, before, after):
        seen.append((before and before["sticky_by"], after and after["sticky_by"]))

    fields = AliasFields(name="x", variants=(*TWO, Variant("gone")))
    first, unknown = await aliases.put(fields, CATALOG, also=also)
    assert unknown == ["gone"]
    clock.advance(5)
    await aliases.put(AliasFields(name="x", variants=TWO, sticky_by="api_key"), CATALOG, also=also)
    again = await Aliases.open(db, clock)
    assert again.current == aliases.current
    assert again.get("x").created_at == first.created_at
    assert again.get("x").updated_at == first.updated_at + 5000
    await aliases.delete("x", also=also)
    assert seen == [(None, ""), ("", "api_key"), ("api_key", None)]
    with pytest.raises(NotFound):
        await aliases.delete("x")


async def test_a_refused_audit_row_leaves_the_alias_as_it_was(db):
    aliases = await Aliases.open(db, ManualClock())

    def refuse(*_):
        raise RuntimeError("no audit")

    with pytest.raises(RuntimeError):
        await aliases.put(AliasFields(name="x", variants=TWO), CATALOG, also=refuse)
    assert aliases.current == {}
    assert (await Aliases.open(db, ManualClock())).current == {}
