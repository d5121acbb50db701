"""Provider credentials and other secrets: encrypted at rest, readable while unlocked.

    absent ──unlock──► unlocked ──lock, idle──► locked ──unlock (right password)──► unlocked

Stored are the header (``envelope.Header``), one sealed row per secret, and a sealed manifest that
says which version of each row is the current one and which header goes with it. So a row that was
swapped, replayed or altered is refused, and so is an old header with an old password; a row that
was removed is only missing. A copy of the whole vault put back in its place is a restored backup
and cannot be told from one.

All methods are for the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from typing import TYPE_CHECKING, TypeVar

from tokenhub.core.errors import (
    Conflict,
    InvalidRequest,
    Unauthorized,
    VaultLocked,
)
from tokenhub.vault.changes import Changes, missing
from tokenhub.vault.envelope import (
    FLOOR,
    KEY_BYTES,
    KdfParams,
    VaultTampered,
    parse_header,
    wipe,
)
from tokenhub.vault.guesses import Guesses
from tokenhub.vault.rows import (
    RESTORE,
    SELECT_HEADER,
    SELECT_ROWS,
    UPDATE_MANIFEST,
    Manifest,
    Row,
    read_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Also, Database, Transaction
    from tokenhub.vault.session import Session

T = TypeVar("T")

MIN_PASSWORD = 8  # bytes
MAX_PASSWORD = 1024

_log = logging.getLogger(__name__)

_INSERT_HEADER = "INSERT INTO vault_header (id, header, manifest) VALUES (1, :header, :manifest)"
_UPDATE_HEADER = "UPDATE vault_header SET header = :header, manifest = :manifest WHERE id = 1"


class Vault:
    """The vault of one database. Make it with ``open``.

    Attributes:
        on_change: called with ``locked`` or ``unlocked``, as it is from now on, and the reason: who
            or what locked it, ``created`` or ``admin`` at an unlock, ``rotated``.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        *,
        enabled: bool,
        auto_lock_ms: int,
        kdf: KdfParams,
        floor: KdfParams,
    ) -> None:
        self._db = db
        self._clock = clock
        self._enabled = enabled
        self._idle_limit = auto_lock_ms / 1000 if auto_lock_ms else math.inf
        self._kdf = kdf
        self._floor = floor
        self._stored = False
        self._rows: dict[str, Row] = {}
        self._session: Session | None = None
        self._last_use = 0.0
        self._guesses = Guesses(clock)
        self.on_change: list[Callable[[str, str], None]] = []

    @classmethod
    async def open(
        cls,
        db: Database,
        clock: Clock,
        *,
        enabled: bool = True,
        auto_lock_ms: int = 1_800_000,
        kdf: KdfParams = FLOOR,
        floor: KdfParams = FLOOR,
    ) -> Vault:
        """The vault as stored, locked.

        ``auto_lock_ms`` is the time without use after which it locks itself, 0 = never. ``kdf`` is
        the cost of new headers; a header cheaper than ``floor`` is refused at unlock.
        """
        if not kdf.reaches(floor):
            raise ValueError("kdf is weaker than floor")
        vault = cls(db, clock, enabled=enabled, auto_lock_ms=auto_lock_ms, kdf=kdf, floor=floor)
        if enabled:
            vault._stored = bool(await db.read(SELECT_HEADER))
            vault._rows = read_rows(await db.read(SELECT_ROWS), "")
        return vault

    @property
    def enabled(self) -> bool:
        """Whether this server has a vault at all."""
        return self._enabled

    @property
    def initialized(self) -> bool:
        """Whether a first unlock has created it."""
        return self._stored

    @property
    def locked(self) -> bool:
        """Whether secrets cannot be read now; a disabled vault is never locked."""
        return self._enabled and self._session is None

    @property
    def damaged(self) -> list[str]:
        """Names of secrets that were changed outside the vault, as found by the last unlock."""
        return sorted(name for name, row in self._rows.items() if not row.intact)

    async def unlock(self, password: bytes, *, also: Also | None = None) -> None:
        """Unlock; the first unlock creates the vault; on an unlocked vault only verify.

        Goes on to its end when the caller is cancelled: a guess once begun is counted.

        Raises:
            Unauthorized: ``wrong_password``; nothing has changed.
            RateLimited: too many wrong passwords lately, or too many checks waiting.
            VaultTampered: the stored vault was changed outside the vault.
            Conflict: the vault is disabled.
        """
        self._require_enabled()
        if len(password) < MIN_PASSWORD:
            raise Unauthorized(
                f"A vault password has {MIN_PASSWORD} bytes or more.", code="wrong_password"
            )
        _check_length(password, "admin_password")
        await self._guesses.one_at_a_time(lambda: self._unlock(password, also))

    async def rotate(self, old: bytes, new: bytes, *, also: Also | None = None) -> None:
        """Change the password; the secrets stay as they are, and the vault locked or unlocked.

        Raises:
            InvalidRequest: the new password is too short, too long or the old one.
            Unauthorized, RateLimited, VaultTampered: as ``unlock``.
            Conflict: the vault is disabled or was never unlocked.
        """
        self._require_enabled()
        if len(new) < MIN_PASSWORD:
            raise InvalidRequest(
                f"The new password needs {MIN_PASSWORD} bytes or more.", param="new_password"
            )
        if old == new:
            raise InvalidRequest("The new password is the old one.", param="new_password")
        _check_length(new, "new_password")
        _check_length(old, "old_password")
        if not self._stored:
            raise Conflict(
                "The vault has no password yet.",
                code="vault_not_initialized",
                hint="The first `tokenhubctl vault unlock` sets it.",
            )
        await self._guesses.one_at_a_time(lambda: self._rotate(old, new, also))

    def lock(self, reason: str = "admin") -> bool:
        """Forget the key; False when there was none to forget."""
        session = self._session
        if session is None:
            return False
        self._session = None
        session.end()
        self._tell(reason)
        return True

    def check_idle(self) -> float:
        """Lock if nobody used the vault for the idle time; seconds until this is due again.

        The application calls it by a timer; infinite = never.
        """
        if self._session is None:
            return self._idle_limit
        left = self._idle_limit - (self._clock.monotonic() - self._last_use)
        if left > 0:
            return left
        self.lock("idle")
        return self._idle_limit

    def get(self, name: str, kind: str, owner: str = "", origin: str = "") -> bytes:
        """A secret, decrypted for this call; counts as use.

        Raises:
            VaultLocked: the vault is locked, or was idle for too long.
            NotFound: there is no such secret of this kind and owner.
            Conflict: ``credential_rebind_required``: it is bound to another origin.
            VaultTampered: it was changed outside the vault.
        """
        session, now = self._session, self._clock.monotonic()
        if session is None or now - self._last_use >= self._idle_limit:
            session = self._unlocked()
        self._last_use = now
        row = self._rows.get(name)
        if row is None or row.kind != kind or row.owner != owner:
            raise missing(name)
        if row.origin != origin:
            raise Conflict(
                f"The stored key is bound to {row.origin or 'no origin'}, so it is not sent to "
                f"{origin or 'none'}.",
                code="credential_rebind_required",
                hint="Set the provider's api_key again.",
            )
        if not row.intact:
            raise _tampered(name)
        try:
            return session.open(row.sealed)
        except VaultTampered:
            raise _tampered(name) from None

    def names(self, kind: str) -> list[str]:
        """The names of all secrets of a kind, sorted.

        Raises:
            VaultLocked: the vault is locked.
        """
        self._unlocked()
        return sorted(row.name for row in self._rows.values() if row.kind == kind)

    def changes(self) -> Changes:
        """A set of puts and deletes to run inside a transaction of the caller."""
        session = self._session
        return Changes(self._rows, session, self._unlocked, self._clock.now_ms())

    async def put(
        self,
        name: str,
        value: bytes,
        *,
        kind: str,
        owner: str = "",
        origin: str = "",
        also: Also | None = None,
    ) -> None:
        """Store a secret, new or in place of the old one.

        Raises:
            InvalidRequest: name or value empty or too long.
            VaultLocked, Conflict: locked, disabled.
        """
        with self.changes() as changes:
            changes.put(name, value, kind=kind, owner=owner, origin=origin, also=also)
            await self._db.write(changes.apply)

    async def delete(self, name: str, *, also: Also | None = None) -> None:
        """Delete a secret.

        Raises:
            NotFound: there is none of that name.
            VaultLocked: the vault is locked.
        """
        self._unlocked()
        with self.changes() as changes:
            changes.delete(name, also=also)
            await self._db.write(changes.apply)

    async def _unlock(self, password: bytes, also: Also | None) -> None:
        if not self._stored:
            await self._create(password, also)
            return
        from tokenhub.vault.session import Session, unwrap  # noqa: PLC0415  # loads cryptography

        text = await self._header()
        header = parse_header(text, self._floor)
        dek = await _in_thread(unwrap, header, password)
        if self._session is not None:
            wipe(dek)
            return
        session = Session(header.vault_id, dek)

        def admit(tx: Transaction) -> None:
            manifest = session.open_manifest(_manifest_beside(tx, text))
            if manifest.header_version != header.version:
                raise _old_header()
            rows = read_rows(tx.execute(SELECT_ROWS), header.vault_id)
            for row in rows.values():
                row.intact = manifest.lists(row) and session.can_open(row)
            if manifest.forget_all_but(rows):
                tx.execute(UPDATE_MANIFEST, {"manifest": session.seal_manifest(manifest)})
            if also is not None:
                also(tx, {"locked": True}, {"locked": False})
            tx.on_commit(lambda: self._begin(session, rows))

        await self._write_or_end(session, admit)
        if self.damaged:
            _log.error("Vault secrets were changed outside the vault: %s", ", ".join(self.damaged))

    async def _create(self, password: bytes, also: Also | None) -> None:
        from tokenhub.vault.session import Session, new_header  # noqa: PLC0415  # as above

        dek = bytearray(os.urandom(KEY_BYTES))
        vault_id = os.urandom(16).hex()
        header = await _in_thread(new_header, password, dek, vault_id, 1, self._kdf)
        session = Session(vault_id, dek)
        manifest = session.seal_manifest(Manifest())

        def create(tx: Transaction) -> None:
            tx.execute(_INSERT_HEADER, {"header": header, "manifest": manifest})
            if also is not None:
                also(tx, None, {"locked": False})
            tx.on_commit(lambda: self._begin(session, {}))

        await self._write_or_end(session, create)

    async def _rotate(self, old: bytes, new: bytes, also: Also | None) -> None:
        from tokenhub.vault.session import Session, new_header, unwrap  # noqa: PLC0415  # as above

        before = await self._header()
        header = parse_header(before, self._floor)
        dek = await _in_thread(unwrap, header, old)
        session = Session(header.vault_id, dek)
        try:
            version = header.version + 1
            after = await _in_thread(new_header, new, dek, header.vault_id, version, self._kdf)

            def swap(tx: Transaction) -> None:
                manifest = session.open_manifest(_manifest_beside(tx, before))
                if manifest.header_version != header.version:
                    raise _old_header()
                manifest.header_version = version
                sealed = session.seal_manifest(manifest)
                tx.execute(_UPDATE_HEADER, {"header": after, "manifest": sealed})
                if also is not None:
                    also(tx, {"version": header.version}, {"version": version})
                tx.on_commit(lambda: self._tell("rotated"))

            await self._db.write(swap)
        finally:
            session.end()

    async def _header(self) -> str:
        found = await self._db.read(SELECT_HEADER)
        if not found:
            raise VaultTampered("The vault's header is gone from the database.", hint=RESTORE)
        text: str = found[0][0]
        return text

    async def _write_or_end(self, session: Session, fn: Callable[[Transaction], None]) -> None:
        try:
            await self._db.write(fn)
        except BaseException:
            session.end()
            raise

    def _begin(self, session: Session, rows: dict[str, Row]) -> None:
        if not session.alive:  # the attempt was broken off between its commit and this
            return
        created, self._stored = not self._stored, True
        self._rows.clear()
        self._rows.update(rows)
        self._session = session
        self._last_use = self._clock.monotonic()
        self._tell("created" if created else "admin")

    def _tell(self, reason: str) -> None:
        for callback in self.on_change:
            callback("locked" if self.locked else "unlocked", reason)

    def _unlocked(self) -> Session:
        """The session, noting the use."""
        now = self._clock.monotonic()
        if self._session is not None and now - self._last_use >= self._idle_limit:
            self.lock("idle")
        if self._session is None:
            self._require_enabled()
            if not self._stored:
                raise VaultLocked("There is no vault yet; its first unlock creates it.")
            raise VaultLocked
        self._last_use = now
        return self._session

    def _require_enabled(self) -> None:
        if not self._enabled:
            raise Conflict(
                "This server runs without a vault.",
                code="vault_disabled",
                hint="Start it with TOKENHUB_VAULT_ENABLED=true.",
            )


def _manifest_beside(tx: Transaction, header: str) -> str:
    """The stored manifest, if the header beside it is still the one we checked."""
    for text, manifest in tx.execute(SELECT_HEADER):
        if text == header:
            found: str = manifest
            return found
    raise Conflict("The vault's password was changed by somebody else meanwhile.")


def _old_header() -> VaultTampered:
    return VaultTampered("The vault's header is an old one put back.", hint=RESTORE)


def _check_length(password: bytes, param: str) -> None:
    if len(password) > MAX_PASSWORD:
        raise InvalidRequest(f"A password has at most {MAX_PASSWORD} bytes.", param=param)


def _tampered(name: str) -> VaultTampered:
    return VaultTampered(
        f"The stored secret `{name}` was changed outside the vault, so it is not used.",
        hint="Set it again.",
    )


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    """Argon2 releases the GIL: the loop stays free while it runs."""
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)
