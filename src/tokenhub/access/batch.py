"""Batch: everything that happened to the books since the last commit, written as one.

Rows go in with one statement per kind, each account is touched once per batch, so a request's
share of a large batch is the cost of its own row.
"""

from __future__ import annotations

from operator import add
from typing import TYPE_CHECKING, Any

from tokenhub.access.accounts import UNLIMITED
from tokenhub.access.refusals import unwritten

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tokenhub.access.accounts import Account, Books
    from tokenhub.access.hold import Hold
    from tokenhub.storage.database import Transaction

# Without the columns' names, which migration 0002 puts in order: the text is hashed for every row.
_OPEN = """\
INSERT INTO ledger_attempts VALUES\
(?,?,?,?,?,?,?,?,'open',?,0,0,0,0,0,0,0,'',?,?,'',?,?,NULL)"""
CLOSE = """
UPDATE ledger_attempts SET state = ?, settled = ?, overrun = ?, prompt = ?, completion = ?,
  cached_read = ?, cached_write = ?, reasoning = ?, further = ?, flag = ?, closed_at = ?
WHERE id = ?
"""
# The order of an opening and then a closing, as ``Batch.close`` joins them.
WHOLE = """\
INSERT INTO ledger_attempts VALUES\
(?1,?2,?3,?4,?5,?6,?7,?8,?14,?9,?15,?16,?17,?18,?19,?20,?21,?22,?10,?11,?23,?12,?13,?24)"""
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

Closing = tuple[str, int, int, int, int, int, int, int, str, str, int]
"""How an attempt ended: from ``state`` to ``closed_at`` in the order of ``CLOSE``."""

Adds = list[int]
"""What an account's three sums change by: settled, reserved, overrun."""


class Batch:
    """Changes of the books that become durable together.

    Attributes:
        opens: attempts by id that have begun and whose opening this batch will write. One that
            ends until then is one row, written once.
        limits: accounts to write with their budget and a ceiling in line with that.
        low: no row before the first number is open; and the epoch.
        reserving: futures of those who may not spend before this is durable.
        settling: futures of those who wait for their settlement to be durable.
    """

    __slots__ = (
        "_closes",
        "_epoch",
        "_sums",
        "_wholes",
        "limits",
        "low",
        "opens",
        "reserving",
        "settling",
    )

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self.opens: dict[int, Hold] = {}
        self._closes: list[tuple[Any, ...]] = []
        self._wholes: list[tuple[Any, ...]] = []
        self._sums: dict[Books, Adds] = {}
        self.limits: dict[Account, None] = {}
        self.low: tuple[int, int] | None = None
        self.reserving: list[asyncio.Future[None]] = []
        self.settling: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self.opens or self._closes or self._wholes or self.limits)

    def close(self, hold: Hold, closing: Closing) -> tuple[Any, ...]:
        """Settle or release; the whole row.

        An attempt whose opening is not on its way is written as one, once.
        """
        adds = self._sums.get(hold.books)
        if adds is None:
            adds = self._sums[hold.books] = [0, 0, 0]
        adds[0] += closing[1]
        adds[2] += closing[2]
        row = (hold.opening or self.opening(hold)) + closing
        if self.opens.pop(hold.id, None) is not None:
            self._wholes.append(row)
        else:
            adds[1] -= hold.reserved
            self._closes.append((*closing, hold.id))
        return row

    def opening(self, hold: Hold) -> tuple[Any, ...]:
        """The first columns of a hold's row, in the order of ``_OPEN``; the hold keeps them."""
        books, model = hold.books, hold.model
        prices = model.prices
        hold.opening = opening = (
            hold.id,
            books.key_id,
            books.month,
            books.day,
            hold.request_id,
            hold.attempt,
            model.id,
            model.provider_id,
            hold.reserved,
            prices.source,
            prices.version,
            self._epoch,
            hold.opened_ms,
        )
        return opening

    def statements(self) -> Callable[[Transaction], None]:
        """What to run, frozen now. Running it twice in two transactions is harmless."""
        opens = []
        sums = self._sums
        for hold in self.opens.values():
            opens.append(hold.opening or self.opening(hold))
            adds = sums.get(hold.books)
            if adds is None:
                sums[hold.books] = [0, hold.reserved, 0]
            else:
                adds[1] += hold.reserved
        self.opens = {}
        limited = self.limits
        added: dict[Account, Adds] = {}
        for books, adds in sums.items():
            for account in books.accounts:
                # One step per account: two days share a month, and the CHECK looks at each step.
                had = added.get(account)
                added[account] = adds if had is None else list(map(add, had, adds))
        accounts = added if not limited else dict.fromkeys([*added, *limited])
        new = [
            (a.key_id, a.kind, a.period, a.budget, UNLIMITED if a in limited else _top(a), a.id)
            for a in accounts
            if not a.stored
        ]
        rows = [(*adds, account.id) for account, adds in added.items() if any(adds)]
        uncap = [(account.id,) for account in limited]
        capped = [account for account in added if account.capped]
        limits = [{"id": a.id, "budget": a.budget} for a in dict.fromkeys([*limited, *capped])]
        for account in (*limited, *capped):
            # Nothing else is on its way to the store, so this is what the rows will hold.
            account.capped = account.ceiling != _top(account)
        closes, wholes, low = self._closes, self._wholes, self.low

        def write(tx: Transaction) -> None:
            for sql, each in (
                (_NEW, new),
                (_UNCAP, uncap),
                (_ADD, rows),
                (_LIMIT, limits),
                (_OPEN, opens),
                (WHOLE, wholes),
                (CLOSE, closes),
            ):
                if each:
                    tx.executemany(sql, each)
            if low is not None:
                tx.execute(_LOW, low)

        return write

    def landed(self) -> None:
        """The batch is durable: wake everyone."""
        for books in self._sums:
            for account in books.accounts:
                account.stored = True
        for account in self.limits:
            account.stored = True
        for future in self.reserving:
            if not future.done():
                future.set_result(None)
        self._release_settling()

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


def _top(account: Account) -> int:
    return UNLIMITED if account.budget is None else account.budget
