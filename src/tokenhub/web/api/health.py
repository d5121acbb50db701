"""/healthz, /livez, /readyz: is the process alive, and could it answer a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.access.ledger import Ledger
    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.vault.vault import Vault
    from tokenhub.web.http import Request, Response


class HealthApi:
    """Three questions, none of which needs a credential.

    Args:
        catalog: what is configured.
        vault: whether credentials can be read.
        ledger: whether the books can be written.
        draining: whether the server is shutting down.
    """

    def __init__(
        self, catalog: CatalogStore, vault: Vault, ledger: Ledger, draining: Callable[[], bool]
    ) -> None:
        self._catalog = catalog
        self._vault = vault
        self._ledger = ledger
        self._draining = draining

    async def healthz(self, request: Request, _: None) -> Response:
        """``{"status", "adapters", "models"}``; 200 when both counts are above 0, else 503."""
        del request
        adapters, models = self._counts()
        ok = adapters > 0 and models > 0
        body = {"status": "ok" if ok else "unhealthy", "adapters": adapters, "models": models}
        return json_answer(body, 200 if ok else 503)

    async def livez(self, request: Request, _: None) -> Response:
        """The event loop answers; nothing else is asked, so a fresh install is alive."""
        del request
        return json_answer({"status": "ok"})

    async def readyz(self, request: Request, _: None) -> Response:
        """Whether a request could be answered now, each condition by name."""
        del request
        adapters, models = self._counts()
        needs_vault = any(
            one.enabled and one.cred_store == "vault"
            for one in self._catalog.current.providers.values()
        )
        checks = {
            "accepting": "no: shutting down" if self._draining() else "ok",
            "providers": "ok" if adapters else "no enabled provider: tokenhubctl provider add",
            "models": "ok" if models else "no model: tokenhubctl model add",
            "vault": (
                "locked: tokenhubctl vault unlock" if needs_vault and self._vault.locked else "ok"
            ),
            "books": (
                "cannot be written: see the server's log and `df`" if self._ledger.failing else "ok"
            ),
        }
        ready = all(state == "ok" for state in checks.values())
        return json_answer(
            {"status": "ok" if ready else "unready", "checks": checks}, 200 if ready else 503
        )

    def _counts(self) -> tuple[int, int]:
        catalog = self._catalog.current
        adapters = sum(provider.enabled for provider in catalog.providers.values())
        return adapters, len(catalog.models)
