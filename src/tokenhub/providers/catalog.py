"""The stored providers and models: checked, kept, and published as one immutable Catalog."""

from __future__ import annotations

import asyncio
import difflib
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from tokenhub.core.catalog import Catalog, Model, Prices, Provider
from tokenhub.core.decision import AUTO
from tokenhub.core.errors import Conflict, InvalidRequest, NotFound
from tokenhub.core.money import format_per_1k, parse_per_1k
from tokenhub.providers.egress import parse_base_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Also, Database, Transaction

TYPES = ("openai", "anthropic", "vllm", "demo")
DEFAULT_BASE_URL = {"openai": "https://api.openai.com", "anthropic": "https://api.anthropic.com"}
API_VERSIONS = ("", "2023-06-01", "2026-10-21")
PRICES = ("input_per_1k", "output_per_1k", "cached_read_per_1k", "cached_write_per_1k")
PRICING_SOURCES = ("manual", "catalogue", "litellm", "provider")

_PROVIDER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}\Z")
_MAX_TOKENS = 1_000_000_000

DEMO_PROVIDER = Provider(id="demo", type="demo", source="runtime", origin="demo:")


class PriceBook(Protocol):
    """Where the price of a model comes from when the admin set none."""

    def find(self, provider_type: str, model: str, base_url: str = "") -> Prices | None:
        """The catalogue's prices, or None where it does not know the model."""
        ...


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


class CatalogStore:
    """Providers and models, in the database and in ``current``.

    Changes are made one at a time; ``current`` is swapped after the commit, so a request sees
    either all of a change or nothing of it.
    """

    def __init__(self, db: Database, clock: Clock, prices: PriceBook, *, demo: bool) -> None:
        self._db = db
        self._clock = clock
        self._prices = prices
        self._demo = demo
        self._lock = asyncio.Lock()
        self._providers: dict[str, Provider] = {}
        self._models: dict[str, Model] = {}
        self._version = 0
        self._listeners: list[Callable[[Catalog], None]] = []
        self.current: Catalog = Catalog(version=0, providers={}, models={})

    def load(self) -> None:
        """Read everything; at start only (it blocks)."""
        for row in self._db.read_now(f"SELECT {_PROVIDER_COLUMNS} FROM providers"):  # noqa: S608
            provider = _provider_of(row)
            self._providers[provider.id] = provider
        for row in self._db.read_now(f"SELECT {_MODEL_COLUMNS} FROM models"):  # noqa: S608
            model = _model_of(row)
            self._models[model.id] = model
        self._publish()

    @property
    def stored_providers(self) -> frozenset[str]:
        """The ids in the store; the built-in demo is not among them."""
        return frozenset(self._providers)

    @property
    def stored_models(self) -> frozenset[str]:
        """The ids in the store; the built-in demo is not among them."""
        return frozenset(self._models)

    def listen(self, listener: Callable[[Catalog], None]) -> None:
        """Call ``listener`` with each new catalog."""
        self._listeners.append(listener)

    def provider(self, provider_id: str) -> Provider:
        """One provider.

        Raises:
            NotFound: with the nearest ids.
        """
        found = self.current.providers.get(provider_id)
        if found is None:
            raise _unknown("provider", provider_id, self.current.providers)
        return found

    def model(self, model_id: str) -> Model:
        """One model.

        Raises:
            NotFound: with the nearest ids.
        """
        found = self.current.models.get(model_id)
        if found is None:
            raise _unknown("model", model_id, self.current.models)
        return found

    def check_provider(self, fields: ProviderFields, *, id: str | None = None) -> ProviderChange:  # noqa: A002
        """Check an addition (no ``id``) or an edit of provider ``id``; changes nothing.

        Raises:
            InvalidRequest, NotFound, Conflict: naming the field and the way out.
        """
        provider_id = self._provider_id(fields, id)
        before = self._providers.get(provider_id)
        if before is None and id is not None:
            raise _unknown("provider", provider_id, self._providers)
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
                raise InvalidRequest("`base_url` is missing.", param="base_url")
            parsed = parse_base_url(base_url)
            base_url, origin = parsed.url, parsed.origin
        elif base_url:
            raise InvalidRequest("A demo provider has no `base_url`.", param="base_url")
        version = _given(fields.api_version, before.api_version if before else "")
        if version not in API_VERSIONS:
            raise InvalidRequest(
                f"`api_version` must be one of {', '.join(API_VERSIONS[1:])}.", param="api_version"
            )
        credential, drops, store = self._credential(fields, before, origin)
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

    def _provider_id(self, fields: ProviderFields, id: str | None) -> str:  # noqa: A002
        given: str = _given(fields.id, id or "")
        if not given:
            raise InvalidRequest("The field `id` is missing.", param="id")
        if id is not None and given != id:
            raise InvalidRequest("`id` cannot be changed.", param="id")
        if id is None and not _PROVIDER_ID.match(given):
            raise InvalidRequest(
                "`id` must be 1 to 128 letters, digits, dots, dashes or underscores.", param="id"
            )
        return given

    @staticmethod
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

    async def save_provider(
        self,
        change: ProviderChange,
        *,
        within: Iterable[Callable[[Transaction], None]] = (),
        also: Also | None = None,
    ) -> Provider:
        """Store a checked change; ``within`` (the credential's row) runs in the same commit.

        Raises:
            Conflict: the provider changed since the check.
        """
        async with self._lock:
            if self._providers.get(change.after.id) != change.before:
                raise Conflict(
                    f"Provider `{change.after.id}` was changed by somebody else meanwhile.",
                    hint="Look at it again and repeat the edit.",
                )

            def save(tx: Transaction) -> None:
                tx.execute(_PROVIDER_UPSERT, _provider_row(change.after, self._clock.now_ms()))
                for step in within:
                    step(tx)
                if also is not None:
                    before = public_provider(change.before) if change.before else None
                    also(tx, before, public_provider(change.after))
                tx.on_commit(lambda: self._adopt(provider=change.after))

            await self._db.write(save)
            return change.after

    async def delete_provider(
        self,
        provider_id: str,
        *,
        within: Iterable[Callable[[Transaction], None]] = (),
        also: Also | None = None,
    ) -> list[str]:
        """Delete a provider with its models; the ids of the models that went.

        Raises:
            NotFound: no such provider in the store.
        """
        async with self._lock:
            before = self._providers.get(provider_id)
            if before is None:
                raise _unknown("provider", provider_id, self._providers)
            models = sorted(m.id for m in self._models.values() if m.provider_id == provider_id)

            def delete(tx: Transaction) -> None:
                tx.execute("DELETE FROM models WHERE provider_id = :id", {"id": provider_id})
                tx.execute("DELETE FROM providers WHERE id = :id", {"id": provider_id})
                for step in within:
                    step(tx)
                if also is not None:
                    also(tx, public_provider(before) | {"models": models}, None)
                tx.on_commit(lambda: self._drop(models, provider_id))

            await self._db.write(delete)
            return models

    async def save_model(
        self,
        fields: ModelFields,
        *,
        id: str | None = None,  # noqa: A002
        also: Also | None = None,
    ) -> Model:
        """Add a model (no ``id``) or edit model ``id``.

        Raises:
            InvalidRequest, NotFound: naming the field and the way out.
        """
        async with self._lock:
            before, after = self._check_model(fields, id)

            def save(tx: Transaction) -> None:
                tx.execute(_MODEL_UPSERT, _model_row(after, self._clock.now_ms()))
                if also is not None:
                    also(tx, public_model(before) if before else None, public_model(after))
                tx.on_commit(lambda: self._adopt(model=after))

            await self._db.write(save)
            return self.current.models[after.id]

    async def edit_models(
        self, edits: Mapping[str, ModelFields], *, also: Also | None = None
    ) -> list[Model]:
        """Edit several models in one commit: all of them, or none; model id → its edit.

        ``also`` is told of all at once: model id → how it was, and how it is.

        Raises:
            InvalidRequest, NotFound: naming the field and the way out.
        """
        async with self._lock:
            checked = [self._check_model(fields, id_) for id_, fields in edits.items()]

            def save(tx: Transaction) -> None:
                now = self._clock.now_ms()
                tx.executemany(_MODEL_UPSERT, [_model_row(after, now) for _, after in checked])
                if also is not None:
                    before = {one.id: public_model(one) for one, _ in checked if one}
                    also(tx, before, {one.id: public_model(one) for _, one in checked})
                tx.on_commit(lambda: self._adopt_all([after for _, after in checked]))

            await self._db.write(save)
            return [self.current.models[id_] for id_ in edits]

    async def delete_model(self, model_id: str, *, also: Also | None = None) -> None:
        """Delete a model.

        Raises:
            NotFound: no such model in the store.
        """
        async with self._lock:
            before = self._models.get(model_id)
            if before is None:
                raise _unknown("model", model_id, self._models)

            def delete(tx: Transaction) -> None:
                tx.execute("DELETE FROM models WHERE id = :id", {"id": model_id})
                if also is not None:
                    also(tx, public_model(before), None)
                tx.on_commit(lambda: self._drop([model_id]))

            await self._db.write(delete)

    def _check_model(self, fields: ModelFields, id: str | None) -> tuple[Model | None, Model]:  # noqa: A002
        model_id = _given(fields.id, id or "")
        if not model_id:
            raise InvalidRequest("The field `id` is missing.", param="id")
        before = self._models.get(model_id)
        if id is not None:
            if model_id != id:
                raise InvalidRequest("`id` cannot be changed.", param="id")
            if before is None:
                raise _unknown("model", id, self._models)
        elif model_id == AUTO or model_id.startswith(f"{AUTO}:"):
            raise InvalidRequest(
                f"`id` {AUTO} asks for routing; a model cannot be called so.", param="id"
            )
        elif not _MODEL_ID.match(model_id):
            raise InvalidRequest(
                "`id` must start with a letter or digit; 1 to 200 letters, digits or ._:/@+-.",
                param="id",
            )
        base = before or Model(id=model_id, provider_id="")
        after = replace(base, **_changes(fields))
        if not after.provider_id:
            raise InvalidRequest(
                "The field `provider_id` is missing.",
                param="provider_id",
                hint="`tokenhubctl provider list` shows the providers.",
            )
        if after.provider_id not in self._providers:
            near = difflib.get_close_matches(after.provider_id, self._providers, n=1)
            raise InvalidRequest(
                f"`provider_id`: there is no provider `{after.provider_id[:64]}`.",
                param="provider_id",
                hint=f"Did you mean `{near[0]}`?" if near else "Add it with `provider add` first.",
            )
        _check_ranges(after)
        return before, after

    def _adopt(self, *, provider: Provider | None = None, model: Model | None = None) -> None:
        if provider is not None:
            self._providers[provider.id] = provider
        if model is not None:
            self._models[model.id] = model
        self._publish()

    def _adopt_all(self, models: Iterable[Model]) -> None:
        self._models |= {model.id: model for model in models}
        self._publish()

    def _drop(self, model_ids: Iterable[str], provider_id: str = "") -> None:
        for model_id in model_ids:
            self._models.pop(model_id, None)
        self._providers.pop(provider_id, None)
        self._publish()

    def _publish(self) -> None:
        providers = dict(sorted(self._providers.items()))
        if self._demo and not providers:
            providers = {DEMO_PROVIDER.id: DEMO_PROVIDER}
            models = {DEMO_MODEL.id: DEMO_MODEL}
        else:
            models = {
                id_: replace(model, prices=self._prices_of(model))
                for id_, model in sorted(self._models.items())
            }
        self._version += 1
        self.current = Catalog(version=self._version, providers=providers, models=models)
        for listener in self._listeners:
            listener(self.current)

    def _prices_of(self, model: Model) -> Prices:
        if model.input_per_1k or model.output_per_1k:
            return _manual(model)
        provider = self._providers[model.provider_id]
        found = self._prices.find(provider.type, model.name_upstream, provider.base_url)
        return found or Prices()


DEMO_MODEL = Model(
    id="demo",
    provider_id="demo",
    weight=5,
    max_context_tokens=32_000,
    input_per_1k="0",
    output_per_1k="0",
    source="runtime",
    prices=Prices(input=0, output=0, source="manual"),
)


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


def _manual(model: Model) -> Prices:
    """The admin's own or imported prices; unknown while only one of input and output is given."""
    if not (model.input_per_1k and model.output_per_1k):
        return Prices()
    read, write = model.cached_read_per_1k, model.cached_write_per_1k
    return Prices(
        input=parse_per_1k(model.input_per_1k, "input_per_1k"),
        output=parse_per_1k(model.output_per_1k, "output_per_1k"),
        cached_read=parse_per_1k(read, "cached_read_per_1k") if read else None,
        cached_write=parse_per_1k(write, "cached_write_per_1k") if write else None,
        source="litellm" if model.pricing_source == "litellm" else "manual",
    )


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
    if model.upstream_name and not _MODEL_ID.match(model.upstream_name):
        raise InvalidRequest("`upstream_name` is not a model name.", param="upstream_name")
    if model.pricing_source not in PRICING_SOURCES:
        raise InvalidRequest(
            f"`pricing_source` must be one of {', '.join(PRICING_SOURCES)}.",
            param="pricing_source",
        )


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is UNSET else value


def _unknown(noun: str, name: str, known: Iterable[str]) -> NotFound:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    shown = ", ".join(f"`{one}`" for one in near)
    return NotFound(
        f"There is no {noun} `{name[:128]}`.",
        code=f"{noun}_not_found",
        hint=f"Did you mean {shown}?" if near else f"`tokenhubctl {noun} list` shows them.",
    )


_PROVIDER_COLUMNS = "id, type, base_url, enabled, cred_store, api_version"
_PROVIDER_UPSERT = (
    f"INSERT INTO providers ({_PROVIDER_COLUMNS}, created_at, updated_at) "  # noqa: S608
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
_MODEL_COLUMNS = ", ".join(_MODEL_FIELDS)
_MODEL_CHANGES = ", ".join(f"{name} = excluded.{name}" for name in _MODEL_FIELDS[1:])
_MODEL_UPSERT = (
    f"INSERT INTO models ({_MODEL_COLUMNS}, created_at, updated_at) "  # noqa: S608
    f"VALUES ({', '.join(':' + f for f in _MODEL_FIELDS)}, :now, :now) "
    f"ON CONFLICT (id) DO UPDATE SET {_MODEL_CHANGES}, updated_at = excluded.updated_at"
)


def _provider_of(row: tuple[Any, ...]) -> Provider:
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


def _provider_row(provider: Provider, now_ms: int) -> dict[str, Any]:
    row = asdict(provider)
    del row["source"], row["origin"]
    return row | {"enabled": int(provider.enabled), "now": now_ms}


def _model_of(row: tuple[Any, ...]) -> Model:
    values = dict(zip(_MODEL_FIELDS, row, strict=True))
    for flag in ("enabled", "tools", "images"):
        values[flag] = bool(values[flag])
    return Model(**values)


def _model_row(model: Model, now_ms: int) -> dict[str, Any]:
    row = {
        name: int(value) if isinstance(value := getattr(model, name), bool) else value
        for name in _MODEL_FIELDS
    }
    return row | {"now": now_ms}
