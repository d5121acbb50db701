"""What an admin may say of providers and models, and the checks of it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from tokenhub.core.catalog import Model, Provider
from tokenhub.core.decision import AUTO
from tokenhub.core.errors import Conflict, InvalidRequest, NotFound
from tokenhub.core.money import format_per_1k, parse_per_1k
from tokenhub.core.similar import similar
from tokenhub.providers.egress import parse_base_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TYPES = ("openai", "anthropic", "vllm", "demo")
DEFAULT_BASE_URL = {"openai": "https://api.openai.com", "anthropic": "https://api.anthropic.com"}
API_VERSIONS = ("", "2023-06-01", "2026-10-21")
PRICES = ("input_per_1k", "output_per_1k", "cached_read_per_1k", "cached_write_per_1k")
PRICING_SOURCES = ("manual", "catalogue", "litellm", "provider")

_PROVIDER_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
# Local servers name a model by its path (/models/m.gguf), some hosted ones with @ or ~ in front.
_MODEL_ID = r"[A-Za-z0-9_/@~][A-Za-z0-9._:/@~+-]{0,199}\Z"
_MAX_UPSTREAM_NAME = 256
_MAX_TOKENS = 1_000_000_000


class ProviderFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What may be said of a provider; a field left out stays as it is."""

    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    base_url: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    api_key: str | UnsetType | None = UNSET
    cred_store: str | UnsetType = UNSET
    api_version: str | UnsetType = UNSET

    def __repr__(self) -> str:
        """Without the key."""
        return f"ProviderFields(id={self.id!r})"


class ModelFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What may be said of a model; a field left out stays as it is."""

    id: str | UnsetType = UNSET
    provider_id: str | UnsetType = UNSET
    weight: int | UnsetType = UNSET
    max_context_tokens: int | UnsetType = UNSET
    max_output_tokens: int | UnsetType = UNSET
    input_per_1k: Decimal | UnsetType | None = UNSET
    output_per_1k: Decimal | UnsetType | None = UNSET
    cached_read_per_1k: Decimal | UnsetType | None = UNSET
    cached_write_per_1k: Decimal | UnsetType | None = UNSET
    pricing_source: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    upstream_name: str | UnsetType = UNSET
    first_token_ms: int | UnsetType = UNSET
    tools: bool | UnsetType = UNSET
    images: bool | UnsetType = UNSET


class ProviderChange(msgspec.Struct, frozen=True):
    """A checked change, ready to be saved."""

    before: Provider | None
    after: Provider
    credential: str | None  # the new key
    drops_credential: bool  # the stored key must go


def check_provider(
    fields: ProviderFields,
    providers: Mapping[str, Provider],
    *,
    id: str | None = None,  # noqa: A002
) -> ProviderChange:
    """Check an addition to ``providers`` (no ``id``), or an edit of provider ``id``.

    Raises:
        InvalidRequest, NotFound, Conflict: naming the field and the way out.
    """
    provider_id = _provider_id(fields, id)
    before = providers.get(provider_id)
    if before is None and id is not None:
        raise unknown("provider", provider_id, providers)
    kind = _given(fields.type, before.type if before else "openai")
    if kind not in TYPES:
        raise InvalidRequest(
            f"`type` must be one of {', '.join(TYPES)}.",
            param="type",
            hint="Any OpenAI-compatible server is type `vllm` with its base_url.",
        )
    base_url = _given(fields.base_url, before.base_url if before else "")
    base_url = base_url or DEFAULT_BASE_URL.get(kind, "")
    origin = "demo:"
    if kind != "demo":
        if not base_url:
            raise InvalidRequest(
                "`base_url` is missing.", param="base_url", code="missing_required_parameter"
            )
        parsed = parse_base_url(base_url)
        base_url, origin = parsed.url, parsed.origin
    elif base_url:
        raise InvalidRequest("A demo provider has no `base_url`.", param="base_url")
    version = _given(fields.api_version, before.api_version if before else "")
    if version not in API_VERSIONS:
        raise InvalidRequest(
            f"`api_version` must be one of {', '.join(API_VERSIONS[1:])}.", param="api_version"
        )
    credential, drops, store = _credential(fields, before, origin)
    after = Provider(
        id=provider_id,
        type=kind,
        base_url=base_url,
        enabled=_given(fields.enabled, before.enabled if before else True),
        cred_store=store,
        api_version=version,
        origin=origin,
    )
    return ProviderChange(before, after, credential, drops)


def check_model(
    fields: ModelFields,
    models: Mapping[str, Model],
    providers: Mapping[str, Provider],
    *,
    id: str | None = None,  # noqa: A002
) -> tuple[Model | None, Model]:
    """Check an addition (no ``id``) or an edit of model ``id``; the model before and after.

    Raises:
        InvalidRequest, NotFound: naming the field and the way out.
    """
    model_id = _given(fields.id, id or "")
    if not model_id:
        raise InvalidRequest(
            "The field `id` is missing.", param="id", code="missing_required_parameter"
        )
    before = models.get(model_id)
    if id is not None:
        if model_id != id:
            raise InvalidRequest("`id` cannot be changed.", param="id")
        if before is None:
            raise unknown("model", id, models)
    elif model_id == AUTO or model_id.startswith(f"{AUTO}:"):
        raise InvalidRequest(
            f"`id` {AUTO} asks for routing; a model cannot be called so.", param="id"
        )
    elif not is_model_id(model_id):
        raise InvalidRequest(
            "`id` must be 1 to 200 letters, digits or ._:/@~+- and start with none of .:+-.",
            param="id",
            hint="Choose another id, and give the provider's own name as `upstream_name`.",
        )
    base = before or Model(id=model_id, provider_id="")
    after = replace(base, **_changes(fields))
    if not after.provider_id:
        raise InvalidRequest(
            "The field `provider_id` is missing.",
            param="provider_id",
            code="missing_required_parameter",
            hint="`tokenhubctl provider list` shows the providers.",
        )
    if after.provider_id not in providers:
        near = similar(after.provider_id, providers)
        raise InvalidRequest(
            f"`provider_id`: there is no provider `{after.provider_id[:64]}`.",
            param="provider_id",
            hint=f"Did you mean `{near[0]}`?" if near else "Add it with `provider add` first.",
        )
    _check_ranges(after)
    return before, after


def is_model_id(text: str) -> bool:
    """Whether a model can be registered under this id."""
    return re.match(_MODEL_ID, text) is not None


def unknown(noun: str, name: str, known: Iterable[str]) -> NotFound:
    """The answer to an id that is not known, with the nearest ones."""
    near = similar(name, known, count=3, cutoff=0.5)
    shown = ", ".join(f"`{one}`" for one in near)
    return NotFound(
        f"There is no {noun} `{name[:128]}`.",
        code="provider_not_found" if noun == "provider" else "model_not_found",
        hint=f"Did you mean {shown}?" if near else f"`tokenhubctl {noun} list` shows them.",
    )


def _provider_id(fields: ProviderFields, id: str | None) -> str:  # noqa: A002
    given: str = _given(fields.id, id or "")
    if not given:
        raise InvalidRequest(
            "The field `id` is missing.", param="id", code="missing_required_parameter"
        )
    if id is not None and given != id:
        raise InvalidRequest("`id` cannot be changed.", param="id")
    if id is None and not re.match(_PROVIDER_ID, given):
        raise InvalidRequest(
            "`id` must be 1 to 128 letters, digits, dots, dashes or underscores.", param="id"
        )
    return given


def _credential(
    fields: ProviderFields, before: Provider | None, origin: str
) -> tuple[str | None, bool, str]:
    had = before is not None and before.cred_store == "vault"
    asked = fields.cred_store
    if asked is not UNSET and asked not in {"vault", "none"}:
        raise InvalidRequest("`cred_store` must be vault or none.", param="cred_store")
    if isinstance(fields.api_key, str):
        if not fields.api_key.strip() or not fields.api_key.isprintable():
            raise InvalidRequest(
                "`api_key` must be one line of visible characters.",
                param="api_key",
                hint="To remove the stored key, send null.",
            )
        if not fields.api_key.isascii():
            raise InvalidRequest("`api_key` must be ASCII text.", param="api_key")
        if asked == "none":
            raise InvalidRequest(
                "`api_key` and `cred_store` none exclude each other.", param="cred_store"
            )
        return fields.api_key, False, "vault"
    if fields.api_key is None or asked == "none":
        return None, had, "none"
    if not had:
        if asked == "vault":
            raise InvalidRequest(
                "`cred_store` is vault, but no key is stored.",
                param="cred_store",
                hint="Send `api_key` too.",
            )
        return None, False, "none"
    if before is not None and before.origin != origin:
        raise Conflict(
            f"The stored key of provider `{before.id}` is bound to {before.origin}; "
            f"it is not sent to {origin}.",
            code="credential_rebind_required",
            hint="Send `api_key` in the same edit, or `api_key` null to go on without one.",
            param="api_key",
        )
    return None, False, "vault"


def _changes(fields: ModelFields) -> dict[str, Any]:
    given = {
        name: value
        for name in fields.__struct_fields__
        if name != "id" and (value := getattr(fields, name)) is not UNSET
    }
    for name in PRICES:
        if name in given:
            price = given[name]
            given[name] = "" if price is None else format_per_1k(parse_per_1k(price, name))
            given.setdefault("pricing_source", "manual")
    return given


def _check_ranges(model: Model) -> None:
    if not 0 <= model.weight <= 10:
        raise InvalidRequest("`weight` must be between 0 and 10.", param="weight")
    for name in ("max_context_tokens", "max_output_tokens"):
        if not 0 <= getattr(model, name) <= _MAX_TOKENS:
            raise InvalidRequest(f"`{name}` must be between 0 and {_MAX_TOKENS}.", param=name)
    if not 0 <= model.first_token_ms <= 3_600_000:
        raise InvalidRequest(
            "`first_token_ms` must be between 0 and 3600000.", param="first_token_ms"
        )
    name = model.upstream_name
    if len(name) > _MAX_UPSTREAM_NAME or not name.isprintable() or name != name.strip():
        raise InvalidRequest(
            f"`upstream_name` must have at most {_MAX_UPSTREAM_NAME} visible characters, and no "
            "space at either end.",
            param="upstream_name",
        )
    if model.pricing_source not in PRICING_SOURCES:
        raise InvalidRequest(
            f"`pricing_source` must be one of {', '.join(PRICING_SOURCES)}.",
            param="pricing_source",
        )


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is UNSET else value
