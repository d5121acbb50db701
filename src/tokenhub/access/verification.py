"""Proof of the books: each account against its rows, the rows against each other.

One SELECT per question, so each sees one moment, also while requests go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenhub.access.accounts import DAY_MS
from tokenhub.core.money import format_usd

if TYPE_CHECKING:
    from tokenhub.access.ledger import Ledger
    from tokenhub.storage.database import Database

# Rows and entries count plus, accounts minus; where all is well every sum is 0.
_SUMS = """
SELECT key_id, kind, period, SUM(settled), SUM(reserved), SUM(overrun), SUM(found) FROM (
  SELECT key_id, 'month' AS kind, month AS period, settled,
    CASE WHEN state = 'open' THEN reserved ELSE 0 END AS reserved, overrun, 0 AS found
  FROM ledger_attempts
  UNION ALL
  SELECT key_id, 'day', day, settled,
    CASE WHEN state = 'open' THEN reserved ELSE 0 END, overrun, 0 FROM ledger_attempts
  UNION ALL
  SELECT key_id, 'total', 0, settled,
    CASE WHEN state = 'open' THEN reserved ELSE 0 END, overrun, 0 FROM ledger_attempts
  UNION ALL
  SELECT key_id, 'month', day / 100, settled, 0, overrun, 0 FROM ledger_days
  UNION ALL
  SELECT key_id, 'day', day, settled, 0, overrun, 0 FROM ledger_days
  UNION ALL
  SELECT key_id, 'total', 0, settled, 0, overrun, 0 FROM ledger_days
  UNION ALL
  SELECT key_id, kind, period, settled, 0, overrun, 0 FROM ledger_entries
  UNION ALL
  SELECT key_id, kind, period, -settled, -reserved, -overrun, 1 FROM ledger_accounts
) AS books
GROUP BY key_id, kind, period
HAVING SUM(settled) <> 0 OR SUM(reserved) <> 0 OR SUM(overrun) <> 0 OR SUM(found) <> 1
ORDER BY key_id, kind, period
"""
_CEILINGS = """
SELECT key_id, kind, period, settled, reserved, ceiling FROM ledger_accounts
WHERE settled + reserved > ceiling OR settled < 0 OR reserved < 0 OR overrun < 0
   OR (budget IS NOT NULL AND ceiling < budget)
"""
_ROWS = """
SELECT id, request_id, attempt, state FROM ledger_attempts
WHERE state NOT IN ('open', 'settled', 'released')
   OR reserved < 0 OR settled < 0 OR overrun < 0
   OR (state <> 'settled' AND (settled <> 0 OR overrun <> 0))
   OR (state = 'open') <> (closed_at IS NULL)
   OR month <> day / 100
"""
_DEAD = "SELECT id, request_id, attempt FROM ledger_attempts WHERE state = 'open' AND epoch <> ?"

# The log may lack requests (it is pruned, and drops what does not fit), but what it says an answer
# cost must be what was booked. A crash books the bound, whatever was logged before. Of days that
# were added up, nobody knows which request an attempt belonged to.
_LOGGED = f"""
SELECT l.request_id, l.cost, COALESCE(a.booked, 0)
FROM request_log l
LEFT JOIN (
  SELECT request_id, SUM(settled + overrun) AS booked,
    MAX(CASE WHEN state = 'open' OR flag = 'crash' THEN 1 ELSE 0 END) AS unsure
  FROM ledger_attempts GROUP BY request_id
) a ON a.request_id = l.request_id
WHERE l.cost IS NOT NULL AND l.cost <> COALESCE(a.booked, 0) AND COALESCE(a.unsure, 0) = 0
  AND l.at_ms >= COALESCE((SELECT MAX(began_at) + {DAY_MS} FROM ledger_days), 0)
ORDER BY l.seq
"""  # noqa: S608 - a constant


class Problem(msgspec.Struct, frozen=True):
    """Something off in the books: in which table and row, and what."""

    table: str
    row: str
    text: str


async def problems(db: Database, ledger: Ledger) -> list[Problem]:
    """Everything that is off."""
    found = [
        Problem("ledger_accounts", f"{key_id} {kind} {period}", _off(*sums))
        for key_id, kind, period, *sums in await db.read(_SUMS)
    ]
    found += [
        Problem(
            "ledger_accounts",
            f"{key_id} {kind} {period}",
            f"settled {settled} + reserved {reserved} breaks the ceiling {ceiling} or a sign",
        )
        for key_id, kind, period, settled, reserved, ceiling in await db.read(_CEILINGS)
    ]
    found += [
        Problem("ledger_attempts", str(number), f"{request} #{attempt}: impossible state {state}")
        for number, request, attempt, state in await db.read(_ROWS)
    ]
    found += [
        Problem("ledger_attempts", str(number), f"{request} #{attempt}: open, its process is gone")
        for number, request, attempt in await db.read(_DEAD, (ledger.epoch,))
    ]
    found += [
        Problem(
            "request_log",
            request,
            f"logged as ${format_usd(cost)}, booked as ${format_usd(booked)}",
        )
        for request, cost, booked in await db.read(_LOGGED)
    ]
    return found


def _off(settled: int, reserved: int, overrun: int, accounts: int) -> str:
    if accounts == 0:
        return "rows without an account"
    sums = {"settled": settled, "reserved": reserved, "overrun": overrun}
    parts = [
        f"{name} should be ${format_usd(abs(nano))} {'higher' if nano > 0 else 'lower'}"
        for name, nano in sums.items()
        if nano
    ]
    return ", ".join(parts)
