"""Prices of known models: the shipped catalogue.

``data/prices.json`` is exported from the genai-prices package (MIT, see LICENSE.genai-prices
beside it) by tools/export_prices.py. Nothing is fetched.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tokenhub.core.catalog import Prices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenhub.core.clock import Clock

Clause = str | list[Any]
"""Text that a name equals, or a sign and its operands: ^ $ * ~ (starts, ends, contains, regular
expression) with one text, | and & with clauses."""

# gpt-5-20251211 is what some gateways call gpt-5-2025-12-11.
_COMPACT_DATE = r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)"


class _Dated(msgspec.Struct, frozen=True):
    """Prices that hold since a day, or only in some hours of each day."""

    price: dict[str, int | list[Any]]
    since: date | None = None
    daily: bool = False
    name: str = ""


class _Model(msgspec.Struct, frozen=True):
    id: str
    match: Clause
    prices: list[_Dated]
    variants: list[_Dated] = []
    context: int = 0


class _Provider(msgspec.Struct, frozen=True):
    id: str
    url: str
    models: list[_Model]
    fallback: list[str] = []


class _Catalogue(msgspec.Struct, frozen=True):
    source: str
    version: str
    providers: list[_Provider]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the catalogue lists it."""

    provider: str
    model: str
    max_context_tokens: int
    prices: Prices


class PriceBook:
    """What models cost, by provider type and name. The catalogue is read at its first use.

    Args:
        clock: says which of a model's dated prices holds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._catalogue: _Catalogue | None = None

    @property
    def version(self) -> str:
        """The catalogue's date."""
        return self._loaded().version

    @property
    def source(self) -> str:
        """Where the catalogue comes from."""
        return self._loaded().source

    def find(self, provider_type: str, model: str, base_url: str = "") -> Prices | None:
        """The catalogue's prices today, or None where it does not know the model.

        The provider is known by its base URL, else by its type. A server of one's own (``vllm``)
        is in no catalogue.
        """
        provider = self._provider(provider_type, base_url)
        if provider is None:
            return None
        name = model.lower()
        found = self._match(provider, name)
        if found is None and (dashed := re.sub(_COMPACT_DATE, r"-\1-\2-\3", name)) != name:
            found = self._match(provider, dashed)
        if found is None:
            return None
        prices = self._today(found)
        return None if prices.input is None else prices

    def listed(self, provider: str = "") -> Iterator[Listed]:
        """All models with a known price, of one of the catalogue's providers or of all."""
        for one in self._loaded().providers:
            if provider and one.id != provider:
                continue
            for model in one.models:
                prices = self._today(model)
                if prices.input is not None:
                    yield Listed(
                        provider=one.id,
                        model=model.id,
                        max_context_tokens=model.context,
                        prices=prices,
                    )

    def _provider(self, kind: str, base_url: str) -> _Provider | None:
        providers = self._loaded().providers
        if base_url:
            for one in providers:
                if re.match(one.url, base_url):
                    return one
        return next((one for one in providers if one.id == kind), None)

    def _match(self, provider: _Provider, name: str) -> _Model | None:
        for model in provider.models:
            if _fits(model.match, name):
                return model
        for other in provider.fallback:
            for one in self._loaded().providers:
                if one.id == other:
                    for model in one.models:
                        if _fits(model.match, name):
                            return model
        return None

    def _today(self, model: _Model) -> Prices:
        today = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC).date()
        price = _standard(model.prices, today)
        variants = {}
        for one in model.variants:
            if one.name not in variants and (one.since is None or one.since <= today):
                variants[one.name] = self._prices(price | one.price)
        return replace(self._prices(price), variants=tuple(variants.items()))

    def _prices(self, price: dict[str, Any]) -> Prices:
        version = self._loaded().version
        return tiered(price, source="catalogue", version=version)

    def _loaded(self) -> _Catalogue:
        if self._catalogue is None:
            text = (Path(__file__).parent / "data" / "prices.json").read_bytes()
            self._catalogue = msgspec.json.decode(text, type=_Catalogue)
        return self._catalogue


def _standard(prices: list[_Dated], today: date) -> dict[str, Any]:
    """The price that holds: the last one in force, or the dearest of a day that has several.

    A request's bound must hold whenever it is answered, so hours with a discount are not counted.
    """
    in_force = [one for one in prices if one.since is None or one.since <= today] or prices[:1]
    chosen = next((one for one in reversed(in_force) if not one.daily), in_force[0])
    for one in in_force:
        if one.daily and _base(one.price.get("input")) > _base(chosen.price.get("input")):
            chosen = one
    return dict(chosen.price)


def _base(price: int | list[Any] | None) -> int:
    if isinstance(price, list):
        return int(price[0])
    return price or 0


def tiered(price: dict[str, Any], *, source: str, version: str) -> Prices:
    """Prices from {kind: price or [base, [more than, price], ...]}."""
    starts = sorted(
        {start for value in price.values() if isinstance(value, list) for start, _ in value[1:]}
    )

    def at(start: int) -> Prices:
        values = {}
        for kind, value in price.items():
            values[kind] = value
            if isinstance(value, list):
                values[kind] = value[0]
                for begins, amount in value[1:]:
                    if start >= begins:
                        values[kind] = amount
        return Prices(**values, source=source, version=version)

    return replace(at(-1), tiers=tuple((start, at(start)) for start in starts))


def _fits(clause: Clause, name: str) -> bool:
    if isinstance(clause, str):
        return name == clause
    sign, *operands = clause
    if sign == "|":
        return any(_fits(one, name) for one in operands)
    if sign == "&":
        return all(_fits(one, name) for one in operands)
    text = operands[0]
    if sign == "^":
        return name.startswith(text)
    if sign == "$":
        return name.endswith(text)
    if sign == "*":
        return text in name
    return re.search(text, name) is not None
