"""The Database on SQLite: one writer thread that groups commits, one reader thread.

    loop ── write ──► queue ──► writer thread   BEGIN · closure · closure · … · COMMIT (one fsync)
    loop ── read  ──► queue ──► reader thread   own read-only connection
      ▲                              │
      └──── call_soon_threadsafe ◄───┘          one wake-up per group

While one group is being synced to disk the next one gathers in the queue, so the number of fsyncs
does not grow with the number of writers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from tokenhub.storage import migrate
from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.files import require_private
from tokenhub.storage.sqlite_queue import Write
from tokenhub.storage.sqlite_threads import Query, Reader, Writer, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Params, Rows, Transaction

T = TypeVar("T")

# Earlier releases can corrupt a WAL database that has two connections: sqlite.org/wal.html,
# "The WAL-Reset Bug".
OLDEST_SQLITE = (3, 51, 3)

BUSY_TIMEOUT_MS = 5_000
JOURNAL_LIMIT = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class SqliteDatabase:
    """A Database in one SQLite file. Make it with ``open``."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._closed = False
        self._writer = Writer(_connect(path), loop)
        self._reader = Reader(_connect(path, read_only=True), loop)

    @classmethod
    async def open(
        cls, path: Path, clock: Clock, migrations: Sequence[migrate.Migration] | None = None
    ) -> SqliteDatabase:
        """Open the file (made 0600 if it is not there) and bring its schema up to date.

        ``migrations`` are the shipped ones unless given.

        Raises:
            StorageRefused: SQLite is too old, the file is not ours or not private, its schema is
                newer than this release, or it cannot be opened; the message says what to do.
        """
        require_sqlite(apsw.sqlite_lib_version())
        path = path.parent.resolve() / path.name
        known = migrate.shipped() if migrations is None else migrations
        loop = asyncio.get_running_loop()

        def start() -> SqliteDatabase:
            _make_private(path)
            try:
                with closing(_connect(path)) as connection:
                    _migrate(connection, known, clock)
                return cls(path, loop)
            except apsw.BusyError as error:
                raise StorageRefused(
                    f"Another program holds the database {path}. Close what has it open (an "
                    "`sqlite3` shell, a script), then start again."
                ) from error
            except apsw.Error as error:
                raise StorageRefused(
                    f"The database {path} cannot be opened: {error}. Check the disk, or restore "
                    "a backup."
                ) from error

        return await loop.run_in_executor(None, start)

    async def read(self, sql: str, params: Params = ()) -> Rows:
        """All rows of a query; sees every write that was acknowledged before the call."""
        self._require_open()
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self._reader.queue.put(Query(sql, params, future))
        return await future

    def read_now(self, sql: str, params: Params = ()) -> Rows:
        """The same, blocking, over a connection of its own: for start-up only."""
        try:
            with closing(_connect(self._path, read_only=True)) as connection:
                return connection.execute(sql, params).fetchall()
        except apsw.Error as error:
            raise translated(error) from error

    async def write(self, fn: Callable[[Transaction], T], *, patient: bool = False) -> T:
        """Run ``fn`` in a transaction; its result once that is durable."""
        self._require_open()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None, value: Any) -> None:
            if future.done():  # the caller was cancelled
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self._writer.queue.put(Write(fn, done, patient=patient))
        return await future

    def write_soon(
        self,
        fn: Callable[[Transaction], object],
        done: Callable[[BaseException | None], None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """Queue ``fn``; durable in order with its like, ``done`` called on the loop."""
        self._require_open()

        def settle(error: BaseException | None, _: Any) -> None:
            if done is not None:
                done(error)
            elif error is not None:
                _log.error("A write in the background failed.", exc_info=error)

        self._writer.queue.put(Write(fn, settle, patient=patient))

    async def close(self) -> None:
        """Commit all that is queued, then close."""
        if not self._closed:
            self._closed = True
            self._reader.queue.put(None)
            self._writer.queue.put(None)
        loop = asyncio.get_running_loop()
        # The reader first: the last connection to close folds the WAL into the file.
        await loop.run_in_executor(None, self._reader.join)
        await loop.run_in_executor(None, self._writer.join)

    def _require_open(self) -> None:
        if self._closed:
            raise StorageFailed("The database is closed: the server is stopping.")


def require_sqlite(version: str) -> None:
    """Refuse an SQLite release that can corrupt a WAL database with several connections.

    Raises:
        StorageRefused: ``version`` is older than ``OLDEST_SQLITE``.
    """
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StorageRefused(
            f"SQLite {version} can corrupt a database in WAL mode; {oldest} or newer is needed. "
            "Install the pinned `apsw` wheel, which carries its own SQLite."
        )


def _connect(path: Path, *, read_only: bool = False) -> apsw.Connection:
    # NOFOLLOW: the file itself must not be a symbolic link (its directory was resolved before).
    # NOMUTEX: one thread at a time uses it, and locking for each value costs 7 % of a row.
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW | apsw.SQLITE_OPEN_NOMUTEX
    # Few statements: for each row they are searched from the first to the one that is used, and a
    # row moves on by one. So many hold those of a commit; preparing one again now and then is less.
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=32)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "mmap_size = 0",
        "temp_store = MEMORY",
        f"journal_size_limit = {JOURNAL_LIMIT}",
        f"query_only = {'ON' if read_only else 'OFF'}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def _make_private(path: Path) -> None:
    """Make the file if it is not there, 0600; refuse links and other people's files.

    SQLite gives -wal and -shm the mode of the database file, whatever the umask.
    """
    if not path.exists() and not path.is_symlink():
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    for suffix in ("", "-wal", "-shm", "-journal"):
        require_private(path.with_name(path.name + suffix))


def _migrate(connection: apsw.Connection, known: Sequence[migrate.Migration], clock: Clock) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if "schema_migrations" not in tables:
        if tables:
            raise StorageRefused(
                "The database file was not made by TokenHub: it has tables but no schema history. "
                "Point TOKENHUB_DB_DSN at another file, or move this one away."
            )
        connection.execute(migrate.HISTORY)
    applied = connection.execute(migrate.APPLIED).fetchall()
    for migration in migrate.pending(known, applied):
        _apply(connection, migration, clock.now_ms())


def _apply(connection: apsw.Connection, migration: migrate.Migration, now_ms: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(migration.sql).fetchall()
        record = {
            "version": migration.version,
            "name": migration.name,
            "applied_at": now_ms,
            "checksum": migration.checksum,
        }
        connection.execute(migrate.RECORD, record)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
