"""Which migrations a store still needs, and whether we may open it at all.

Migrations are the numbered files ``migrations/NNNN_name.sql``: append-only, each run once in a
transaction of its own and remembered with its checksum in ``schema_migrations``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokenhub.storage.database import StorageRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenhub.storage.database import Rows

HISTORY = """
CREATE TABLE schema_migrations (
    version BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at BIGINT NOT NULL,
    checksum TEXT NOT NULL
)
"""
RECORD = """
INSERT INTO schema_migrations (version, name, applied_at, checksum)
VALUES (:version, :name, :applied_at, :checksum)
"""
APPLIED = "SELECT version, name, checksum FROM schema_migrations ORDER BY version"

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL text, hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped() -> list[Migration]:
    """The migrations of this release, in order."""
    return load((Path(__file__).parent / "migrations").iterdir())


def load(files: Iterable[Path]) -> list[Migration]:
    """The migrations among some files, in order.

    Raises:
        ValueError: an SQL file whose name is not ``NNNN_name.sql``, or a number used twice.
    """
    found: dict[int, Migration] = {}
    for file in files:
        if not file.name.endswith(".sql"):
            continue
        if (match := _FILE_NAME.fullmatch(file.name)) is None:
            raise ValueError(f"{file.name}: a migration is named NNNN_name.sql")
        version = int(match[1])
        if version in found:
            raise ValueError(f"{file.name}: number {version} is taken by {found[version].name}")
        found[version] = Migration(version, match[2], file.read_text(encoding="utf-8"))
    return [found[version] for version in sorted(found)]


def pending(known: Iterable[Migration], applied: Rows) -> list[Migration]:
    """The known migrations that a store with this history (rows of ``APPLIED``) still needs.

    Raises:
        StorageRefused: the store was written by a newer release, or an applied migration is not
            the one we know.
    """
    by_version = {migration.version: migration for migration in known}
    for version, name, checksum in applied:
        migration = by_version.pop(version, None)
        if migration is None:
            raise StorageRefused(
                f"The database has schema step {version:04} ({name}), which this release does not "
                "know: a newer TokenHub wrote it. Start that release or a later one, or restore "
                "the backup made before the upgrade."
            )
        if migration.checksum != checksum:
            raise StorageRefused(
                f"Schema step {version:04} ({name}) in the database is not the one this release "
                "ships: one of the two was changed after its release. Install the release that "
                "wrote the database, or restore a backup."
            )
    return [by_version[version] for version in sorted(by_version)]
