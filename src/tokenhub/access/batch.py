"""Batch: everything that happened to the books since the last commit, written as one.

Rows go in with one statement per kind, each account is touched once per batch, so a request's
share of a large batch is the cost of its own row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenhub.access.accounts import UNLIMITED
from tokenhub.access.refusals import unwritten

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tokenhub.access.accounts import Account, Books
    from tokenhub.storage.database import Transaction

_OPEN = """
INSERT INTO ledger_attempts (id, key_id, month, day, request_id, attempt, model_id, provider_id,
  state, reserved, price_source, price_version, epoch, opened_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'open', ?, ?, ?, ?, ?)
"""
_CLOSE = """
UPDATE ledger_attempts SET state = ?, settled = ?, overrun = ?, prompt = ?, completion = ?,
  cached_read = ?, cached_write = ?, reasoning = ?, further = ?, flag = ?, closed_at = ?
WHERE id = ?
"""
_WHOLE = """
INSERT INTO ledger_attempts (state, settled, overrun, prompt, completion, cached_read,
  cached_write, reasoning, further, flag, closed_at, id, key_id, month, day, request_id, attempt,
  model_id, provider_id, reserved, price_source, price_version, epoch, opened_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_NEW = """
INSERT INTO ledger_accounts (key_id, kind, period, budget, ceiling, id)
VALUES (?, ?, ?, ?, ?, ?)
"""
_UNCAP = f"UPDATE ledger_accounts SET ceiling = {UNLIMITED} WHERE id = ?"  # noqa: S608
_ADD = """
UPDATE ledger_accounts
SET settled = settled + ?, reserved = reserved + ?, overrun = overrun + ? WHERE id = ?
"""
_LIMIT = f"""
UPDATE ledger_accounts SET budget = :budget, ceiling = CASE
  WHEN :budget IS NULL THEN {UNLIMITED}
  WHEN settled + reserved > :budget THEN settled + reserved
  ELSE :budget END
WHERE id = :id
"""  # noqa: S608
_LOW = "UPDATE ledger_epochs SET low_id = ? WHERE epoch = ?"

OpenRow = tuple[Any, ...]
CloseRow = tuple[Any, ...]


class Batch:
    """Changes of the books that become durable together.

    Attributes:
        reserving: futures of those who may not spend before this is durable.
        settling: futures of those who wait for their settlement to be durable.
        durable: it is.
    """

    __slots__ = (
        "_closes",
        "_deltas",
        "_limits",
        "_low",
        "_opens",
        "_wholes",
        "durable",
        "reserving",
        "settling",
    )

    def __init__(self) -> None:
        self._opens: dict[int, OpenRow] = {}
        self._closes: list[CloseRow] = []
        self._wholes: list[tuple[Any, ...]] = []
        self._deltas: dict[Books, list[int]] = {}
        self._limits: dict[Account, None] = {}
        self._low: tuple[int, int] | None = None
        self.reserving: list[asyncio.Future[None]] = []
        self.settling: list[asyncio.Future[None]] = []
        self.durable = False

    def __bool__(self) -> bool:
        return bool(self._opens or self._closes or self._wholes or self._limits)

    def open(self, books: Books, row: OpenRow) -> None:
        """Reserve: ``row`` is in the order of the columns of ``_OPEN``."""
        self._opens[row[0]] = row
        self._add(books, 0, row[8], 0)

    def close(self, books: Books, row: CloseRow, reserved: int) -> None:
        """Settle or release: ``row`` is in the order of ``_CLOSE``.

        An attempt that was opened in this very batch becomes one whole row.
        """
        opened = self._opens.pop(row[11], None)
        if opened is None:
            self._closes.append(row)
        else:
            self._wholes.append(row + opened[1:])
        self._add(books, row[1], -reserved, row[2])

    def limit(self, account: Account) -> None:
        """Write an account, with its budget and a ceiling in line with that."""
        self._limits[account] = None

    def low(self, first_open: int, epoch: int) -> None:
        """Note that no row before ``first_open`` is open."""
        self._low = (first_open, epoch)

    def statements(self) -> Callable[[Transaction], None]:
        """What to run, frozen now. Running it twice in two transactions is harmless."""
        opens = list(self._opens.values())
        closes, wholes, low = self._closes, self._wholes, self._low
        accounts = dict.fromkeys(a for books in self._deltas for a in books.accounts) | self._limits
        new = [
            (
                a.key_id,
                a.kind,
                a.period,
                a.budget,
                UNLIMITED if a in self._limits else _top(a),
                a.id,
            )
            for a in accounts
            if not a.stored
        ]
        adds = [
            (*delta, account.id)
            for books, delta in self._deltas.items()
            if any(delta)
            for account in books.accounts
        ]
        uncap = [(account.id,) for account in self._limits]
        capped = [a for a in accounts if a.capped]
        limits = [{"id": a.id, "budget": a.budget} for a in dict.fromkeys([*self._limits, *capped])]
        for account in (*self._limits, *capped):
            # Nothing else is on its way to the store, so this is what the rows will hold.
            account.capped = account.ceiling != _top(account)

        def write(tx: Transaction) -> None:
            for sql, rows in (
                (_NEW, new),
                (_UNCAP, uncap),
                (_ADD, adds),
                (_LIMIT, limits),
                (_OPEN, opens),
                (_WHOLE, wholes),
                (_CLOSE, closes),
            ):
                if rows:
                    tx.executemany(sql, rows)
            if low is not None:
                tx.execute(_LOW, low)

        return write

    def landed(self) -> None:
        """The batch is durable: wake everyone."""
        self.durable = True
        for books in self._deltas:
            for account in books.accounts:
                account.stored = True
        for account in self._limits:
            account.stored = True
        for future in self.reserving:
            if not future.done():
                future.set_result(None)
        self._release_settling()

    @property
    def awaited(self) -> bool:
        """Somebody waits for it."""
        return bool(self.reserving or self.settling)

    def delayed(self) -> None:
        """The batch is not durable yet: who would spend on it is refused, the others go on.

        A settlement that waits here is not lost: its attempt stands open at its bound in the
        books until this batch is written.
        """
        for future in self.reserving:
            if not future.done():
                future.set_exception(unwritten())
        self.reserving = []
        self._release_settling()

    def _release_settling(self) -> None:
        for future in self.settling:
            if not future.done():
                future.set_result(None)
        self.settling = []

    def _add(self, books: Books, settled: int, reserved: int, overrun: int) -> None:
        delta = self._deltas.get(books)
        if delta is None:
            self._deltas[books] = [settled, reserved, overrun]
            return
        delta[0] += settled
        delta[1] += reserved
        delta[2] += overrun


def _top(account: Account) -> int:
    return UNLIMITED if account.budget is None else account.budget
