"""The stored form of the vault: rows, the manifest that says which are current, the data key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.vault.envelope import Sealed

if TYPE_CHECKING:
    from collections.abc import Container

    from tokenhub.storage.database import Rows, Transaction

RESTORE = "Restore the database from a backup; see the guide on the vault."

SELECT_HEADER = "SELECT header, manifest FROM vault_header WHERE id = 1"
UPDATE_MANIFEST = "UPDATE vault_header SET manifest = :manifest WHERE id = 1"
SELECT_ROWS = "SELECT name, kind, owner, origin, version, sealed FROM vault_secrets"


class Row:
    """A stored secret: in clear what it is, sealed what it says."""

    __slots__ = ("intact", "kind", "name", "origin", "owner", "sealed", "version")

    def __init__(
        self, vault_id: str, name: str, kind: str, owner: str, origin: str, version: int, text: str
    ) -> None:
        self.name = name
        self.kind = kind
        self.owner = owner
        self.origin = origin
        self.version = version
        self.sealed = Sealed(text, associated_data(vault_id, name, kind, owner, origin, version))
        self.intact = True

    def shown(self) -> dict[str, Any]:
        """Everything but the secret."""
        return {
            "name": self.name,
            "kind": self.kind,
            "owner": self.owner,
            "origin": self.origin,
            "version": self.version,
        }


class Manifest(msgspec.Struct):
    """Which rows are the current ones. ``generation`` only grows, so no version comes twice."""

    generation: int = 0
    header_version: int = 1
    versions: dict[str, int] = {}

    def lists(self, row: Row) -> bool:
        """Whether a row is the current one of its name."""
        return self.versions.get(row.name) == row.version

    def forget_all_but(self, names: Container[str]) -> bool:
        """Drop the lines of rows that are gone; whether there were any."""
        gone = [name for name in self.versions if name not in names]
        for name in gone:
            del self.versions[name]
        return bool(gone)


def read_rows(stored: Rows, vault_id: str) -> dict[str, Row]:
    """The result of ``SELECT_ROWS`` by name."""
    return {row[0]: Row(vault_id, *row) for row in stored}


def one_row(tx: Transaction, name: str, vault_id: str) -> Row | None:
    """One stored row."""
    found = tx.execute(SELECT_ROWS + " WHERE name = :name", {"name": name})
    return Row(vault_id, *found[0]) if found else None


def associated_data(
    vault_id: str, name: str, kind: str, owner: str, origin: str, version: int
) -> bytes:
    """What a sealed secret is bound to; JSON, so that no two sets of values look alike."""
    return msgspec.json.encode(["secret", vault_id, name, kind, owner, origin, version])
