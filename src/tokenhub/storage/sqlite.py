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
import queue
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from tokenhub.storage import migrate
from tokenhub.storage.database import ConstraintViolated, StorageFailed, StorageRefused
from tokenhub.storage.files import require_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Params, Rows, Transaction

T = TypeVar("T")

# Earlier releases can corrupt a WAL database that has two connections: sqlite.org/wal.html,
# "The WAL-Reset Bug".
OLDEST_SQLITE = (3, 51, 3)

MAX_GROUP = 512  # bounds how long the first closure of a group waits for the last one
BUSY_TIMEOUT_MS = 5_000
JOURNAL_LIMIT = 64 * 1024 * 1024

_log = logging.getLogger(__name__)

_CONSTRAINTS = {
    apsw.SQLITE_CONSTRAINT_UNIQUE: "unique",
    apsw.SQLITE_CONSTRAINT_PRIMARYKEY: "unique",
    apsw.SQLITE_CONSTRAINT_FOREIGNKEY: "foreign_key",
    apsw.SQLITE_CONSTRAINT_CHECK: "check",
    apsw.SQLITE_CONSTRAINT_NOTNULL: "not_null",
}
_FAILURES = {
    apsw.FullError: "The disk with the database is full.",
    apsw.IOError: "The disk with the database reports an error.",
    apsw.BusyError: "Another program holds the database.",
    apsw.ReadOnlyError: "The database is read-only.",
    apsw.CantOpenError: "The database file cannot be opened.",
    apsw.CorruptError: "The database file is damaged.",
    apsw.NotADBError: "The database file is damaged.",
    apsw.NoMemError: "There is no memory left for the database.",
}


class SqliteDatabase:
    """A Database in one SQLite file. Make it with ``open``."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._closed = False
        self._writer = _Writer(_connect(path), loop)
        self._reader = _Reader(_connect(path, read_only=True), loop)

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
        self._reader.queue.put(_Query(sql, params, future))
        return await future

    def read_now(self, sql: str, params: Params = ()) -> Rows:
        """The same, blocking, over a connection of its own: for start-up only."""
        try:
            with closing(_connect(self._path, read_only=True)) as connection:
                return connection.execute(sql, params).fetchall()
        except apsw.Error as error:
            raise _translated(error) from error

    async def write(self, fn: Callable[[Transaction], T]) -> T:
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

        self._writer.queue.put(_Write(fn, done))
        return await future

    def write_soon(
        self,
        fn: Callable[[Transaction], object],
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        """Queue ``fn``; durable in order with all other writes, ``done`` called on the loop."""
        self._require_open()

        def settle(error: BaseException | None, _: Any) -> None:
            if done is not None:
                done(error)
            elif error is not None:
                _log.error("A write in the background failed.", exc_info=error)

        self._writer.queue.put(_Write(fn, settle))

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


class _Write:
    """A queued closure, and whom to tell ``(error, value)`` on the loop."""

    __slots__ = ("done", "fn")

    def __init__(
        self,
        fn: Callable[[Transaction], Any],
        done: Callable[[BaseException | None, Any], None],
    ) -> None:
        self.fn = fn
        self.done = done


class _Query:
    """A queued read and its future."""

    __slots__ = ("future", "params", "sql")

    def __init__(self, sql: str, params: Params, future: asyncio.Future[Rows]) -> None:
        self.sql = sql
        self.params = params
        self.future = future


class _Transaction:
    """The Transaction of one closure; refuses use after it."""

    __slots__ = ("_connection", "callbacks")

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection: apsw.Connection | None = connection
        self.callbacks: list[Callable[[], object]] = []

    def execute(self, sql: str, params: Params = ()) -> Rows:
        try:
            return self._live().execute(sql, params).fetchall()
        except apsw.Error as error:
            raise _translated(error) from error

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        try:
            self._live().executemany(sql, rows).fetchall()
        except apsw.Error as error:
            raise _translated(error) from error

    def changes(self) -> int:
        return self._live().changes()

    def on_commit(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        self._connection = None

    def _live(self) -> apsw.Connection:
        if self._connection is None:
            raise RuntimeError("a Transaction was used after its closure returned")
        return self._connection


class _GroupLost(Exception):
    """SQLite rolled the whole transaction back; the cause says why."""


class _Outcome:
    """What came of one write."""

    __slots__ = ("callbacks", "error", "value", "write")

    def __init__(
        self,
        write: _Write,
        error: BaseException | None = None,
        value: object = None,
        callbacks: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.write = write
        self.error = error
        self.value = value
        self.callbacks = callbacks

    def tell(self) -> None:
        """Run the callbacks, then tell the caller; a callback's error becomes the write's."""
        try:
            for callback in self.callbacks:
                callback()
        except Exception as error:  # noqa: BLE001  # it must reach the caller, not the loop
            self.error = error
        self.write.done(self.error, self.value)


class _Writer(threading.Thread):
    """Takes closures off the queue and commits them in groups until it meets None."""

    def __init__(self, connection: apsw.Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="sqlite-writer", daemon=True)
        self.queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._connection = connection
        self._loop = loop
        self.start()

    def run(self) -> None:
        open_ = True
        while open_:
            group, open_ = _gather(self.queue)
            if group:
                self._commit(group)
        self._connection.close()

    def _commit(self, group: list[_Write]) -> None:
        """Commit a group; where that fails as a whole, each of its writes by itself.

        So an error reaches exactly the callers whose own write cannot be made durable.
        """
        try:
            outcomes = self._run_group(group)
        except _GroupLost as lost:
            if len(group) > 1:
                for write in group:
                    self._commit([write])
                return
            outcomes = [_Outcome(group[0], lost.__cause__)]
        _on_loop(self._loop, _deliver, outcomes)

    def _run_group(self, group: list[_Write]) -> list[_Outcome]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._run_one(write) for write in group]
            connection.execute("COMMIT")
        except _GroupLost:
            raise
        except Exception as error:  # noqa: BLE001  # the thread outlives whatever is raised
            raise _GroupLost from _translated(error)
        finally:
            if connection.in_transaction:
                with suppress(apsw.Error):  # the next BEGIN would fail, and roll back again
                    connection.execute("ROLLBACK")
        return outcomes

    def _run_one(self, write: _Write) -> _Outcome:
        connection = self._connection
        connection.execute("SAVEPOINT one")
        tx = _Transaction(connection)
        error: Exception | None = None
        value = None
        try:
            value = write.fn(tx)
        except Exception as raised:  # noqa: BLE001  # the supervisor of every closure
            error = raised
        tx.end()
        if not connection.in_transaction:
            raise _GroupLost from error or RuntimeError("the closure ended the transaction")
        if error is not None:
            connection.execute("ROLLBACK TO one")
            tx.callbacks = []
        connection.execute("RELEASE one")
        return _Outcome(write, error, value, tx.callbacks)


class _Reader(threading.Thread):
    """Runs queries one after the other until it meets None."""

    def __init__(self, connection: apsw.Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="sqlite-reader", daemon=True)
        self.queue: queue.SimpleQueue[_Query | None] = queue.SimpleQueue()
        self._connection = connection
        self._loop = loop
        self.start()

    def run(self) -> None:
        while (query := self.queue.get()) is not None:
            try:
                rows = self._connection.execute(query.sql, query.params).fetchall()
            except Exception as error:  # noqa: BLE001  # the supervisor of every query
                _on_loop(self._loop, _fail, (query.future, _translated(error)))
            else:
                _on_loop(self._loop, _answer, (query.future, rows))
        self._connection.close()


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
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=256)
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


def _gather(source: queue.SimpleQueue[_Write | None]) -> tuple[list[_Write], bool]:
    """Everything queued (waiting for the first), and whether more may come."""
    group: list[_Write] = []
    item = source.get()
    while item is not None:
        group.append(item)
        if len(group) >= MAX_GROUP:
            return group, True
        try:
            item = source.get_nowait()
        except queue.Empty:
            return group, True
    return group, False


def _deliver(outcomes: list[_Outcome]) -> None:
    loop = asyncio.get_running_loop()
    for outcome in outcomes:
        try:
            outcome.tell()
        except Exception as raised:  # noqa: BLE001  # one bad callback must not silence the others
            context = {"message": "A callback of write_soon failed.", "exception": raised}
            loop.call_exception_handler(context)


def _answer(outcome: tuple[asyncio.Future[Rows], Rows]) -> None:
    future, rows = outcome
    if not future.done():
        future.set_result(rows)


def _fail(outcome: tuple[asyncio.Future[Rows], BaseException]) -> None:
    future, error = outcome
    if not future.done():
        future.set_exception(error)


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], value: object) -> None:
    try:
        loop.call_soon_threadsafe(call, value)
    except RuntimeError:  # the loop is closed: nobody is left to hear it
        _log.warning("A result of the database came after the event loop was closed.")


def _translated(error: Exception) -> Exception:
    """The port's error for one of SQLite's; a mistake in the SQL stays what it is."""
    if isinstance(error, apsw.ConstraintError):
        kind = _CONSTRAINTS.get(getattr(error, "extendedresult", 0), "other")
        return ConstraintViolated(str(error), kind)
    message = _FAILURES.get(type(error)) if isinstance(error, apsw.Error) else None
    if message is None:
        return error
    return StorageFailed(message, hint="See the server's log and `df`.")
