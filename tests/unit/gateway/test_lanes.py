from __future__ import annotations

from msgspec.structs import replace

from tokenhub.core.catalog import Catalog, Model, Provider
from tokenhub.core.clock import SystemClock
from tokenhub.gateway.lanes import Lanes
from tokenhub.providers import adapters

REMOTE, BUILTIN = object(), object()
MODEL = Model(id="m", provider_id="p")
PROVIDER = Provider(id="p", type="openai", base_url="http://one:8000")


def catalog_of(provider=PROVIDER, model=MODEL):
    return Catalog(version=1, providers={"p": provider}, models={"m": model})


class Stand:
    """Lanes over a catalog that can be swapped, and a key that can be changed."""

    def __init__(self):
        self.catalog = catalog_of()
        self.key = b"k1"
        self.lanes = Lanes(
            lambda: self.catalog,
            adapters(SystemClock()),
            REMOTE,
            BUILTIN,
            lambda provider: None if provider.type == "demo" else lambda: self.key,
            lambda: False,
        )


def test_a_lane_is_made_once_for_a_catalog():
    stand = Stand()
    lane = stand.lanes.to(MODEL)
    assert (lane.upstream, lane.origin.origin) == (REMOTE, "http://one:8000")
    assert stand.lanes.to(MODEL) is lane


def test_a_new_catalog_has_new_lanes():
    stand = Stand()
    old = stand.lanes.to(MODEL)
    stand.catalog = catalog_of(replace(PROVIDER, base_url="http://two:8000"))
    lane = stand.lanes.to(MODEL)
    assert (old.origin.origin, lane.origin.origin) == ("http://one:8000", "http://two:8000")
    stand.catalog = catalog_of(Provider(id="p", type="demo"))
    lane = stand.lanes.to(MODEL)
    assert (lane.upstream, lane.origin, lane.credential) == (BUILTIN, None, None)


def test_a_model_of_the_catalog_before_is_called_as_it_was_decided():
    stand = Stand()
    changed = replace(MODEL, upstream_name="x")
    stand.catalog = catalog_of(model=changed)
    assert [stand.lanes.to(one).target.name for one in (changed, MODEL, changed)] == ["x", "m", "x"]


def test_the_key_is_read_anew_for_each_call():
    stand = Stand()
    lane = stand.lanes.to(MODEL)
    assert lane.credential() == b"k1"
    stand.key = b"k2"
    assert stand.lanes.to(MODEL).credential() == b"k2"
