"""/admin/v1/vault: unlock, lock, rotate, and the generic secrets."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import HubError, NotFound
from tokenhub.core.fields import decode_fields
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.vault.vault import Vault
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response

KIND = "secret"
_PREFIX = "secret:"

log = logging.getLogger(__name__)


class UnlockFields(msgspec.Struct, forbid_unknown_fields=True):
    """Body of unlock."""

    admin_password: str

    def __repr__(self) -> str:
        """Without the password."""
        return "UnlockFields()"


class RotateFields(msgspec.Struct, forbid_unknown_fields=True):
    """Body of rotate."""

    old_password: str
    new_password: str

    def __repr__(self) -> str:
        """Without the passwords."""
        return "RotateFields()"


class SecretFields(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a secret."""

    value: str

    def __repr__(self) -> str:
        """Without the value."""
        return "SecretFields()"


class VaultAdmin:
    """The vault; every attempt is audited, failed ones and reads too."""

    def __init__(self, vault: Vault, audit: Auditor) -> None:
        self._vault = vault
        self._audit = audit

    async def status(self, request: Request, _: None) -> Response:
        """Whether the vault exists, and is open."""
        del request
        return json_answer(
            {
                "enabled": self._vault.enabled,
                "initialized": self._vault.initialized,
                "locked": self._vault.locked,
                "damaged": self._vault.damaged,
            }
        )

    async def unlock(self, request: Request, _: None) -> Response:
        """Unlock; the first time, create."""
        fields = decode_fields(request.body, UnlockFields)
        created, locked = not self._vault.initialized, self._vault.locked
        audit = self._audit.entry(request, "vault.unlock", "vault")
        try:
            await self._vault.unlock(fields.admin_password.encode(), also=audit)
        except HubError as error:
            await self._audit.noted(request, "vault.unlock", "vault", error.code)
            raise
        if not locked:  # nothing was stored with it: the password was only checked
            await self._audit.noted(request, "vault.unlock", "vault", "already_unlocked")
        log.info("vault unlocked", extra={"request_id": request.id})
        return json_answer({"ok": True, "created": created})

    async def lock(self, request: Request, _: None) -> Response:
        """Forget the key."""
        if not self._vault.lock():
            return json_answer({"ok": True, "already_locked": True})
        await self._audit.noted(request, "vault.lock", "vault", "ok")
        return json_answer({"ok": True})

    async def rotate(self, request: Request, _: None) -> Response:
        """Change the password."""
        fields = decode_fields(request.body, RotateFields)
        try:
            await self._vault.rotate(
                fields.old_password.encode(),
                fields.new_password.encode(),
                also=self._audit.entry(request, "vault.rotate", "vault"),
            )
        except HubError as error:
            await self._audit.noted(request, "vault.rotate", "vault", error.code)
            raise
        return json_answer({"ok": True})

    async def secrets(self, request: Request, _: None) -> Response:
        """The names of the generic secrets."""
        del request
        names = [name.removeprefix(_PREFIX) for name in self._vault.names(KIND)]
        return json_answer({"secrets": names})

    async def secret(self, request: Request, _: None) -> Response:
        """One secret in clear; the read is audited."""
        key = request.params["key"]
        try:
            value = self._vault.get(_name(key), kind=KIND)
        except NotFound:
            raise _unknown(key) from None
        await self._audit.noted(request, "vault.secret.get", key, "ok")
        return json_answer({"key": key, "value": value.decode()})

    async def set_secret(self, request: Request, _: None) -> Response:
        """Store a secret."""
        fields = decode_fields(request.body, SecretFields)
        key = request.params["key"]
        await self._vault.put(
            _name(key),
            fields.value.encode(),
            kind=KIND,
            also=self._audit.entry(request, "vault.secret.set", key),
        )
        return json_answer({"ok": True, "key": key})

    async def delete_secret(self, request: Request, _: None) -> Response:
        """Delete a secret."""
        key = request.params["key"]
        audit = self._audit.entry(request, "vault.secret.delete", key)
        try:
            await self._vault.delete(_name(key), also=audit)
        except NotFound:
            raise _unknown(key) from None
        return json_answer({"ok": True, "key": key})


def _name(key: str) -> str:
    """What the vault calls the secret that the admin calls ``key``."""
    return _PREFIX + key


def _unknown(key: str) -> NotFound:
    return NotFound(
        f"There is no secret `{key[:128]}`.",
        code="secret_not_found",
        hint="`tokenhubctl vault secret list` shows them.",
    )
