"""Providers and models as rows of the database, and as the admin API shows them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from tokenhub.core.catalog import Model, Provider
from tokenhub.core.money import format_per_1k
from tokenhub.providers.catalog_fields import PRICES
from tokenhub.providers.egress import parse_base_url

if TYPE_CHECKING:
    from tokenhub.core.catalog import Prices

PROVIDER_COLUMNS = "id, type, base_url, enabled, cred_store, api_version"
PROVIDER_UPSERT = (
    f"INSERT INTO providers ({PROVIDER_COLUMNS}, created_at, updated_at) "  # noqa: S608
    "VALUES (:id, :type, :base_url, :enabled, :cred_store, :api_version, :now, :now) "
    "ON CONFLICT (id) DO UPDATE SET type = excluded.type, base_url = excluded.base_url, "
    "enabled = excluded.enabled, cred_store = excluded.cred_store, "
    "api_version = excluded.api_version, updated_at = excluded.updated_at"
)
_MODEL_FIELDS = (
    "id",
    "provider_id",
    "weight",
    "max_context_tokens",
    "max_output_tokens",
    "input_per_1k",
    "output_per_1k",
    "cached_read_per_1k",
    "cached_write_per_1k",
    "pricing_source",
    "enabled",
    "upstream_name",
    "first_token_ms",
    "tools",
    "images",
)
MODEL_COLUMNS = ", ".join(_MODEL_FIELDS)
_MODEL_CHANGES = ", ".join(f"{name} = excluded.{name}" for name in _MODEL_FIELDS[1:])
MODEL_UPSERT = (
    f"INSERT INTO models ({MODEL_COLUMNS}, created_at, updated_at) "  # noqa: S608
    f"VALUES ({', '.join(':' + f for f in _MODEL_FIELDS)}, :now, :now) "
    f"ON CONFLICT (id) DO UPDATE SET {_MODEL_CHANGES}, updated_at = excluded.updated_at"
)


def provider_of(row: tuple[Any, ...]) -> Provider:
    """A row of PROVIDER_COLUMNS as a provider."""
    id_, kind, base_url, enabled, cred_store, api_version = row
    return Provider(
        id=id_,
        type=kind,
        base_url=base_url,
        enabled=bool(enabled),
        cred_store=cred_store,
        api_version=api_version,
        origin=parse_base_url(base_url).origin if base_url else "demo:",
    )


def provider_row(provider: Provider, now_ms: int) -> dict[str, Any]:
    """The parameters of PROVIDER_UPSERT."""
    row = asdict(provider)
    del row["source"], row["origin"]
    return row | {"enabled": int(provider.enabled), "now": now_ms}


def model_of(row: tuple[Any, ...]) -> Model:
    """A row of MODEL_COLUMNS as a model, without its prices in force."""
    values = dict(zip(_MODEL_FIELDS, row, strict=True))
    for flag in ("enabled", "tools", "images"):
        values[flag] = bool(values[flag])
    return Model(**values)


def model_row(model: Model, now_ms: int) -> dict[str, Any]:
    """The parameters of MODEL_UPSERT."""
    row = {
        name: int(value) if isinstance(value := getattr(model, name), bool) else value
        for name in _MODEL_FIELDS
    }
    return row | {"now": now_ms}


def public_provider(provider: Provider) -> dict[str, Any]:
    """A provider as the admin API shows it; it never holds a key."""
    return {
        "id": provider.id,
        "type": provider.type,
        "base_url": provider.base_url,
        "enabled": provider.enabled,
        "cred_store": provider.cred_store,
        "api_version": provider.api_version,
        "source": provider.source,
    }


def public_model(model: Model) -> dict[str, Any]:
    """A model as the admin API shows it; prices in dollars per 1000 tokens, null = unknown."""
    shown = asdict(model)
    prices: Prices = shown.pop("prices")
    for name in PRICES:
        known: int | None = getattr(prices, name.removesuffix("_per_1k"))
        shown[name] = None if known is None else Decimal(format_per_1k(known))
    if not (model.input_per_1k or model.output_per_1k):
        shown["pricing_source"] = prices.source
        shown["pricing_version"] = prices.version
    return shown
