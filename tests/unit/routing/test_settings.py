from __future__ import annotations

import msgspec
import pytest

from tokenhub.core.errors import InvalidRequest
from tokenhub.core.fields import decode_fields
from tokenhub.routing.rules import RoutingSettings
from tokenhub.routing.settings import SettingsFields, SettingsStore

BASE = RoutingSettings(default_mode="planning", default_max_latency_ms=9000)


def fields(text):
    return decode_fields(text.encode(), SettingsFields)


async def test_what_the_manual_sets_is_effective_and_stored(db):
    store = await SettingsStore.open(db, BASE)
    await store.change(
        fields(
            '{"default_mode":"cheap","default_max_budget_usd":0.02,"default_max_latency_ms":10000}'
        )
    )
    shown = {
        "default_mode": "cheap",
        "default_max_budget_usd": 0.02,
        "default_max_latency_ms": 10_000,
    }
    described = store.describe()
    assert described.items() >= shown.items()
    assert described["stored"].items() >= shown.items()
    assert store.effective.default_max_budget == 20_000_000
    again = await SettingsStore.open(db, BASE)
    assert again.describe() == described


async def test_a_change_touches_only_what_it_names(db):
    store = await SettingsStore.open(db, BASE)
    await store.change(fields('{"default_max_budget_usd":"0.5"}'))
    await store.change(fields('{"default_mode":"normal"}'))
    assert store.effective.default_max_budget == 500_000_000
    assert store.effective.default_max_latency_ms == 9000
    assert store.describe()["stored"]["default_max_latency_ms"] is None


async def test_zero_is_no_limit_and_null_is_the_environments(db):
    store = await SettingsStore.open(db, BASE)
    await store.change(fields('{"default_max_latency_ms":0}'))
    assert store.effective.default_max_latency_ms == 0
    await store.change(fields('{"default_max_latency_ms":null}'))
    assert store.effective.default_max_latency_ms == 9000


@pytest.mark.parametrize(
    "text",
    [
        '{"default_mode":"cheep"}',
        '{"default_mode":""}',
        '{"default_mode":7}',
        '{"default_max_budget_usd":-1}',
        '{"default_max_budget_usd":101}',
        '{"default_max_budget_usd":"much"}',
        '{"default_max_latency_ms":-1}',
        '{"default_max_latency_ms":300001}',
        '{"default_max_latency_ms":1.5}',
        '{"exploration_temp":-1}',
        '{"exploration_temp":101}',
        '{"no_such_field":1}',
        "[]",
    ],
)
async def test_nonsense_is_refused_and_changes_nothing(db, text):
    store = await SettingsStore.open(db, BASE)
    with pytest.raises(InvalidRequest):
        await store.change(fields(text))
    assert (await SettingsStore.open(db, BASE)).effective == BASE


async def test_the_change_is_audited_in_its_own_transaction(db):
    store = await SettingsStore.open(db, BASE)
    seen = []
    await store.change(
        SettingsFields(default_mode="cheap"), also=lambda _, *change: seen.append(change)
    )
    assert seen == [({}, {"default_mode": "cheap"})]

    def refuse(*_):
        raise RuntimeError("no audit")

    with pytest.raises(RuntimeError):
        await store.change(SettingsFields(default_mode="normal"), also=refuse)
    assert store.effective.default_mode == "cheap"


def test_nothing_named_is_nothing_changed():
    assert msgspec.structs.asdict(fields("{}")) == dict.fromkeys(
        SettingsFields.__struct_fields__, msgspec.UNSET
    )
