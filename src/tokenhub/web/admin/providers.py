"""/admin/v1/providers: add, list, edit, delete, discover."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import asdict

from tokenhub.core.catalog import secret_name
from tokenhub.core.fields import decode_fields
from tokenhub.providers.catalog_fields import ProviderChange, ProviderFields
from tokenhub.providers.catalog_rows import public_provider
from tokenhub.providers.egress import parse_base_url
from tokenhub.web.admin.paging import page
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenhub.core.catalog import Provider
    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.providers.discovery import Discovered
    from tokenhub.vault.vault import Vault
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response

    Discover = Callable[[Provider], Awaitable[list[Discovered]]]


class ProviderAdmin:
    """Providers; a row and its vault secret change in one commit."""

    def __init__(
        self, catalog: CatalogStore, vault: Vault, discover: Discover, audit: Auditor
    ) -> None:
        self._catalog = catalog
        self._vault = vault
        self._discover = discover
        self._audit = audit

    async def list(self, request: Request, _: None) -> Response:
        """Every provider, keys never."""
        rows = [public_provider(one) for one in self._catalog.current.providers.values()]
        return json_answer(page(request, "items", rows))

    async def get(self, request: Request, _: None) -> Response:
        """One provider."""
        return json_answer(public_provider(self._catalog.provider(request.params["id"])))

    async def add(self, request: Request, _: None) -> Response:
        """Add a provider, or change the one with that id; fields left out stay."""
        fields = decode_fields(request.body, ProviderFields)
        provider = await self._save(request, self._catalog.check_provider(fields), "upsert")
        return _saved(provider, cred_store=provider.cred_store)

    async def edit(self, request: Request, _: None) -> Response:
        """Change the fields named."""
        fields = decode_fields(request.body, ProviderFields)
        change = self._catalog.check_provider(fields, id=request.params["id"])
        provider = await self._save(request, change, "patch")
        return _saved(provider)

    async def delete(self, request: Request, _: None) -> Response:
        """Delete a provider, its models and its vault row."""
        provider_id = request.params["id"]
        with self._vault.changes() as changes:
            changes.delete(secret_name(provider_id), missing_ok=True)
            models = await self._catalog.delete_provider(
                provider_id,
                within=[changes.apply],
                also=self._audit.entry(request, "provider.delete", provider_id),
            )
        return json_answer({"ok": True, "models_deleted": models})

    async def discover(self, request: Request, _: None) -> Response:
        """List the provider's own models, marking the registered ones; registers none."""
        provider = self._catalog.provider(request.params["id"])
        found = await self._discover(provider)
        registered = {
            model.name_at_provider
            for model in self._catalog.current.models.values()
            if model.provider_id == provider.id
        }
        models = [asdict(one) | {"registered": one.id in registered} for one in found]
        models.sort(key=lambda one: str(one["id"]))
        return json_answer({"provider_id": provider.id, "models": models, "total": len(models)})

    async def _save(self, request: Request, change: ProviderChange, verb: str) -> Provider:
        after = change.after
        with self._vault.changes() as changes:
            if change.credential is not None:
                changes.put(
                    secret_name(after.id),
                    change.credential.encode(),
                    kind="provider",
                    owner=after.id,
                    origin=after.origin,
                )
            elif change.drops_credential:
                changes.delete(secret_name(after.id), missing_ok=True)
            return await self._catalog.save_provider(
                change,
                within=[changes.apply],
                also=self._audit.entry(request, f"provider.{verb}", after.id),
            )


def _saved(provider: Provider, **more: str) -> Response:
    answer = {"ok": True, **more, "provider": public_provider(provider)}
    origin = parse_base_url(provider.base_url) if provider.base_url else None
    if origin is not None and not origin.tls and not origin.local:
        answer["warning"] = (
            f"Prompts, answers and the key go to {origin.host} unencrypted; use https:// if it "
            "is offered there."
        )
    return json_answer(answer)
