from __future__ import annotations

import json
from decimal import Decimal

import pytest

from tokenhub.core.catalog import Catalog, Model, Prices, Provider
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import InvalidRequest, NotFound
from tokenhub.providers.catalog import CatalogStore
from tokenhub.providers.catalog_fields import ModelFields, ProviderFields
from tokenhub.providers.price_import import PriceChange, plan_import, read_prices
from tokenhub.storage.sqlite import SqliteDatabase

PER_1K = 10**12  # femto-dollars per token in a dollar per 1000 tokens


def catalog(**prices):
    """Models by name; "x__y" stands for x/y."""
    provider = Provider(id="house", type="openai")
    models = {
        name: Model(id=name, provider_id="house", prices=price)
        for name, price in ((name.replace("__", "/"), price) for name, price in prices.items())
    }
    return Catalog(version=1, providers={"house": provider}, models=models)


def litellm(**fields):
    return read_prices(json.dumps(fields).encode())


def both(cost):
    return {"input_cost_per_token": cost, "output_cost_per_token": cost}


def test_a_model_is_found_by_its_names_the_nearest_first():
    ours = catalog(small=Prices(), large=Prices(), org__big=Prices())
    theirs = litellm(**{
        "house/small": both(3e-06), "openai/small": both(2e-06), "openai/large": both(4e-06),
        "org/big": both(5e-06), "big": both(9e-06),
    })  # fmt: skip
    plan = plan_import(ours, theirs, overwrite=False)
    assert {name: edit.input_per_1k for name, edit in plan.edits.items()} == {
        "small": Decimal("0.002"), "large": Decimal("0.004"), "org/big": Decimal("0.005"),
    }  # fmt: skip
    assert plan.unknown == 2


def test_what_the_list_does_not_say_goes_back_to_the_kind_it_is_part_of():
    ours = catalog(
        m=Prices(input=PER_1K, output=PER_1K, cached_read=PER_1K // 10, source="catalogue")
    )
    plan = plan_import(ours, litellm(m=both(0.001)), overwrite=False)
    assert plan.changes == [PriceChange("m", "cached_read_per_1k", Decimal("0.1"), None)]
    assert plan.edits["m"].cached_read_per_1k is None
    assert plan.edits["m"].pricing_source == "litellm"


def test_a_model_without_an_output_price_has_the_input_price():
    plan = plan_import(catalog(m=Prices()), litellm(m={"input_cost_per_token": 1e-06}), overwrite=0)
    assert plan.edits["m"].output_per_1k == Decimal("0.001")


@pytest.mark.parametrize(
    ("source", "overwrite", "changed"),
    [
        ("manual", False, False),
        ("manual", True, True),
        ("litellm", False, True),
        ("catalogue", False, True),
        ("unknown", False, True),
    ],
)
def test_only_prices_set_by_hand_stay(source, overwrite, changed):
    ours = catalog(m=Prices(input=1, output=1, source=source))
    plan = plan_import(ours, litellm(m=both(1e-06)), overwrite=overwrite)
    assert ("m" in plan.edits, plan.kept) == (changed, [] if changed else ["m"])


def test_equal_prices_are_left_alone_even_with_tiers_of_their_own():
    tier = Prices(input=2 * PER_1K, output=PER_1K)
    ours = catalog(m=Prices(input=PER_1K, output=PER_1K, tiers=((200_000, tier),)))
    plan = plan_import(ours, litellm(m=both(0.001)), overwrite=True)
    assert (plan.unchanged, plan.edits, plan.simplified) == (1, {}, [])


@pytest.mark.parametrize(
    "further",
    [{"input_cost_per_token_above_200k_tokens": 2e-06}, {"output_cost_per_reasoning_token": 1e-05}],
)
def test_what_cannot_be_stored_is_named(further):
    plan = plan_import(catalog(m=Prices()), litellm(m=both(1e-06) | further), overwrite=False)
    assert plan.simplified == ["m"]


def test_our_own_format_is_exact_and_skips_the_unknown():
    rows = [
        {"model_id": "m", "input_per_1k": 0.000000000001, "output_per_1k": 0.1, "version": "x"},
        {"model_id": "n", "input_per_1k": None, "output_per_1k": None, "source": "unknown"},
    ]
    (found,) = read_prices(json.dumps({"prices": rows, "total": 2}).encode())
    assert (found.model, found.prices.input, found.prices.output) == ("m", 1, PER_1K // 10)
    assert found.prices.source == "manual"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[]", "not a JSON object|does not fit"),
        (b'{"prices": [1]}', "does not fit"),
        (b'{"prices": [{"model_id": "m", "input_per_1k": -1}]}', "m: input_per_1k"),
        (b"[" * 100_000, "not a JSON object|does not fit"),
        (b"\xff", "JSON"),
    ],
)
def test_what_is_no_price_list_says_why(text, says):
    with pytest.raises(InvalidRequest, match=says):
        read_prices(text)


class NoBook:
    def find(self, provider_type, model, base_url=""):
        return None


@pytest.fixture
async def store(tmp_path):
    db = await SqliteDatabase.open(tmp_path / "t.sqlite", SystemClock())
    store = CatalogStore(db, SystemClock(), NoBook(), demo=False)
    await store.save_provider(store.check_provider(ProviderFields(id="p", type="openai")))
    for name in ("a", "b"):
        await store.save_model(ModelFields(id=name, provider_id="p"))
    yield store
    await db.close()


def price(amount):
    return ModelFields(input_per_1k=Decimal(amount), output_per_1k=Decimal(amount))


async def test_an_import_is_one_change_in_one_catalog_with_one_record(store):
    told, seen = [], []
    store.listen(seen.append)
    edits = {"a": price("0.1"), "b": price("0.2")}
    await store.edit_models(edits, also=lambda tx, before, after: told.append((before, after)))
    assert len(seen) == len(told) == 1
    before, after = told[0]
    assert [before[name]["input_per_1k"] for name in "ab"] == [None, None]
    assert [after[name]["output_per_1k"] for name in "ab"] == [Decimal("0.1"), Decimal("0.2")]
    assert store.model("b").prices.input == PER_1K // 5


async def test_an_import_that_fails_changes_nothing(store):
    def refuse(tx, before, after):
        raise RuntimeError("no record, no change")

    with pytest.raises(RuntimeError):
        await store.edit_models({"a": price("0.1")}, also=refuse)
    with pytest.raises(NotFound):
        await store.edit_models({"a": price("0.1"), "c": price("0.1")})
    with pytest.raises(InvalidRequest):
        await store.edit_models({"a": price("0.1"), "b": price("-1")})
    assert store.model("a").prices.source == "unknown"
    store.load()
    assert store.model("a").prices.source == "unknown"
