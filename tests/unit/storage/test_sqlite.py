"""SQLite: settings, grouping, faults, kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import apsw
import pytest

from tokenhub.core.clock import SystemClock
from tokenhub.storage import sqlite
from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.sqlite import SqliteDatabase, require_sqlite

if TYPE_CHECKING:
    from pathlib import Path


async def opened(tmp_path, name="s.sqlite"):
    db = await SqliteDatabase.open(tmp_path / name, SystemClock())
    await db.write(lambda tx: tx.execute("CREATE TABLE jar (n INTEGER PRIMARY KEY, data TEXT)"))
    return db


@pytest.fixture
async def db(tmp_path):
    database = await opened(tmp_path)
    yield database
    await database.close()


def put(n, data="x"):
    return lambda tx: tx.execute("INSERT INTO jar VALUES (?, ?)", (n, data))


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.7.0"])
def test_an_sqlite_with_the_wal_reset_bug_is_refused(version):
    with pytest.raises(StorageRefused, match=version):
        require_sqlite(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.54.1", "4.0.0"])
def test_a_later_sqlite_is_accepted(version):
    require_sqlite(version)


async def test_both_connections_have_the_safe_settings(db):
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "mmap_size": 0,
        "busy_timeout": 5000,
    }
    connections = {"writer": db._writer._connection, "reader": db._reader._connection}
    for name, connection in connections.items():
        found = {}
        for pragma in wanted:
            row = connection.execute(f"PRAGMA {pragma}").fetchall()
            found[pragma] = row[0][0] if row else 0  # no row: built without mmap
        assert found == wanted, name
    assert db._reader._connection.execute("PRAGMA query_only").fetchall() == [(1,)]


async def test_double_quotes_never_make_text(db):
    with pytest.raises(apsw.SQLError):
        await db.read('SELECT "no such column"')


async def test_many_writers_share_few_commits(db):
    commits = []
    db._writer._connection.set_commit_hook(lambda: bool(commits.append(1)))
    await asyncio.gather(*(db.write(put(n)) for n in range(400)))
    assert await db.read("SELECT count(*) FROM jar") == [(400,)]
    assert len(commits) < 20


async def test_a_file_per_umask_000_is_0600(tmp_path):
    before = os.umask(0)
    try:
        db = await opened(tmp_path)
        await db.write(put(1))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("s.sqlite", "s.sqlite-wal", "s.sqlite-shm"), 0o600)
    await db.close()


async def test_a_wider_file_is_narrowed(tmp_path):
    await (await opened(tmp_path)).close()
    (tmp_path / "s.sqlite").chmod(0o644)
    db = await SqliteDatabase.open(tmp_path / "s.sqlite", SystemClock())
    assert stat.S_IMODE((tmp_path / "s.sqlite").stat().st_mode) == 0o600
    await db.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "hardlink"])
async def test_planted_files_are_refused(tmp_path, suffix, kind):
    target = tmp_path / "target"
    place = tmp_path / f"s.sqlite{suffix}"
    if kind != "dangling":
        target.write_bytes(b"precious")
    if kind in {"symlink", "dangling"}:
        place.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.hardlink_to(target)
    with pytest.raises(StorageRefused):
        await SqliteDatabase.open(tmp_path / "s.sqlite", SystemClock())
    assert kind == "dangling" or target.read_bytes() == b"precious"
    assert kind != "dangling" or not target.exists()


REAL_DISK = apsw.vfs_names()[0]


class FaultyFile(apsw.VFSFile):
    """Counts down to a fault in the write or sync of the WAL."""

    def __init__(self, name, flags):
        super().__init__(REAL_DISK, name, flags)
        self._wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)

    def xWrite(self, data, offset):  # noqa: N802
        if self._wal and (error := Fault.due("write")) is not None:
            raise error
        return super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802
        if self._wal and (error := Fault.due("sync")) is not None:
            raise error
        return super().xSync(flags)


class Fault:
    """What goes wrong next, and how often."""

    where = ""
    error: type[Exception] = apsw.FullError
    times = 0

    @classmethod
    def due(cls, where):
        if cls.where != where or cls.times == 0:
            return None
        cls.times -= 1
        return cls.error()

    @classmethod
    def arm(cls, where, error, times):
        cls.where, cls.error, cls.times = where, error, times


class FaultyDisk(apsw.VFS):
    def __init__(self):
        super().__init__("faulty", REAL_DISK)

    def xOpen(self, name, flags):  # noqa: N802
        return FaultyFile(name, flags)


@pytest.fixture
async def faulty(tmp_path):
    disk = FaultyDisk()
    apsw.set_default_vfs("faulty")
    try:
        database = await opened(tmp_path)
        yield database
        Fault.arm("", apsw.FullError, 0)
        await database.close()
    finally:
        Fault.arm("", apsw.FullError, 0)
        apsw.set_default_vfs(REAL_DISK)
        disk.unregister()


@pytest.mark.parametrize("where", ["write", "sync"])
@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_full_or_broken_disk_is_told_and_survived(faulty, where, error):
    Fault.arm(where, error, -1)
    with pytest.raises(StorageFailed):
        await faulty.write(put(1))
    results = await asyncio.gather(
        *(faulty.write(put(n)) for n in range(2, 6)), return_exceptions=True
    )
    assert all(isinstance(result, StorageFailed) for result in results)
    Fault.arm("", apsw.FullError, 0)
    await faulty.write(put(6))
    assert await faulty.read("SELECT n FROM jar") == [(6,)]
    assert await faulty.read("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_fault_of_one_group_is_made_good_one_by_one(faulty):
    faulty.write_soon(lambda tx: time.sleep(0.02))
    Fault.arm("write", apsw.FullError, 1)
    writes = [asyncio.ensure_future(faulty.write(put(n))) for n in range(5)]
    assert await asyncio.gather(*writes) == [[]] * 5
    assert await faulty.read("SELECT count(*) FROM jar") == [(5,)]


async def test_a_write_too_big_for_the_disk_fails_and_its_neighbours_do_not(db):
    [(pages,)] = db._writer._connection.execute("PRAGMA page_count").fetchall()
    db._writer._connection.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()
    huge = "x" * 1_000_000
    results = await asyncio.gather(
        db.write(put(1)), db.write(put(2, huge)), db.write(put(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [list, StorageFailed, list]
    assert results[1].code == "storage_failed"
    assert await db.read("SELECT n FROM jar ORDER BY n") == [(1,), (3,)]


async def test_a_closure_that_ends_the_transaction_itself_hurts_nobody_else(db):
    def rude(tx):
        tx.execute("ROLLBACK")

    results = await asyncio.gather(
        db.write(put(1)), db.write(rude), db.write(put(2)), return_exceptions=True
    )
    assert isinstance(results[1], RuntimeError)
    assert await db.read("SELECT n FROM jar ORDER BY n") == [(1,), (2,)]


async def test_another_program_holding_the_file_is_an_error_and_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    db = await opened(tmp_path)
    other = apsw.Connection(str(tmp_path / "s.sqlite"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed, match="Another program") as failed:
        await db.write(put(1))
    assert "sqlite3" in failed.value.hint
    other.execute("ROLLBACK")
    other.close()
    await db.write(put(1))
    await db.close()


async def test_a_file_held_at_the_start_is_not_taken_for_a_broken_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    await (await opened(tmp_path)).close()
    with contextlib.closing(apsw.Connection(str(tmp_path / "s.sqlite"))) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageRefused, match="Another program") as refused:
            await opened(tmp_path)
    assert "backup" not in str(refused.value)


def test_results_after_the_loop_is_closed_are_not_a_crash(tmp_path, caplog):
    async def start():
        db = await opened(tmp_path)
        db.write_soon(lambda tx: time.sleep(0.05))
        db.write_soon(put(1))
        return db

    runner = asyncio.Runner()
    db = runner.run(start())
    runner.close()
    db._writer.queue.put(None)
    db._reader.queue.put(None)
    db._writer.join(5)
    db._reader.join(5)
    assert not db._writer.is_alive()
    assert "after the event loop was closed" in caplog.text
    assert db.read_now("SELECT n FROM jar") == [(1,)]


CHILD = """
import asyncio, sys
from pathlib import Path
from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase

async def main():
    db = await SqliteDatabase.open(Path(sys.argv[1]), SystemClock())
    await db.write(lambda tx: tx.execute("CREATE TABLE IF NOT EXISTS log (n BIGINT PRIMARY KEY)"))
    n = int(sys.argv[2])
    print("ready", flush=True)
    async def one(n):
        await db.write(lambda tx: tx.execute("INSERT INTO log VALUES (?)", (n,)))
        print(n, flush=True)
    while True:
        await asyncio.gather(*(one(n + i) for i in range(7)))
        n += 7

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    path = tmp_path / "k.sqlite"
    chance = random.Random(4)
    acknowledged: set[int] = set()
    for cycle in range(12):
        command = [sys.executable, "-c", CHILD, str(path), str(cycle * 1_000_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.06))
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read()
        acknowledged |= {int(line) for line in said.split("\n")[:-1]}
        stored, verdict = asyncio.run(look(path))
        assert verdict == [("ok",)]
        assert acknowledged <= stored
    assert len(acknowledged) > 100


async def look(path: Path):
    db = await SqliteDatabase.open(path, SystemClock())
    stored = {n for (n,) in await db.read("SELECT n FROM log")}
    verdict = await db.read("PRAGMA integrity_check")
    await db.close()
    return stored, verdict
