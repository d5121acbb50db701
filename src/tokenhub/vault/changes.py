"""Puts and deletes of secrets, to run inside a transaction of the caller."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tokenhub.core.errors import InvalidRequest, NotFound, VaultLocked
from tokenhub.vault.rows import (
    SELECT_HEADER,
    UPDATE_MANIFEST,
    Row,
    associated_data,
    one_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tokenhub.storage.database import Also, Transaction
    from tokenhub.vault.session import Session

MAX_NAME = 256
MAX_VALUE = 64 * 1024

_UPSERT_ROW = """
INSERT INTO vault_secrets (name, kind, owner, origin, version, sealed, updated_at)
VALUES (:name, :kind, :owner, :origin, :version, :sealed, :now)
ON CONFLICT (name) DO UPDATE SET
    kind = excluded.kind, owner = excluded.owner, origin = excluded.origin,
    version = excluded.version, sealed = excluded.sealed, updated_at = excluded.updated_at
"""
_DELETE_ROW = "DELETE FROM vault_secrets WHERE name = :name"


class Secret:
    """Bytes that no repr, log line or traceback shows."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"


class Changes:
    """Puts and deletes that take effect with a transaction of the caller.

    Use it as a context manager and hand ``apply`` to the transaction; leaving the block forgets
    the values. What ``get`` answers changes on the loop right after the commit.
    """

    def __init__(
        self,
        rows: dict[str, Row],
        session: Session | None,
        unlocked: Callable[[], Session],
        now_ms: int,
    ) -> None:
        self._rows = rows
        self._session = session
        self._unlocked = unlocked
        self._now_ms = now_ms
        self._steps: list[_Put | _Delete] = []

    def __enter__(self) -> Changes:  # noqa: PYI034  # not made for subclasses
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A caller that was cancelled leaves while its transaction is still queued and needs them.
        if kind is None:
            self._steps = []

    def put(
        self,
        name: str,
        value: bytes,
        *,
        kind: str,
        owner: str = "",
        origin: str = "",
        also: Also | None = None,
    ) -> None:
        """Store a secret; errors as ``Vault.put``, at once."""
        session = self._unlocked()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidRequest(
                f"The name must have 1 to {MAX_NAME} visible characters.", param="name"
            )
        if not 0 < len(value) <= MAX_VALUE:
            raise InvalidRequest(f"The value must have 1 to {MAX_VALUE} bytes.", param="value")
        self._steps.append(_Put(name, kind, owner, origin, Secret(value), session, also))

    def delete(self, name: str, *, missing_ok: bool = False, also: Also | None = None) -> None:
        """Delete a secret; works on a locked vault too.

        Raises:
            NotFound: there is none of that name, unless ``missing_ok``.
        """
        if not missing_ok and name not in self._rows:
            raise missing(name)
        self._steps.append(_Delete(name, self._session, also))

    def apply(self, tx: Transaction) -> None:
        """What the caller's transaction must call, on the writer's thread.

        Raises:
            VaultLocked: the vault was locked in between; the transaction must fail.
        """
        for step in self._steps:
            step.run(tx, self._rows, self._now_ms)


class _Put:
    """One secret to be stored."""

    def __init__(
        self,
        name: str,
        kind: str,
        owner: str,
        origin: str,
        value: Secret,
        session: Session,
        also: Also | None,
    ) -> None:
        self._about = (name, kind, owner, origin)
        self._value = value
        self._session = session
        self._also = also

    def run(self, tx: Transaction, rows: dict[str, Row], now_ms: int) -> None:
        """Seal and store under the next version; runs on the writer's thread."""
        session = self._session
        name, kind, owner, origin = self._about
        [(_, text)] = tx.execute(SELECT_HEADER)
        manifest = session.open_manifest(text)
        before = one_row(tx, name, session.vault_id)
        manifest.generation += 1
        version = manifest.versions[name] = manifest.generation
        associated = associated_data(session.vault_id, name, kind, owner, origin, version)
        sealed = session.seal(self._value.reveal(), associated)
        row = Row(session.vault_id, name, kind, owner, origin, version, sealed)
        tx.execute(_UPSERT_ROW, row.shown() | {"sealed": sealed, "now": now_ms})
        tx.execute(UPDATE_MANIFEST, {"manifest": session.seal_manifest(manifest)})
        if self._also is not None:
            self._also(tx, before.shown() if before else None, row.shown())
        tx.on_commit(lambda: rows.update({name: row}))


class _Delete:
    """One secret to be deleted."""

    def __init__(self, name: str, session: Session | None, also: Also | None) -> None:
        self._name = name
        self._session = session
        self._also = also

    def run(self, tx: Transaction, rows: dict[str, Row], _: int) -> None:
        """Delete the row, and while the vault is unlocked its line of the manifest."""
        before = one_row(tx, self._name, "")
        tx.execute(_DELETE_ROW, {"name": self._name})
        if self._session is not None:
            with suppress(VaultLocked):  # locked meanwhile: the next unlock forgets the line
                self._forget(tx, self._session)
        if self._also is not None:
            self._also(tx, before.shown() if before else None, None)
        tx.on_commit(lambda: rows.pop(self._name, None))

    def _forget(self, tx: Transaction, session: Session) -> None:
        [(_, text)] = tx.execute(SELECT_HEADER)
        manifest = session.open_manifest(text)
        if manifest.versions.pop(self._name, None) is not None:
            tx.execute(UPDATE_MANIFEST, {"manifest": session.seal_manifest(manifest)})


def missing(name: str) -> NotFound:
    """The error for a name that the vault does not know."""
    return NotFound(f"The vault has no secret `{name}`.", hint="Set it again, or list the names.")
