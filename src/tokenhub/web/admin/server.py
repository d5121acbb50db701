"""/admin/v1: the server itself: info, the admin token, the running catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from tokenhub import __version__
from tokenhub.access.admin_token import check_token
from tokenhub.core.errors import HubError
from tokenhub.core.fields import decode_fields
from tokenhub.providers.catalog_rows import public_model
from tokenhub.web.admin.paging import page
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.access.admin_token import AdminToken
    from tokenhub.core.catalog import Provider
    from tokenhub.core.clock import Clock
    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.vault.vault import Vault
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response


class TokenFields(msgspec.Struct, forbid_unknown_fields=True):
    """Body of admin-token/rotate."""

    token: str | UnsetType | None = UNSET

    def __repr__(self) -> str:
        """Without the token."""
        return "TokenFields()"


class ServerAdmin:
    """What runs here, and the token that governs it."""

    def __init__(
        self,
        catalog: CatalogStore,
        vault: Vault,
        token: AdminToken,
        audit: Auditor,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._vault = vault
        self._token = token
        self._audit = audit
        self._clock = clock
        self._started_ms = clock.now_ms()

    async def info(self, request: Request, _: None) -> Response:
        """Version, vault state and uptime."""
        del request
        return json_answer(
            {
                "tokenhub": "admin",
                "version": __version__,
                "vault_locked": self._vault.locked,
                "vault_initialized": self._vault.initialized,
                "uptime_ms": self._clock.now_ms() - self._started_ms,
            }
        )

    async def rotate_token(self, request: Request, _: None) -> Response:
        """A new admin token, random or given; the old one is dead when this answers."""
        fields = decode_fields(request.body, TokenFields)
        wanted = fields.token if isinstance(fields.token, str) else None
        if wanted is not None:
            check_token(wanted)
        # The token lies in a file, not in the database: its row comes first.
        await self._audit.noted(request, "admin_token.rotate", "admin", "ok")
        try:
            token = self._token.rotate(wanted)
        except (HubError, OSError) as error:
            how = error.code if isinstance(error, HubError) else "failed"
            await self._audit.noted(request, "admin_token.rotate", "admin", how or "refused")
            raise
        return json_answer({"ok": True, "token": token})

    async def engine(self, request: Request, _: None) -> Response:
        """The running catalog: models, and the adapters that serve them."""
        catalog = self._catalog.current
        rows = [public_model(model) for model in catalog.models.values()]
        serving = [one for one in catalog.providers.values() if one.enabled]
        return json_answer(
            page(request, "models", rows)
            | {
                "adapters": [one.id for one in serving],
                "adapter_info": [_adapter_info(one) for one in serving],
            }
        )


def _adapter_info(provider: Provider) -> dict[str, Any]:
    info = {"id": provider.id, "type": provider.type, "source": provider.source}
    if provider.base_url:
        info["health_endpoint"] = f"{provider.base_url}/v1/models"
    return info
