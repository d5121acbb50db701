"""The credentials file: providers and models to add at start, once; edits made later win.

``<data dir>/credentials``, JSON: ``{"providers": [{id, type, base_url, api_key, enabled}],
"models": [{id, provider_id, weight, ...}]}``. What the store already knows is left alone, so the
file never undoes an admin's edit. Keys go into the vault, which must be unlocked for it. Each
addition has its row in the audit trail, as an admin's has.
"""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.catalog import secret_name
from tokenhub.core.errors import HubError
from tokenhub.core.fields import decode_fields
from tokenhub.providers.catalog_fields import ModelFields, ProviderFields

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.telemetry.audit import Audit
    from tokenhub.vault.vault import Vault

log = logging.getLogger(__name__)

MAX_FILE = 4 * 2**20


class Contents(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    providers: list[ProviderFields] = []
    models: list[ModelFields] = []


class CredentialsFile:
    """Adds what the file names and the store does not know."""

    def __init__(self, catalog: CatalogStore, vault: Vault, audit: Audit) -> None:
        self._catalog = catalog
        self._vault = vault
        self._audit = audit

    async def load(self, path: Path) -> int:
        """Read the file; how many providers and models were added.

        A file that others can read, or that cannot be understood, is left alone with a warning:
        the server starts without it.
        """
        contents = _read(path)
        if contents is None:
            return 0
        added = 0
        for provider in contents.providers:
            added += await self._guarded(str(provider.id), self._add_provider(provider))
        for model in contents.models:
            added += await self._guarded(str(model.id), self._add_model(model))
        if added:
            self._audit.own("credentials.import", str(path), f"{added} added")
            log.info("%s: %d providers and models added; the file may be removed.", path, added)
        return added

    async def _guarded(self, name: str, adding: Coroutine[None, None, bool]) -> int:
        try:
            return int(await adding)
        except HubError as error:
            log.warning("credentials file: `%s` was not added: %s", name[:128], error.message)
            return 0

    async def _add_provider(self, fields: ProviderFields) -> bool:
        if fields.id in self._catalog.stored_providers:
            return False
        change = self._catalog.check_provider(fields)
        with self._vault.changes() as changes:
            if change.credential is not None:
                changes.put(
                    secret_name(change.after.id),
                    change.credential.encode(),
                    kind="provider",
                    owner=change.after.id,
                    origin=change.after.origin,
                )
            await self._catalog.save_provider(
                change,
                within=[changes.apply],
                also=self._audit.own_entry("provider.upsert", change.after.id),
            )
        return True

    async def _add_model(self, fields: ModelFields) -> bool:
        if fields.id in self._catalog.stored_models:
            return False
        audit = self._audit.own_entry("model.upsert", str(fields.id))
        await self._catalog.save_model(fields, also=audit)
        return True


def _read(path: Path) -> Contents | None:
    try:
        info = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_size > MAX_FILE:
        log.warning("%s is not read: it must be a plain file that only its owner can read.", path)
        return None
    try:
        return decode_fields(path.read_bytes(), Contents)
    except (OSError, HubError) as error:
        log.warning("%s is not read: %s", path, error)
        return None
