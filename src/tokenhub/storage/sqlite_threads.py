"""The two threads behind the SQLite database: the grouping writer and the reader."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import apsw

from tokenhub.storage.database import ConstraintViolated, StorageFailed
from tokenhub.storage.sqlite_queue import WriteQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokenhub.storage.database import Params, Rows
    from tokenhub.storage.sqlite_queue import Write

_log = logging.getLogger(__name__)

_CONSTRAINTS = {
    apsw.SQLITE_CONSTRAINT_UNIQUE: "unique",
    apsw.SQLITE_CONSTRAINT_PRIMARYKEY: "unique",
    apsw.SQLITE_CONSTRAINT_FOREIGNKEY: "foreign_key",
    apsw.SQLITE_CONSTRAINT_CHECK: "check",
    apsw.SQLITE_CONSTRAINT_NOTNULL: "not_null",
}
_CHECK_DISK = "Check the disk with `df`; the server's log says more."
_FREE = "Close what writes to it (an `sqlite3` shell, a script)."
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


class Query:
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
            raise translated(error) from error

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        try:
            self._live().executemany(sql, rows).fetchall()
        except apsw.Error as error:
            raise translated(error) from error

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
        write: Write,
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


class Writer(threading.Thread):
    """Takes closures off the queue and commits them in groups until it meets None."""

    def __init__(self, connection: apsw.Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="sqlite-writer", daemon=True)
        self.queue = WriteQueue()
        self._connection = connection
        self._loop = loop
        self.start()

    def run(self) -> None:
        """The thread."""
        while self.queue.wait():
            self._commit(self.queue.group())
        self._connection.close()

    def _commit(self, writes: Iterable[Write]) -> None:
        """Commit a group; where that fails as a whole, each of its writes by itself.

        So an error reaches exactly the callers whose own write cannot be made durable.
        """
        begun: list[Write] = []
        try:
            outcomes = self._run_group(writes, begun)
        except _GroupLost as lost:
            if len(begun) > 1:
                for write in begun:
                    self._commit((write,))
                return
            outcomes = [_Outcome(begun[0], lost.__cause__)]
        _on_loop(self._loop, _deliver, outcomes)

    def _run_group(self, writes: Iterable[Write], begun: list[Write]) -> list[_Outcome]:
        connection = self._connection
        outcomes: list[_Outcome] = []
        try:
            for write in writes:
                begun.append(write)
                outcomes.append(self._run_one(write) if outcomes else self._run_first(write))
            connection.execute("COMMIT")
        except _GroupLost:
            raise
        except Exception as error:  # noqa: BLE001  # the thread outlives whatever is raised
            raise _GroupLost from translated(error)
        finally:
            if connection.in_transaction:
                with suppress(apsw.Error):  # the next BEGIN would fail, and roll back again
                    connection.execute("ROLLBACK")
        return outcomes

    def _run_first(self, write: Write) -> _Outcome:
        # It needs no savepoint, since nothing is lost but its own when all is rolled back.
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        outcome = self._run(write)
        if outcome.error is not None:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
        return outcome

    def _run_one(self, write: Write) -> _Outcome:
        connection = self._connection
        connection.execute("SAVEPOINT one")
        outcome = self._run(write)
        if outcome.error is not None:
            connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return outcome

    def _run(self, write: Write) -> _Outcome:
        tx = _Transaction(self._connection)
        error: Exception | None = None
        value = None
        try:
            value = write.fn(tx)
        except Exception as raised:  # noqa: BLE001  # the supervisor of every closure
            error = raised
        tx.end()
        if not self._connection.in_transaction:
            raise _GroupLost from error or RuntimeError("the closure ended the transaction")
        return _Outcome(write, error, value, tx.callbacks if error is None else ())


class Reader(threading.Thread):
    """Runs queries one after the other until it meets None."""

    def __init__(self, connection: apsw.Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="sqlite-reader", daemon=True)
        self.queue: queue.SimpleQueue[Query | None] = queue.SimpleQueue()
        self._connection = connection
        self._loop = loop
        self.start()

    def run(self) -> None:
        """The thread."""
        while (query := self.queue.get()) is not None:
            try:
                rows = self._connection.execute(query.sql, query.params).fetchall()
            except Exception as error:  # noqa: BLE001  # the supervisor of every query
                _on_loop(self._loop, _fail, (query.future, translated(error)))
            else:
                _on_loop(self._loop, _answer, (query.future, rows))
        self._connection.close()


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


def translated(error: Exception) -> Exception:
    """The port's error for one of SQLite's; a mistake in the SQL stays what it is."""
    if isinstance(error, apsw.ConstraintError):
        kind = _CONSTRAINTS.get(getattr(error, "extendedresult", 0), "other")
        return ConstraintViolated(str(error), kind)
    message = _FAILURES.get(type(error)) if isinstance(error, apsw.Error) else None
    if message is None:
        return error
    return StorageFailed(message, hint=_FREE if type(error) is apsw.BusyError else _CHECK_DISK)
