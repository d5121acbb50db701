"""The stored providers and models: checked, kept, and published as one immutable Catalog."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from tokenhub.core.catalog import Catalog, Model, Prices, Provider
from tokenhub.core.errors import Conflict
from tokenhub.core.money import parse_per_1k
from tokenhub.providers.catalog_fields import (
    ModelFields,
    ProviderChange,
    ProviderFields,
    check_model,
    check_provider,
    unknown,
)
from tokenhub.providers.catalog_rows import (
    MODEL_COLUMNS,
    MODEL_UPSERT,
    PROVIDER_COLUMNS,
    PROVIDER_UPSERT,
    model_of,
    model_row,
    provider_of,
    provider_row,
    public_model,
    public_provider,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Also, Database, Transaction

DEMO_PROVIDER = Provider(id="demo", type="demo", source="runtime", origin="demo:")


class PriceBook(Protocol):
    """Where the price of a model comes from when the admin set none."""

    def find(self, provider_type: str, model: str, base_url: str = "") -> Prices | None:
        """The catalogue's prices, or None where it does not know the model."""
        ...


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
        for row in self._db.read_now(f"SELECT {PROVIDER_COLUMNS} FROM providers"):  # noqa: S608
            provider = provider_of(row)
            self._providers[provider.id] = provider
        for row in self._db.read_now(f"SELECT {MODEL_COLUMNS} FROM models"):  # noqa: S608
            model = model_of(row)
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

    def refresh(self) -> None:
        """Publish again: prices of the catalogue may hold since today."""
        self._publish()

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
            raise unknown("provider", provider_id, self.current.providers)
        return found

    def model(self, model_id: str) -> Model:
        """One model.

        Raises:
            NotFound: with the nearest ids.
        """
        found = self.current.models.get(model_id)
        if found is None:
            raise unknown("model", model_id, self.current.models)
        return found

    def check_provider(self, fields: ProviderFields, *, id: str | None = None) -> ProviderChange:  # noqa: A002
        """Check an addition (no ``id``) or an edit of provider ``id``; changes nothing.

        Raises:
            InvalidRequest, NotFound, Conflict: naming the field and the way out.
        """
        return check_provider(fields, self._providers, id=id)

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
                tx.execute(PROVIDER_UPSERT, provider_row(change.after, self._clock.now_ms()))
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
                raise unknown("provider", provider_id, self._providers)
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
            before, after = check_model(fields, self._models, self._providers, id=id)

            def save(tx: Transaction) -> None:
                tx.execute(MODEL_UPSERT, model_row(after, self._clock.now_ms()))
                if also is not None:
                    also(tx, self._shown(before) if before else None, self._shown(after))
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
            checked = [
                check_model(fields, self._models, self._providers, id=id_)
                for id_, fields in edits.items()
            ]

            def save(tx: Transaction) -> None:
                now = self._clock.now_ms()
                tx.executemany(MODEL_UPSERT, [model_row(after, now) for _, after in checked])
                if also is not None:
                    before = {one.id: self._shown(one) for one, _ in checked if one}
                    also(tx, before, {one.id: self._shown(one) for _, one in checked})
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
                raise unknown("model", model_id, self._models)

            def delete(tx: Transaction) -> None:
                tx.execute("DELETE FROM models WHERE id = :id", {"id": model_id})
                if also is not None:
                    also(tx, self._shown(before), None)
                tx.on_commit(lambda: self._drop([model_id]))

            await self._db.write(delete)

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
            models = {id_: self._priced(model) for id_, model in sorted(self._models.items())}
        self._version += 1
        self.current = Catalog(version=self._version, providers=providers, models=models)
        for listener in self._listeners:
            listener(self.current)

    def _priced(self, model: Model) -> Model:
        return replace(model, prices=self._prices_of(model))

    def _shown(self, model: Model) -> dict[str, Any]:
        return public_model(self._priced(model))

    def _prices_of(self, model: Model) -> Prices:
        if model.input_per_1k or model.output_per_1k:
            return _manual(model)
        provider = self._providers[model.provider_id]
        found = self._prices.find(provider.type, model.name_at_provider, provider.base_url)
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
