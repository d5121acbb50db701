"""The Database port: what every room may ask of the place where things are kept.

SQL is the common subset of SQLite and PostgreSQL (upsert, RETURNING, ``:name`` parameters, integers
for time and for booleans, JSON and binary values as TEXT) and stands beside the feature it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tokenhub.core.errors import Unavailable

T = TypeVar("T")

Row = tuple[Any, ...]
Rows = list[Row]
Params = Mapping[str, Any] | Sequence[Any]


class StorageRefused(Exception):
    """The store cannot be opened as it stands; the message says why and what to do next."""


class ConstraintViolated(Exception):
    """A row breaks a rule of the schema.

    Let it leave the closure: after it the transaction can only be rolled back. ``kind`` is
    unique, foreign_key, check, not_null or other.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class StorageFailed(Unavailable):
    """The store cannot serve now: disk full, I/O error, closed."""

    default_code = "storage_failed"


class Transaction(Protocol):
    """What a write may do; valid only inside the closure it was handed to."""

    def execute(self, sql: str, params: Params = ()) -> Rows:
        """Run one statement and return all its rows.

        Raises:
            ConstraintViolated: a rule of the schema is broken.
            StorageFailed: the disk is full or broken.
        """
        ...

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        """Run one statement once per row."""
        ...

    def changes(self) -> int:
        """How many rows the last INSERT, UPDATE or DELETE changed."""
        ...

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the loop once this transaction is durable; never if it is not.

        It runs before the caller of ``write`` goes on, and also when that caller was cancelled: the
        place to bring memory in line with the database.
        """
        ...


Also = Callable[[Transaction, dict[str, Any] | None, dict[str, Any] | None], None]
"""What a caller adds to a store's own transaction: ``also(tx, before, after)``.

The two dicts are JSON-able and hold no secret; None = the thing did not exist. Raising rolls
everything back.
"""


class Database(Protocol):
    """One store, used from one event loop."""

    async def read(self, sql: str, params: Params = ()) -> Rows:
        """All rows of a query; sees every write that was acknowledged before the call."""
        ...

    def read_now(self, sql: str, params: Params = ()) -> Rows:
        """The same, blocking the caller: for start-up and shut-down only."""
        ...

    async def write(self, fn: Callable[[Transaction], T], *, patient: bool = False) -> T:
        """Run ``fn`` in a transaction and return its result once that is durable.

        Whatever ``fn`` raises rolls back what ``fn`` did, nothing else, and is raised here. ``fn``
        runs on the writer's thread, without the event loop, and may run twice (when a commit it
        shared with others failed): its effects must be its statements and its result, no more.
        A caller that is cancelled while it waits does not cancel the write. ``patient`` as in
        ``write_soon``.

        Raises:
            StorageFailed: the write is not durable: disk full, I/O error, closed.
        """
        ...

    def write_soon(
        self,
        fn: Callable[[Transaction], object],
        done: Callable[[BaseException | None], None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """The same without waiting: queued at once, in order with all other writes.

        A ``patient`` write may be overtaken by those that are not, though not by other patient
        ones. It is for many rows that nobody waits for; some 100 at a time, since it is not
        interrupted.

        ``done`` is called on the loop with None once ``fn`` is durable, or with its error; without
        ``done`` an error is logged.

        Raises:
            StorageFailed: the store is closed; nothing was queued.
        """
        ...

    async def close(self) -> None:
        """Commit all that is queued, then close. May be called twice."""
        ...
