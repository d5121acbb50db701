"""Past days: attempts past their retention, added up by day, key, model and provider.

The sums of the books stay what they were, to the nano-dollar: what leaves ``ledger_attempts`` is in
``ledger_days`` by the same transaction. What goes is which request an attempt belonged to.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tokenhub.access.accounts import day_of, day_start_ms

if TYPE_CHECKING:
    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Database, Transaction

SLICE = 2_000  # attempts added up at once

# Days rise with ids, so the oldest rows are the first. One that is open stays until it has ended.
_OLD = """
SELECT MAX(id) FROM (SELECT id, day, state FROM ledger_attempts ORDER BY id LIMIT :slice) AS oldest
WHERE day < :until AND state <> 'open'
"""
_SUMS = """
SELECT day, key_id, model_id, provider_id, MAX(id), COUNT(*), SUM(settled), SUM(overrun),
  SUM(prompt), SUM(completion), SUM(cached_read), SUM(cached_write), SUM(reasoning),
  SUM(CASE WHEN price_source = 'unknown' AND prompt + completion > 0 THEN 1 ELSE 0 END),
  SUM(CASE WHEN flag IN ('counted', 'cut', 'crash') THEN 1 ELSE 0 END)
FROM ledger_attempts WHERE id <= :last AND day < :until AND state <> 'open'
GROUP BY day, key_id, model_id, provider_id
"""
_ADD = """
INSERT INTO ledger_days (began_at, day, key_id, model_id, provider_id, last_id, attempts, settled,
  overrun, prompt, completion, cached_read, cached_write, reasoning, unpriced, inexact)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, key_id, model_id, provider_id) DO UPDATE SET
  last_id = CASE WHEN excluded.last_id > ledger_days.last_id
    THEN excluded.last_id ELSE ledger_days.last_id END,
  attempts = ledger_days.attempts + excluded.attempts,
  settled = ledger_days.settled + excluded.settled,
  overrun = ledger_days.overrun + excluded.overrun,
  prompt = ledger_days.prompt + excluded.prompt,
  completion = ledger_days.completion + excluded.completion,
  cached_read = ledger_days.cached_read + excluded.cached_read,
  cached_write = ledger_days.cached_write + excluded.cached_write,
  reasoning = ledger_days.reasoning + excluded.reasoning,
  unpriced = ledger_days.unpriced + excluded.unpriced,
  inexact = ledger_days.inexact + excluded.inexact
"""
_DELETE = "DELETE FROM ledger_attempts WHERE id <= :last AND day < :until AND state <> 'open'"
_EPOCHS = """
DELETE FROM ledger_epochs
WHERE closed_at < :before AND epoch < (SELECT MAX(epoch) FROM ledger_epochs)
"""


async def add_up(db: Database, clock: Clock, before_ms: int) -> int:
    """Add up the attempts of days that were over at a moment; how many there were.

    Those of this month and the last stay one by one, whatever the moment: an invoice is compared
    with them. Runs of the server that were over at that moment are forgotten.
    """
    this_month = day_of(clock.now_ms()) // 100
    last_month = this_month - 1 if this_month % 100 > 1 else this_month - 89
    until = min(day_of(before_ms), last_month * 100 + 1)
    total = 0
    while count := await db.write(partial(_add_up, until=until)):
        total += count
    await db.write(lambda tx: tx.execute(_EPOCHS, {"before": before_ms}))
    return total


def _add_up(tx: Transaction, until: int) -> int:
    [(last,)] = tx.execute(_OLD, {"until": until, "slice": SLICE})
    if last is None:
        return 0
    which = {"last": last, "until": until}
    sums = tx.execute(_SUMS, which)
    tx.executemany(_ADD, [(day_start_ms(row[0]), *row) for row in sums])
    tx.execute(_DELETE, which)
    return tx.changes()
