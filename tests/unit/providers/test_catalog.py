from __future__ import annotations

from decimal import Decimal

import pytest

from tokenhub.core.catalog import Prices
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import Conflict, InvalidRequest, NotFound
from tokenhub.providers.catalog import CatalogStore
from tokenhub.providers.catalog_fields import ModelFields, ProviderFields
from tokenhub.providers.catalog_rows import public_model
from tokenhub.storage.sqlite import SqliteDatabase


class Book:
    """A price list with one entry."""

    def find(self, provider_type, model, base_url=""):
        return Prices(input=5, output=6, source="catalogue") if model == "listed" else None


@pytest.fixture
async def db(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "t.sqlite", SystemClock())
    yield database
    await database.close()


def opened(db, *, demo=False):
    store = CatalogStore(db, SystemClock(), Book(), demo=demo)
    store.load()
    return store


@pytest.fixture
def store(db):
    return opened(db)


async def add(store, **fields):
    row = {"id": "p", "type": "vllm", "base_url": "http://localhost:8000/v1/"} | fields
    return await store.save_provider(store.check_provider(ProviderFields(**row)))


async def model(store, **fields):
    return await store.save_model(ModelFields(**({"id": "m", "provider_id": "p"} | fields)))


async def test_what_is_saved_is_published_and_survives(db, store):
    seen = []
    store.listen(seen.append)
    await add(store)
    await model(store, id="Qwen/Qwen2.5-Coder-32B-Instruct", weight=7)
    assert [catalog.version for catalog in seen] == [2, 3]
    again = opened(db).current
    assert again.providers == store.current.providers
    assert again.models == store.current.models
    assert again.providers["p"].base_url == "http://localhost:8000"
    assert again.providers["p"].origin == "http://localhost:8000"


async def test_a_snapshot_never_changes(store):
    await add(store)
    before = store.current
    await model(store)
    assert "m" not in before.models
    assert "m" in store.current.models


async def test_fields_left_out_stay_on_edit_and_on_adding_again(store):
    await add(store, enabled=False)
    await model(store, weight=8, input_per_1k=Decimal("0.0025"), output_per_1k=Decimal("0.01"))
    await add(store, base_url="http://localhost:9000")
    assert store.current.providers["p"].enabled is False
    changed = await store.save_model(ModelFields(weight=9), id="m")
    assert (changed.weight, changed.input_per_1k) == (9, "0.0025")
    assert changed.enabled


async def test_prices_keep_every_digit_and_say_where_they_come_from(store):
    await add(store)
    one = await model(store, input_per_1k=Decimal("0.000075"), output_per_1k=Decimal(0))
    assert (one.prices.input, one.prices.output) == (75_000_000, 0)
    assert one.prices.source == "manual"
    shown = public_model(one)
    assert shown["input_per_1k"] == Decimal("0.000075")
    listed = await model(store, id="listed")
    assert (listed.prices.source, public_model(listed)["pricing_source"]) == ("catalogue",) * 2
    unknown = await model(store, id="other")
    assert public_model(unknown)["input_per_1k"] is None
    half = await model(store, id="half", input_per_1k=Decimal(1))
    assert half.prices.input is None


async def test_the_demo_leaves_when_a_provider_comes(db):
    store = opened(db, demo=True)
    assert list(store.current.models) == ["demo"]
    assert store.stored_models == frozenset()
    await add(store)
    assert list(store.current.providers) == ["p"]
    await store.delete_provider("p")
    assert list(store.current.models) == ["demo"]


async def test_deleting_a_provider_takes_its_models(store):
    await add(store)
    await add(store, id="q")
    await model(store)
    await model(store, id="n")
    await model(store, id="kept", provider_id="q")
    assert await store.delete_provider("p") == ["m", "n"]
    assert list(store.current.models) == ["kept"]


async def test_the_key_is_bound_to_its_origin(store):
    await add(store, type="openai", base_url="https://a.example", api_key="sk-1")
    change = store.check_provider(ProviderFields(base_url="https://a.example/other/v1"), id="p")
    assert change.after.cred_store == "vault"
    for moved in ("http://a.example", "https://b.example", "https://a.example:444"):
        with pytest.raises(Conflict) as caught:
            store.check_provider(ProviderFields(base_url=moved), id="p")
        assert caught.value.code == "credential_rebind_required"
    change = store.check_provider(
        ProviderFields(base_url="https://b.example", api_key="sk-2"), id="p"
    )
    assert change.credential == "sk-2"
    change = store.check_provider(
        ProviderFields(base_url="https://b.example", api_key=None), id="p"
    )
    assert (change.drops_credential, change.after.cred_store) == (True, "none")


async def test_two_edits_of_one_provider_do_not_mix(store):
    await add(store)
    one = store.check_provider(ProviderFields(enabled=False), id="p")
    two = store.check_provider(ProviderFields(base_url="http://localhost:9"), id="p")
    await store.save_provider(one)
    with pytest.raises(Conflict):
        await store.save_provider(two)


async def test_a_failing_audit_row_stops_the_change(db, store):
    def refuse(tx, before, after):
        raise RuntimeError

    await add(store)
    with pytest.raises(RuntimeError):
        await store.save_model(ModelFields(id="m", provider_id="p"), also=refuse)
    with pytest.raises(RuntimeError):
        await store.delete_provider("p", also=refuse)
    assert not store.current.models
    assert list(opened(db).current.providers) == ["p"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"id": ""}, "id"),
        ({"id": "../etc"}, "id"),
        ({"id": "a" * 129}, "id"),
        ({"type": "gopher"}, "type"),
        ({"base_url": ""}, "base_url"),
        ({"base_url": "http://user:pw@host"}, "base_url"),
        ({"base_url": "http://169.254.169.254"}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two\nlines"}, "api_key"),
        ({"api_key": "schlüssel"}, "api_key"),
        ({"cred_store": "keychain"}, "cred_store"),
        ({"cred_store": "vault"}, "cred_store"),
        ({"api_key": "sk", "cred_store": "none"}, "cred_store"),
        ({"api_version": "2020-01-01"}, "api_version"),
        ({"type": "demo"}, "base_url"),
    ],
)
def test_a_bad_provider_field_is_named(store, fields, param):
    row = {"id": "p", "type": "vllm", "base_url": "http://localhost:8000"} | fields
    with pytest.raises(InvalidRequest) as caught:
        store.check_provider(ProviderFields(**row))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"id": ""}, "id"),
        ({"id": "auto"}, "id"),
        ({"id": "auto:cheap"}, "id"),
        ({"id": "a\x1b[2J"}, "id"),
        ({"id": "a" * 201}, "id"),
        ({"provider_id": "nobody"}, "provider_id"),
        ({"weight": 11}, "weight"),
        ({"weight": -1}, "weight"),
        ({"max_context_tokens": -1}, "max_context_tokens"),
        ({"first_token_ms": -1}, "first_token_ms"),
        ({"input_per_1k": Decimal(-1)}, "input_per_1k"),
        ({"input_per_1k": Decimal("NaN")}, "input_per_1k"),
        ({"output_per_1k": Decimal("1e-20")}, "output_per_1k"),
        ({"id": ".."}, "id"),
        ({"id": "-x"}, "id"),
        ({"upstream_name": "a\nb"}, "upstream_name"),
        ({"upstream_name": " a"}, "upstream_name"),
        ({"upstream_name": "a" * 257}, "upstream_name"),
        ({"pricing_source": "hearsay"}, "pricing_source"),
    ],
)
async def test_a_bad_model_field_is_named(store, fields, param):
    await add(store)
    with pytest.raises(InvalidRequest) as caught:
        await model(store, **fields)
    assert caught.value.param == param
    assert not store.current.models


@pytest.mark.parametrize("name", ["/models/m.gguf", "@cf/meta/llama-3.1-8b", "~a/latest", "_x"])
async def test_a_model_may_be_called_what_its_server_calls_it(store, name):
    await add(store)
    await model(store, id=name)
    assert store.current.models[name].name_at_provider == name


@pytest.mark.parametrize("name", ["accounts/f/models/m#accounts/f/deployments/d", "Größe 7B (Q4)"])
async def test_any_visible_text_may_be_the_name_upstream(store, name):
    await add(store)
    await model(store, upstream_name=name)
    assert store.current.models["m"].name_at_provider == name


async def test_what_is_not_there_is_not_found_with_the_nearest(store):
    await add(store, id="openai")
    with pytest.raises(NotFound) as caught:
        store.check_provider(ProviderFields(enabled=True), id="opanai")
    assert caught.value.hint == "Did you mean `openai`?"
    for call in (store.save_model(ModelFields(weight=1), id="m"), store.delete_model("m")):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await store.delete_provider("nobody")


async def test_ids_cannot_be_changed(store):
    await add(store)
    await model(store)
    with pytest.raises(InvalidRequest):
        store.check_provider(ProviderFields(id="q"), id="p")
    with pytest.raises(InvalidRequest):
        await store.save_model(ModelFields(id="n"), id="m")


async def test_prices_of_a_new_day_are_taken_over(store):
    await add(store)
    await model(store, id="listed")
    store._prices.find = lambda *_: Prices(input=9, output=9, source="catalogue")
    store.refresh()
    assert store.current.models["listed"].prices.input == 9
