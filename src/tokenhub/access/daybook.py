"""Daybook: what is settled but not committed yet, put where a kill cannot reach it.

An answer that need not wait for the disk leaves once its row is noted here. What one turn of the
loop settles is noted with one write at its end, before any byte of an answer of that turn leaves;
the batch that holds the same rows follows. What a dead process had noted and not committed, the
next one books at its start (``replay``).
"""

from __future__ import annotations

import logging
from operator import add
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.access.accounts import DAY, MONTH, TOTAL, UNLIMITED
from tokenhub.access.batch import CLOSE, WHOLE
from tokenhub.storage.database import StorageFailed, StorageRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Transaction
    from tokenhub.storage.spool import Spool

RETRY = 5.0
"""Seconds for which answers wait for the disk again after a note that failed."""

_EPOCH = "SELECT 1 FROM ledger_epochs WHERE epoch = ? AND started_at = ?"
_STATE = "SELECT state, reserved FROM ledger_attempts WHERE id = ?"
_ACCOUNT = f"""
INSERT INTO ledger_accounts (key_id, kind, period, ceiling) VALUES (?, ?, ?, {UNLIMITED})
ON CONFLICT (key_id, kind, period) DO NOTHING
"""  # noqa: S608
# A ceiling that is too low is brought down again by the first batch that touches the account.
_ADD = """
UPDATE ledger_accounts SET settled = settled + :settled, reserved = reserved - :reserved,
  overrun = overrun + :overrun,
  ceiling = CASE WHEN settled + :settled + reserved - :reserved > ceiling
    THEN settled + :settled + reserved - :reserved ELSE ceiling END
WHERE key_id = :key_id AND kind = :kind AND period = :period
"""

_Row = tuple[
    int, str, int, int, str, int, str, str, int, str, str, int, int,
    str, int, int, int, int, int, int, int, str, str, int,
]  # fmt: skip
_OPENING = 13  # columns before ``state``

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, list[_Row]]).decode

_log = logging.getLogger(__name__)


class Daybook:
    """The notes of one run of the server.

    Attributes:
        rows: whole rows of attempts that ended in this turn of the loop, not noted yet.
        sound: notes can be made; while they cannot (or without a spool), who ends an attempt waits
            for its commit.
    """

    __slots__ = ("_began_ms", "_clock", "_epoch", "_failed_at", "_hurry", "_spool", "rows", "sound")

    def __init__(
        self,
        spool: Spool | None,
        clock: Clock,
        epoch: int,
        began_ms: int,
        hurry: Callable[[], None],
    ) -> None:
        """``hurry`` is called when a note failed, to have its rows committed at once."""
        self._spool = spool
        self._clock = clock
        self._epoch = epoch
        self._began_ms = began_ms
        self._hurry = hurry
        self._failed_at: float | None = None
        self.rows: list[tuple[Any, ...]] = []
        self.sound = spool is not None

    def put_down(self) -> None:
        """Note what is in ``rows``. It then outlives this process."""
        rows = self.rows
        if not rows:
            return
        self.rows = []
        if not self.sound:
            return  # they stand in the batch that goes out next
        assert self._spool is not None
        try:
            self._spool.append(_encode((self._epoch, self._began_ms, rows)))
        except Exception as error:  # noqa: BLE001  # it must not keep back the answers of the turn
            self._failed(error)
            return
        if self._failed_at is not None:
            self._failed_at = None
            _log.warning("The spool can be written again.")

    def turn(self) -> None:
        """All that is noted so far is on its way to the database."""
        if self._spool is not None:
            self.put_down()
            self._spool.switch()

    def landed(self) -> None:
        """What was noted before the last ``turn`` is in the database."""
        if self._spool is None:
            return
        try:
            self._spool.drop()
        except StorageFailed as error:
            self._failed(error)
        failed_at = self._failed_at
        if failed_at is not None and self._clock.monotonic() - failed_at >= RETRY:
            self.sound = True

    def close(self) -> None:
        """Let go of the spool. What is not committed stays noted for the next start."""
        if self._spool is not None:
            self.put_down()
            self.sound = False
            self._spool.close()
            self._spool = None

    def _failed(self, error: Exception) -> None:
        self.sound = False
        self._failed_at = self._clock.monotonic()
        _log.warning("Answers wait for the disk now: %s", error)
        self._hurry()


def replay(tx: Transaction, records: list[bytes]) -> int:
    """Book what a dead process had noted and may not have committed; how many rows that was.

    A second time changes nothing: a row that stands closed is as it was noted.

    Raises:
        StorageRefused: the notes belong to another database or another release.
    """
    adds: dict[tuple[str, str, int], list[int]] = {}
    booked = 0
    for record in records:
        for row in _rows(tx, record):
            found = tx.execute(_STATE, row[:1])
            if not found:
                tx.execute(WHOLE, row)
                reserved = 0
            elif found[0][0] == "open":
                tx.execute(CLOSE, (*row[_OPENING:], row[0]))
                reserved = found[0][1]
            else:
                continue
            booked += 1
            _, key_id, month, day, *_ = row
            _, settled, overrun, *_ = row[_OPENING:]
            for kind, period in ((MONTH, month), (DAY, day), (TOTAL, 0)):
                sums = adds.setdefault((key_id, kind, period), [0, 0, 0])
                sums[:] = map(add, sums, (settled, reserved, overrun))
    for account, (settled, reserved, overrun) in adds.items():
        tx.execute(_ACCOUNT, account)
        where = dict(zip(("key_id", "kind", "period"), account, strict=True))
        change = {"settled": settled, "reserved": reserved, "overrun": overrun}
        tx.execute(_ADD, {**where, **change})
    return booked


def _rows(tx: Transaction, record: bytes) -> list[_Row]:
    try:
        epoch, began_ms, rows = _decode(record)
    except msgspec.MsgspecError as error:
        raise StorageRefused(
            "The spool beside the database was written by another release. Start that one once, "
            "and stop it, so that what it booked is not lost."
        ) from error
    if not tx.execute(_EPOCH, (epoch, began_ms)):
        raise StorageRefused(
            "The spool beside the database (its name and -spool-0, -spool-1) holds money of "
            "another database. Put that database back, or move the spool away."
        )
    return rows
