"""/admin/v1/prices: what tokens cost and who says so; set, import, compare."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from tokenhub.core.errors import InvalidRequest, NotFound
from tokenhub.core.fields import decode_fields
from tokenhub.core.similar import similar
from tokenhub.providers.catalog_fields import PRICES, ModelFields
from tokenhub.providers.price_import import per_1k, plan_import, read_prices
from tokenhub.providers.price_map import KINDS
from tokenhub.web.admin.paging import page, query_of
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenhub.core.catalog import Model, Prices
    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.providers.prices import Listed
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response

IMPORT_BODY = 16 * 2**20
_FIRST = ("openai", "anthropic")  # whose prices are shown for a name that several list


class PriceBook(Protocol):
    """The shipped catalogue."""

    def find(self, provider_type: str, model: str, base_url: str = "") -> Prices | None:
        """Its prices for a name, None where it does not know the model."""
        ...

    def listed(self, provider: str = "") -> Iterator[Listed]:
        """All models with a known price."""
        ...


class PriceFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Prices of one's own; a field left out stays, null takes it away."""

    input_per_1k: Decimal | UnsetType | None = UNSET
    output_per_1k: Decimal | UnsetType | None = UNSET
    cached_read_per_1k: Decimal | UnsetType | None = UNSET
    cached_write_per_1k: Decimal | UnsetType | None = UNSET


class PriceAdmin:
    """Prices of the registered models, and of what the shipped catalogue knows."""

    def __init__(self, catalog: CatalogStore, book: PriceBook, audit: Auditor) -> None:
        self._catalog = catalog
        self._book = book
        self._audit = audit

    async def list(self, request: Request, _: None) -> Response:
        """The prices of every registered model; this is also what ``import`` reads."""
        models = self._catalog.current.models.values()
        return json_answer(page(request, "prices", [_row(model) for model in models]))

    async def get(self, request: Request, _: None) -> Response:
        """All prices of one model: a registered one, else one of the shipped catalogue."""
        query_of(request)
        name = request.params["id"]
        model = self._catalog.current.models.get(name)
        if model is not None:
            return json_answer(_document(model))
        provider, prices = self._shipped(name)
        shown = {"model_id": name, "provider_id": None, "registered": False, "listed_by": provider}
        return json_answer(shown | _all(prices))

    async def set(self, request: Request, _: None) -> Response:
        """Set prices of one's own. Null for input and output: the catalogue's hold again."""
        model_id = request.params["id"]
        fields = decode_fields(request.body, PriceFields)
        edit = _edit(self._catalog.model(model_id), fields)
        audit = self._audit.entry(request, "prices.set", model_id)
        model = await self._catalog.save_model(edit, id=model_id, also=audit)
        return json_answer({"ok": True, "prices": _document(model)})

    async def import_(self, request: Request, _: None) -> Response:
        """Take over a price list for the registered models; ``dry_run`` only says what it would do.

        Prices set by hand stay unless ``overwrite`` is asked for.
        """
        query = query_of(request, "dry_run", "overwrite")
        overwrite, dry_run = _flag(query, "overwrite"), _flag(query, "dry_run")
        listed = read_prices(bytes(request.body))
        plan = plan_import(self._catalog.current, listed, overwrite=overwrite)
        if plan.edits and not dry_run:
            audit = self._audit.entry(request, "prices.import", f"{len(plan.edits)} models")
            await self._catalog.edit_models(plan.edits, also=audit)
        return json_answer(
            {
                "ok": True,
                "dry_run": dry_run,
                "changed": len(plan.edits),
                "unchanged": plan.unchanged,
                "unknown": plan.unknown,
                "kept": plan.kept,
                "simplified": plan.simplified,
                "changes": plan.changes,
            }
        )

    def _shipped(self, name: str) -> tuple[str, Prices]:
        owner, _, rest = name.partition("/")
        asked = [(owner, rest)] if rest else []
        for provider, model in [*asked, *((first, name) for first in _FIRST)]:
            if (prices := self._book.find(provider, model)) is not None:
                return provider, prices
        known = set(self._catalog.current.models)
        for one in self._book.listed():
            if one.model == name:
                return one.provider, one.prices
            known.add(one.model)
        near = ", ".join(f"`{one}`" for one in similar(name, sorted(known), count=3))
        raise NotFound(
            f"No model `{name[:128]}` is registered or in the price catalogue.",
            code="model_not_found",
            hint=f"Did you mean {near}?" if near else "`tokenhubctl prices list` shows yours.",
        )


def _edit(model: Model, fields: PriceFields) -> ModelFields:
    """The edit, checked: a price for input needs one for output, and the other way round."""
    given: dict[str, Any] = {
        name: value for name in PRICES if (value := getattr(fields, name)) is not UNSET
    }
    if not given:
        raise InvalidRequest(
            "No price is named.",
            code="missing_required_parameter",
            hint=f"Known fields: {', '.join(PRICES)}.",
        )
    after = {name: given.get(name, getattr(model, name) or None) for name in PRICES}
    missing = [name for name in PRICES[:2] if after[name] is None]
    if len(missing) == 1:
        raise InvalidRequest(
            f"`{missing[0]}` is missing: prices of one's own need both input and output.",
            param=missing[0],
            code="missing_required_parameter",
            hint="0 means free; null for both takes the catalogue's prices again.",
        )
    if missing:
        extra = next((name for name in PRICES[2:] if given.get(name) is not None), None)
        if extra is not None:
            raise InvalidRequest(
                f"`{extra}` cannot be set alone.",
                param=extra,
                hint="Send `input_per_1k` and `output_per_1k` too.",
            )
        # What is left over would come back with the next price set.
        given |= dict.fromkeys(PRICES)
    return ModelFields(**given)


def _row(model: Model) -> dict[str, Any]:
    prices = model.prices
    shown: dict[str, Any] = {"model_id": model.id, "provider_id": model.provider_id}
    for name in PRICES:
        shown[name] = per_1k(getattr(prices, name.removesuffix("_per_1k")))
    return shown | {"source": prices.source, "version": prices.version}


def _document(model: Model) -> dict[str, Any]:
    shown = {"model_id": model.id, "provider_id": model.provider_id, "registered": True}
    return shown | _all(model.prices)


def _all(prices: Prices) -> dict[str, Any]:
    """Every kind; null = costs as the kind it is part of (all null: unknown)."""
    return {
        **{f"{kind}_per_1k": per_1k(getattr(prices, kind)) for kind in KINDS[:-1]},
        "per_request_usd": _dollars(prices.request),
        "tiers": [{"above_prompt_tokens": start, **_known(tier)} for start, tier in prices.tiers],
        "variants": {
            name: {
                **_known(other),
                "tiers": [
                    {"above_prompt_tokens": start, **_known(tier)} for start, tier in other.tiers
                ],
            }
            for name, other in prices.variants
        },
        "source": prices.source,
        "version": prices.version,
    }


def _known(prices: Prices) -> dict[str, Any]:
    found = {f"{kind}_per_1k": per_1k(getattr(prices, kind)) for kind in KINDS[:-1]}
    return {name: value for name, value in found.items() if value is not None}


def _dollars(femto: int) -> Decimal:
    return Decimal(femto).scaleb(-15).normalize()


def _flag(query: dict[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in {"true", "false"}:
        raise InvalidRequest(f"`{name}` must be true or false.", param=name)
    return text == "true"
