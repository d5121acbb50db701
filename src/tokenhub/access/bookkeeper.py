"""Bookkeeper: entries by hand, spend by anything, one key's accounts, proof of the sums.

Reads wait for what is booked to be durable first, then see one snapshot of the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tokenhub.access.accounts import DAY, KINDS, MONTH, TOTAL
from tokenhub.access.verification import problems
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.money import format_usd

if TYPE_CHECKING:
    from tokenhub.access.ledger import Ledger
    from tokenhub.access.verification import Problem
    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Also, Database, Transaction

By = Literal["key", "model", "provider", "day"]
GROUPS: tuple[By, ...] = ("key", "model", "provider", "day")
MAX_REASON = 500

_COLUMNS = {"key": "key_id", "model": "model_id", "provider": "provider_id", "day": "day"}
_SPEND = """
SELECT {column}, SUM(attempts), SUM(settled + overrun), SUM(overrun), SUM(reserved), SUM(prompt),
  SUM(completion), SUM(cached_read), SUM(cached_write), SUM(reasoning), SUM(unpriced), SUM(inexact)
FROM (
  SELECT key_id, model_id, provider_id, day, 1 AS attempts, settled, overrun,
    CASE WHEN state = 'open' THEN reserved ELSE 0 END AS reserved, prompt, completion, cached_read,
    cached_write, reasoning,
    CASE WHEN price_source = 'unknown' AND prompt + completion > 0 THEN 1 ELSE 0 END AS unpriced,
    CASE WHEN flag IN ('counted', 'cut', 'crash') THEN 1 ELSE 0 END AS inexact
  FROM ledger_attempts WHERE opened_at >= :since AND opened_at < :until
  UNION ALL
  SELECT key_id, model_id, provider_id, day, attempts, settled, overrun, 0, prompt, completion,
    cached_read, cached_write, reasoning, unpriced, inexact
  FROM ledger_days WHERE began_at >= :since AND began_at < :until
) AS spent
GROUP BY {column} ORDER BY {order}
"""
_ACCOUNTS = """
SELECT kind, period, settled, reserved, overrun, budget FROM ledger_accounts
WHERE key_id = :key_id ORDER BY kind, period
"""
_ENTRIES = """
SELECT kind, period, what, settled, overrun, reason, booked_at FROM ledger_entries
WHERE key_id = :key_id ORDER BY id DESC LIMIT 100
"""
_SUMS = """
SELECT kind, period, settled, overrun FROM ledger_accounts
WHERE key_id = :key_id AND (
  (kind = 'month' AND period = :month) OR (kind = 'day' AND period = :day) OR kind = 'total')
"""
_BOOK = """
UPDATE ledger_accounts SET settled = settled + :settled, overrun = overrun + :overrun
WHERE key_id = :key_id AND kind = :kind AND period = :period
"""
_ENTER = """
INSERT INTO ledger_entries (key_id, kind, period, what, settled, overrun, reason, booked_at)
VALUES (:key_id, :kind, :period, :what, :settled, :overrun, :reason, :now_ms)
"""


class SpendRow(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts of one group. Amounts in nano-dollars; ``cost`` includes ``overrun``.

    ``unpriced`` attempts used tokens at an unknown price (not in ``cost``); ``inexact`` ones were
    counted by us or settled at their bound, because no usage was reported.
    """

    group: str
    attempts: int
    cost: int
    overrun: int
    reserved: int
    prompt: int
    completion: int
    cached_read: int
    cached_write: int
    reasoning: int
    unpriced: int
    inexact: int


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """One account as stored; nano-dollars."""

    kind: str
    period: int
    settled: int
    reserved: int
    overrun: int
    budget: int | None


class EntryRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was booked by hand; nano-dollars, negative = in the key's favour."""

    kind: str
    period: int
    what: str
    settled: int
    overrun: int
    reason: str
    booked_at: int


class Bookkeeper:
    """Reads and corrects the books that a Ledger keeps."""

    def __init__(self, db: Database, clock: Clock, ledger: Ledger) -> None:
        self._db = db
        self._clock = clock
        self._ledger = ledger

    async def adjust(
        self, key_id: str, nano: int, reason: str, *, also: Also | None = None
    ) -> dict[str, int]:
        """Add to (or, negative, take off) a key's spend of this day, this month and in total.

        What is added counts as overrun: it was never reserved, and no limit stops it. What is
        taken off an account is at most what it holds. Returns what each account's spend changed
        by.

        Raises:
            InvalidRequest: no reason, nothing to do, or the month holds less than is taken off.
        """
        if not reason.strip() or len(reason) > MAX_REASON:
            raise InvalidRequest("`reason` must have 1 to 500 characters.", param="reason")
        if nano == 0:
            raise InvalidRequest("`amount_usd` must not be 0.", param="amount_usd")
        return await self._book(key_id, "adjust", nano, reason.strip(), (MONTH, DAY, TOTAL), also)

    async def mark_paid(self, key_id: str, *, also: Also | None = None) -> dict[str, int]:
        """Set a key's spend of this month and this day back to 0, by an entry in the books.

        What is reserved stays reserved, and the total stays: it counts for ever. ``also`` is the
        place for ``Keys.paid``.
        """
        return await self._book(key_id, "paid", None, "marked as paid", (MONTH, DAY), also)

    async def spend(self, by: By, *, since: int = 0, until: int = 1 << 62) -> list[SpendRow]:
        """What attempts opened in [since, until) (Unix ms) cost, dearest group first.

        ``day`` goes by date. Every attempt counts, also one that failed but cost money. Days past
        the retention count whole, where they begin in [since, until).
        """
        if by not in _COLUMNS:
            raise InvalidRequest(f"`by` must be one of {', '.join(GROUPS)}.", param="by")
        await self._ledger.flush()
        order = "1" if by == "day" else "3 DESC, 1"
        sql = _SPEND.format(column=_COLUMNS[by], order=order)
        rows = await self._db.read(sql, {"since": since, "until": until})
        names = [field.name for field in msgspec.structs.fields(SpendRow)][1:]
        return [
            SpendRow(group=str(group), **dict(zip(names, values, strict=True)))
            for group, *values in rows
        ]

    async def show(self, key_id: str) -> tuple[list[AccountRow], list[EntryRow]]:
        """All accounts of a key, and the last 100 entries made by hand."""
        await self._ledger.flush()
        accounts = await self._db.read(_ACCOUNTS, {"key_id": key_id})
        entries = await self._db.read(_ENTRIES, {"key_id": key_id})
        return _rows(AccountRow, accounts), _rows(EntryRow, entries)

    async def verify(self) -> list[Problem]:
        """Compute every account again from its rows; what does not agree, an empty list if all.

        Requests may go on meanwhile.
        """
        await self._ledger.flush()
        return await problems(self._db, self._ledger)

    async def _book(
        self,
        key_id: str,
        what: str,
        nano: int | None,
        reason: str,
        kinds: tuple[str, ...],
        also: Also | None,
    ) -> dict[str, int]:
        day = self._ledger.ensure(key_id)
        await self._ledger.flush()
        where = {"key_id": key_id, "month": day // 100, "day": day}
        entry = {"key_id": key_id, "what": what, "reason": reason, "now_ms": self._clock.now_ms()}

        def write(tx: Transaction) -> list[tuple[str, int, int, int]]:
            booked = _write(tx, where=where, entry=entry, nano=nano, kinds=kinds, also=also)
            # Not after the wait: the ledger must hear of it also when the admin has left.
            tx.on_commit(lambda: self._take_over(key_id, booked))
            return booked

        booked = await self._db.write(write)
        return {kind: settled + overrun for kind, _, settled, overrun in booked}

    def _take_over(self, key_id: str, booked: list[tuple[str, int, int, int]]) -> None:
        for change in booked:
            self._ledger.booked(key_id, *change)


def _write(
    tx: Transaction,
    *,
    where: dict[str, Any],
    entry: dict[str, Any],
    nano: int | None,
    kinds: tuple[str, ...],
    also: Also | None,
) -> list[tuple[str, int, int, int]]:
    booked = []
    before, after = {}, {}
    found = {row[0]: row[1:] for row in tx.execute(_SUMS, where)}
    for kind in KINDS:
        if kind not in kinds or kind not in found:
            continue
        period, settled, overrun = found[kind]
        less, lesser = _change(settled, overrun, nano)
        if nano is not None and kind == MONTH and less + lesser != nano:
            raise _too_much(settled + overrun)
        before[f"{kind}_usd"] = format_usd(settled + overrun)
        after[f"{kind}_usd"] = format_usd(settled + overrun + less + lesser)
        if less or lesser:
            change = {"kind": kind, "period": period, "settled": less, "overrun": lesser}
            tx.execute(_BOOK, {"key_id": entry["key_id"], **change})
            tx.execute(_ENTER, {**entry, **change})
            booked.append((kind, period, less, lesser))
    if also is not None:
        after["reason"] = entry["reason"]
        also(tx, before, after)
    return booked


def _change(settled: int, overrun: int, nano: int | None) -> tuple[int, int]:
    """How settled and overrun change; None = to nothing."""
    if nano is None:
        return -settled, -overrun
    if nano > 0:
        return 0, nano
    lesser = -min(overrun, -nano)
    return -min(settled, -nano + lesser), lesser


def _too_much(spent: int) -> InvalidRequest:
    return InvalidRequest(
        f"The key's spend of this month is ${format_usd(spent)}; no more can be taken off.",
        param="amount_usd",
        hint="To let a key spend more, raise its budget: `tokenhubctl apikey edit`.",
    )


def _rows(kind: type[Any], rows: list[tuple[Any, ...]]) -> list[Any]:
    names = [field.name for field in msgspec.structs.fields(kind)]
    return [kind(**dict(zip(names, row, strict=True))) for row in rows]
