"""Migrations: numbered, once each, all or nothing, and never over a schema we do not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import pytest

from tokenhub.core.clock import SystemClock
from tokenhub.storage import migrate
from tokenhub.storage.database import StorageRefused
from tokenhub.storage.migrate import Migration
from tokenhub.storage.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from pathlib import Path

ONE = Migration(1, "one", "CREATE TABLE one (a TEXT); INSERT INTO one VALUES ('kept');")
TWO = Migration(2, "two", "CREATE TABLE two (b TEXT);")


async def opened(tmp_path, *migrations):
    db = await SqliteDatabase.open(tmp_path / "m.sqlite", SystemClock(), migrations)
    tables = {row[0] for row in db.read_now("SELECT name FROM sqlite_schema WHERE type='table'")}
    await db.close()
    return tables


async def test_each_runs_once_and_new_ones_follow(tmp_path):
    assert await opened(tmp_path, ONE) == {"schema_migrations", "one"}
    assert await opened(tmp_path, ONE) == {"schema_migrations", "one"}
    assert await opened(tmp_path, ONE, TWO) == {"schema_migrations", "one", "two"}


async def test_one_that_was_skipped_is_caught_up(tmp_path):
    await opened(tmp_path, TWO)
    assert await opened(tmp_path, ONE, TWO) == {"schema_migrations", "one", "two"}


async def test_a_failing_one_leaves_nothing_behind(tmp_path):
    bad = Migration(2, "bad", "CREATE TABLE two (b TEXT); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(StorageRefused):
        await opened(tmp_path, ONE, bad)
    assert await opened(tmp_path, ONE) == {"schema_migrations", "one"}
    assert await opened(tmp_path, ONE, TWO) == {"schema_migrations", "one", "two"}


async def test_a_newer_schema_is_refused_with_advice(tmp_path):
    await opened(tmp_path, ONE, TWO)
    with pytest.raises(StorageRefused, match=r"0002 \(two\).*newer TokenHub"):
        await opened(tmp_path, ONE)


async def test_a_changed_migration_is_refused(tmp_path):
    await opened(tmp_path, ONE)
    with pytest.raises(StorageRefused, match="not the one this release"):
        await opened(tmp_path, Migration(1, "one", ONE.sql + " "))


async def test_a_database_of_somebody_else_is_refused_untouched(tmp_path):
    path = tmp_path / "m.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE photos (a)")
    connection.close()
    with pytest.raises(StorageRefused, match="not made by TokenHub"):
        await opened(tmp_path, ONE)


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "m.sqlite").write_bytes(b"this is a text file" * 100)
    with pytest.raises(StorageRefused, match="cannot be opened"):
        await opened(tmp_path, ONE)


def write(folder: Path, *names):
    for name in names:
        (folder / name).write_text("SELECT 1")
    return folder.iterdir()


def test_files_are_taken_in_the_order_of_their_numbers(tmp_path):
    files = write(tmp_path, "0010_c.sql", "0002_b.sql", "0001_a.sql", "README.md")
    assert [one.name for one in migrate.load(files)] == ["a", "b", "c"]


@pytest.mark.parametrize("names", [("1_a.sql",), ("0001-a.sql",), ("0001_a.sql", "0001_b.sql")])
def test_bad_names_and_double_numbers_are_refused(tmp_path, names):
    with pytest.raises(ValueError):
        migrate.load(write(tmp_path, *names))


def test_the_shipped_ones_begin_with_the_first():
    assert migrate.shipped()[0].version == 1
    assert migrate.shipped()[0].name == "initial"
