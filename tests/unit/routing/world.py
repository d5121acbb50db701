"""A clock that tests move, catalogs to route over, and random ones for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from tokenhub.core.catalog import Catalog, Model, Prices, Provider
from tokenhub.core.decision import (
    MODES,
    Attempt,
    Evidence,
    Limits,
    ModelView,
    ProviderView,
    RouteQuery,
)
from tokenhub.routing.aliases import Alias, Variant
from tokenhub.routing.rules import RoutingSettings, Rules

MICRO = 1_000  # nano-dollars


class ManualClock:
    """Time stands still until it is moved."""

    def __init__(self, start_ms=1_800_000_000_000):
        self.ms = start_ms
        self.seconds = 1000.0
        self.ids = 0

    def advance(self, seconds):
        self.seconds += seconds
        self.ms += round(seconds * 1000)

    def now_ms(self):
        return self.ms

    def monotonic(self):
        return self.seconds

    def new_id(self):
        self.ids += 1
        return f"r-{self.ids}"


def per_million(dollars_in, dollars_out=None):
    """Prices in dollars per million tokens."""
    out = dollars_in if dollars_out is None else dollars_out
    return Prices(input=round(dollars_in * 10**9), output=round(out * 10**9))


def model(name, provider="p", **fields):
    fields.setdefault("prices", per_million(1.0))
    return Model(id=name, provider_id=provider, **fields)


def catalog(*models, providers=()):
    found = {one.provider_id: Provider(id=one.provider_id, type="openai") for one in models}
    found |= {one.id: one for one in providers}
    return Catalog(version=1, providers=found, models={one.id: one for one in models})


def rules(*models, aliases=(), providers=(), **settings):
    return Rules().changed(
        catalog=catalog(*models, providers=providers),
        aliases={one.name: one for one in aliases},
        settings=RoutingSettings(**settings),
    )


def query(**fields):
    fields.setdefault("request_id", "r-1")
    fields.setdefault("input_tokens", 500)
    if limits := {k: fields.pop(k) for k in Limits.__struct_fields__ if k in fields}:
        fields["limits"] = Limits(**limits)
    return RouteQuery(**fields)


def attempt(decision, **fields):
    chosen = decision.chosen
    fields.setdefault("model_id", chosen.model_id)
    fields.setdefault("provider_id", chosen.provider_id)
    fields.setdefault("number", 1)
    fields.setdefault("at_ms", 1_800_000_000_000)
    fields.setdefault("latency_ms", 500.0)
    fields.setdefault("propensity", chosen.propensity)
    return Attempt(**fields)


NAMES = tuple(f"m{number}" for number in range(8))
PROVIDERS = ("p0", "p1", "p2")

_rarely = st.sampled_from([False] * 9 + [True])
_mostly = st.sampled_from([True] * 9 + [False])


def _seldom(value, strategy):
    """``value``, and now and then something else: most worlds must have a model that may answer."""
    return _rarely.flatmap(lambda other: strategy if other else st.just(value))


_price = st.sampled_from([0, 10**8, 10**9, 10**10]) | st.integers(0, 10**11)
_models = st.lists(
    st.builds(
        Model,
        id=st.sampled_from(NAMES),
        provider_id=st.sampled_from(PROVIDERS),
        weight=st.integers(0, 10),
        max_context_tokens=st.sampled_from([0, 8192, 200_000, 200_000, 1000]),
        max_output_tokens=st.sampled_from([0, 100, 4096]),
        enabled=_mostly,
        tools=_mostly,
        images=_mostly,
        prices=st.builds(
            Prices,
            input=_price | st.none(),
            output=_price | st.none(),
            request=st.integers(0, 10**9),
        ),
    ),
    min_size=2,
    max_size=8,
    unique_by=lambda one: one.id,
)
_ms = st.sampled_from([0.0]) | st.floats(1.0, 60_000.0)
_provider_views = st.dictionaries(
    st.sampled_from(PROVIDERS),
    st.builds(
        ProviderView,
        closed=_seldom("", st.sampled_from(["down", "probing", "rate_limited", "auth", "quota"])),
        retry_ms=st.integers(0, 2_000_000_000_000),
        error_rate=st.floats(0.0, 1.0),
        usual_ms=_ms,
        latency_ms=_ms,
        ttft_ms=_ms,
    ),
)
_model_views = st.dictionaries(
    st.sampled_from(NAMES), st.builds(ModelView, usual_ms=_ms, latency_ms=_ms, ttft_ms=_ms)
)
_arm = st.tuples(st.floats(0.001, 0.999), st.floats(0.01, 0.29))
evidences = st.builds(
    Evidence,
    at_ms=st.just(1_800_000_000_000),
    providers=_provider_views,
    models=_model_views,
    arms=st.dictionaries(st.sampled_from(NAMES), _arm),
    unavailable=_seldom(
        {},
        st.dictionaries(
            st.sampled_from(PROVIDERS),
            st.sampled_from(["vault_locked", "no_credential"]),
            max_size=1,
        ),
    ),
    turn=st.integers(0, 1000),
)
_variants = st.lists(
    st.builds(Variant, model_id=st.sampled_from([*NAMES[:4], "gone"]), weight=st.integers(1, 5)),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one.model_id,
).map(tuple)
_aliases = st.builds(
    Alias,
    name=st.just("alias"),
    variants=_variants,
    enabled=_mostly,
    sticky_by=st.sampled_from(["", "request", "api_key", "round_robin"]),
)
limits = st.builds(
    Limits,
    max_budget=st.none() | st.sampled_from([0, 10**7, 10**8]) | st.integers(0, 10**9),
    max_latency_ms=st.none() | st.sampled_from([0, 20_000]) | st.integers(0, 60_000),
    min_weight=st.none() | st.sampled_from([0, 2]) | st.integers(0, 10),
)
queries = st.builds(
    RouteQuery,
    request_id=st.sampled_from(["", "r-1", "r-2"]),
    model=st.sampled_from(
        ["", "auto", "*", "alias", "alias", *NAMES[:4], *(f"auto:{mode}" for mode in MODES)]
    ),
    mode=st.sampled_from(["", "", *MODES]),
    key_mode=st.sampled_from(["", *MODES]),
    input_tokens=st.sampled_from([0, 100, 999, 1000]) | st.integers(0, 20_000),
    max_tokens=st.none() | st.sampled_from([1, 100]) | st.integers(1, 20_000),
    choices=st.integers(1, 3),
    tools=_rarely,
    images=_rarely,
    stream=st.booleans(),
    limits=limits,
    models=_seldom((), st.lists(st.sampled_from([*NAMES, "alias"]), max_size=4).map(tuple)),
    allow_fallback=st.booleans(),
    key_id=st.sampled_from(["", "k-1"]),
)


@st.composite
def worlds(draw):
    """Rules over a random catalog."""
    providers = [Provider(id=name, type="openai", enabled=draw(_mostly)) for name in PROVIDERS]
    settings = RoutingSettings(
        default_mode=draw(st.sampled_from(MODES)),
        default_max_budget=draw(st.sampled_from([0, 0, 0, 10**6, 10**8])),
        default_max_latency_ms=draw(st.sampled_from([0, 0, 5000])),
        exploration_temp=draw(st.sampled_from([0.0, 0.0, 0.3, 2.0])),
    )
    alias = draw(_aliases)
    return Rules().changed(
        catalog=catalog(*draw(_models), providers=providers),
        aliases={alias.name: alias},
        settings=settings,
    )
