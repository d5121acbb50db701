"""The ledger's first and last transaction: open a new epoch, close what a dead one left open.

What the dead one had noted in its daybook is booked first, as it was noted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenhub.access.accounts import Account
from tokenhub.access.daybook import replay

if TYPE_CHECKING:
    from tokenhub.storage.database import Row, Transaction

_LEFT_OPEN = """
SELECT a.id, a.key_id, a.month, a.day, a.reserved FROM ledger_attempts a
WHERE a.state = 'open'
  AND a.id >= (SELECT MIN(low_id) FROM ledger_epochs WHERE closed_at IS NULL)
"""
_CRASHED = """
UPDATE ledger_attempts SET state = 'settled', settled = reserved, flag = 'crash',
  closed_at = :now_ms
WHERE id = :id
"""
_MOVE = """
UPDATE ledger_accounts SET settled = settled + :nano, reserved = reserved - :nano
WHERE key_id = :key_id AND (
  (kind = 'month' AND period = :month) OR (kind = 'day' AND period = :day) OR kind = 'total')
"""
_END_OLD = "UPDATE ledger_epochs SET closed_at = :now_ms WHERE closed_at IS NULL"
_BEGIN = """
INSERT INTO ledger_epochs (epoch, started_at, low_id) VALUES (:epoch, :now_ms, :low_id)
"""
_END = """
UPDATE ledger_epochs SET closed_at = :now_ms, low_id = :low_id WHERE epoch = :epoch
"""
_NEXT = """
SELECT (SELECT COALESCE(MAX(epoch), 0) + 1 FROM ledger_epochs),
       (SELECT MAX(id) + 1 FROM (
          SELECT COALESCE(MAX(id), 0) AS id FROM ledger_attempts
          UNION ALL SELECT COALESCE(MAX(last_id), 0) FROM ledger_days) AS ids),
       (SELECT COALESCE(MAX(id), 0) + 1 FROM ledger_accounts),
       (SELECT COALESCE(MAX(CASE kind WHEN 'month' THEN period * 100 + 1 ELSE period END), 0)
        FROM ledger_accounts)
"""
_RUNNING = """
SELECT id, key_id, kind, period, settled, reserved, overrun, budget, ceiling FROM ledger_accounts
WHERE kind = 'total' OR (kind = 'month' AND period >= :month) OR (kind = 'day' AND period >= :day)
"""


class Start(msgspec.Struct):
    """What a new process must know of the books.

    ``last_day`` is the latest day (YYYYMMDD) that any account has reached, 0 if none;
    ``replayed`` how many attempts a dead process had noted as ended, and not committed; ``crashed``
    how many it had left open.
    """

    epoch: int
    began_ms: int
    next_attempt: int
    next_account: int
    last_day: int
    replayed: int
    crashed: int
    accounts: list[Account]


def start(tx: Transaction, *, now_ms: int, noted: list[bytes]) -> Start:
    """Book what was noted, settle what is still open at its bound, begin an epoch.

    Raises:
        StorageRefused: the notes are not of this database.
    """
    replayed = replay(tx, noted)
    crashed = tx.execute(_LEFT_OPEN)
    for number, key_id, month, day, nano in crashed:
        tx.execute(_CRASHED, {"id": number, "now_ms": now_ms})
        where = {"key_id": key_id, "month": month, "day": day}
        tx.execute(_MOVE, {"nano": nano, **where})
    tx.execute(_END_OLD, {"now_ms": now_ms})
    epoch, next_attempt, next_account, last_day = tx.execute(_NEXT)[0]
    tx.execute(_BEGIN, {"epoch": epoch, "now_ms": now_ms, "low_id": next_attempt})
    where = {"month": last_day // 100, "day": last_day}
    accounts = [_account(row) for row in tx.execute(_RUNNING, where)]
    return Start(
        epoch, now_ms, next_attempt, next_account, last_day, replayed, len(crashed), accounts
    )


def end(tx: Transaction, *, epoch: int, low_id: int, now_ms: int) -> None:
    """End an epoch that leaves nothing open."""
    tx.execute(_END, {"epoch": epoch, "low_id": low_id, "now_ms": now_ms})


def _account(row: Row) -> Account:
    number, key_id, kind, period, settled, reserved, overrun, budget, ceiling = row
    account = Account(number, key_id, kind, period, budget)
    account.settled = settled
    account.reserved = reserved
    account.overrun = overrun
    account.stored = True
    account.capped = budget is not None and ceiling > budget
    return account
