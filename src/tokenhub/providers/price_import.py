"""Importing a price list: which registered models it names, and what would change.

Two formats are read: what ``GET /admin/v1/prices`` answers ({"prices": [{"model_id": ...}]}), and
LiteLLM's price map. A model keeps one price per kind, so a list's context tiers and rare kinds
cannot be stored; the models that lose some are named.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tokenhub.core.catalog import Prices
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.money import format_per_1k, parse_per_1k
from tokenhub.providers.catalog_fields import PRICES, ModelFields
from tokenhub.providers.price_map import KINDS, Imported, read_litellm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenhub.core.catalog import Catalog, Model

STORED = tuple(name.removesuffix("_per_1k") for name in PRICES)
"""The kinds that a model's own prices have."""


class PriceChange(msgspec.Struct, frozen=True):
    """One price that an import changes; dollars per 1000 tokens, None = not known."""

    model_id: str
    field: str
    old: Decimal | None
    new: Decimal | None


class PricePlan(msgspec.Struct, kw_only=True):
    """What an import does.

    Attributes:
        edits: model id → the edit to save.
        changes: the same, price by price.
        unchanged: registered models whose prices are those of the list already.
        kept: registered models whose prices an admin set, so they stay.
        unknown: models of the list that are not registered.
        simplified: models to be changed for which the list also has tiers or rare kinds.
    """

    edits: dict[str, ModelFields] = {}
    changes: list[PriceChange] = []
    unchanged: int = 0
    kept: list[str] = []
    unknown: int = 0
    simplified: list[str] = []


class _Row(msgspec.Struct):
    model_id: str
    input_per_1k: Decimal | None = None
    output_per_1k: Decimal | None = None
    cached_read_per_1k: Decimal | None = None
    cached_write_per_1k: Decimal | None = None
    source: str = "manual"


class _Export(msgspec.Struct):
    prices: list[_Row]


def read_prices(text: bytes) -> list[Imported]:
    """The models of a price list of either format; those without a price are left out.

    Raises:
        InvalidRequest: neither format, or a price that is none; names the model.
    """
    try:
        own = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("prices")
        if own is None or not bytes(own).lstrip().startswith(b"["):
            return read_litellm(text)
        rows = msgspec.json.decode(text, type=_Export).prices
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The price list does not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The price list is not a JSON object: {error}.", code="invalid_json"
        ) from None
    return [_imported(row) for row in rows if row.input_per_1k is not None]


def plan_import(catalog: Catalog, listed: list[Imported], *, overwrite: bool) -> PricePlan:
    """Compare a price list with the registered models.

    A model is looked up by its id, by what its provider calls it, and by that with the
    provider's type or id before it (``openai/gpt-4o``). Prices set by hand stay unless
    ``overwrite``; those of the catalogue and of an earlier import give way.
    """
    plan = PricePlan()
    by_name = {one.model: one for one in listed}
    used = set()
    for model in catalog.models.values():
        found = _find(by_name, catalog, model)
        if found is None or model.source != "store":
            continue
        used.add(found.model)
        _compare(plan, model, found, overwrite=overwrite)
    plan.unknown = len(by_name.keys() - used)
    return plan


def per_1k(femto: int | None) -> Decimal | None:
    """A price as it is shown: dollars per 1000 tokens, exact."""
    return None if femto is None else Decimal(format_per_1k(femto))


def _imported(row: _Row) -> Imported:
    given: dict[str, Any] = {
        kind: parse_per_1k(value, f"{row.model_id[:100]}: {name}")
        for kind, name in zip(STORED, PRICES, strict=True)
        if (value := getattr(row, name)) is not None
    }
    source = "litellm" if row.source == "litellm" else "manual"
    return Imported(model=row.model_id, provider="", prices=Prices(**given, source=source))


def _find(by_name: Mapping[str, Imported], catalog: Catalog, model: Model) -> Imported | None:
    provider, name = catalog.provider_of(model), model.name_at_provider
    names = (model.id, name, f"{provider.type}/{name}", f"{provider.id}/{name}")
    return next((by_name[one] for one in names if one in by_name), None)


def _compare(plan: PricePlan, model: Model, found: Imported, *, overwrite: bool) -> None:
    ours, theirs = model.prices, found.prices
    if theirs.output is None:
        theirs = replace(theirs, output=theirs.input)
    changes = [
        PriceChange(model.id, field, per_1k(getattr(ours, kind)), per_1k(getattr(theirs, kind)))
        for kind, field in zip(STORED, PRICES, strict=True)
        if getattr(ours, kind) != getattr(theirs, kind)
    ]
    if not changes:
        plan.unchanged += 1
    elif ours.source == "manual" and not overwrite:
        plan.kept.append(model.id)
    else:
        plan.changes += changes
        plan.edits[model.id] = _edit(theirs)
        if theirs.tiers or any(getattr(theirs, kind) for kind in KINDS if kind not in STORED):
            plan.simplified.append(model.id)


def _edit(prices: Prices) -> ModelFields:
    given: dict[str, Any] = {
        field: per_1k(getattr(prices, kind)) for kind, field in zip(STORED, PRICES, strict=True)
    }
    return ModelFields(**given, pricing_source=prices.source)
