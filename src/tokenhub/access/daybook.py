"""Daybook: what is booked but not committed yet, put where a kill cannot reach it.

An answer that need not wait for the disk leaves once its row is noted here. What one turn of the
loop settles is noted with one write at its end, before any byte of an answer of that turn leaves;
the batch that holds the same rows follows. Who does wait for the disk (``durable``) waits for the
notes to be synced, not for that batch: a sync is one small write. What a dead process had noted and
not committed, the next one books at its start (``replay``).
"""

from __future__ import annotations

import asyncio
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
"""Seconds for which answers wait for the database again after a note that failed."""

_EPOCH = "SELECT 1 FROM ledger_epochs WHERE epoch = ? AND started_at = ?"
_STATE = "SELECT state, reserved FROM ledger_attempts WHERE id = ?"
_ADDED_UP = "SELECT COALESCE(MAX(last_id), 0) FROM ledger_days"
_ACCOUNT = f"""
INSERT INTO ledger_accounts (key_id, kind, period, ceiling) VALUES (?, ?, ?, {UNLIMITED})
ON CONFLICT (key_id, kind, period) DO NOTHING
"""  # noqa: S608
# A ceiling that is too low is brought down again by the first batch that touches the account.
_ADD = """
UPDATE ledger_accounts SET settled = settled + :settled, reserved = reserved + :reserved,
  overrun = overrun + :overrun,
  ceiling = CASE WHEN settled + :settled + reserved + :reserved > ceiling
    THEN settled + :settled + reserved + :reserved ELSE ceiling END
WHERE key_id = :key_id AND kind = :kind AND period = :period
"""

_Row = tuple[
    int, str, int, int, str, int, str, str, int, str, str, int, int,
    str, int, int, int, int, int, int, int, str, str, int | None,
]  # fmt: skip
_OPENING = 13  # columns before ``state``
_RESERVED = 8
_OPEN = ("open", 0, 0, 0, 0, 0, 0, 0, "", "", None)  # from ``state`` on, of one that has not ended

Waiter = tuple[asyncio.Future[None], bool]
"""A future to be resolved, and whether a provider is called then."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, list[_Row]]).decode

_log = logging.getLogger(__name__)


class Daybook:
    """The notes of one run of the server.

    Attributes:
        rows: whole rows of attempts that ended in this turn of the loop, not noted yet.
        sound: notes can be made; while they cannot (or without a spool), who would wait for a note
            waits for the commit.
    """

    __slots__ = (
        "_began_ms",
        "_clock",
        "_epoch",
        "_failed_at",
        "_fall_back",
        "_foul",
        "_loop",
        "_spool",
        "_syncing",
        "_waiting",
        "rows",
        "sound",
    )

    def __init__(
        self,
        spool: Spool | None,
        clock: Clock,
        epoch: int,
        began_ms: int,
        fall_back: Callable[[list[Waiter]], None],
    ) -> None:
        """``fall_back`` is called when notes failed, to have all committed that is not yet.

        It is given those who wait, and are to be told then.
        """
        self._spool = spool
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._epoch = epoch
        self._began_ms = began_ms
        self._fall_back = fall_back
        self._failed_at: float | None = None
        self._foul = 0
        self._waiting: list[Waiter] = []
        self._syncing: list[Waiter] = []
        self.rows: list[tuple[Any, ...]] = []
        self.sound = spool is not None

    def opened(self, opening: tuple[Any, ...]) -> None:
        """Note a reservation with the next ``put_down``."""
        self.rows.append(opening + _OPEN)

    def durable(self, *, spends: bool) -> asyncio.Future[None]:
        """Done when all that stands in ``rows`` by now is on the disk; only while ``sound``.

        ``spends``: a provider is called then, so it fails where it cannot be made durable.
        """
        future = self._loop.create_future()
        if not self._waiting and not self._syncing:
            self._loop.call_soon(self._sync)
        self._waiting.append((future, spends))
        return future

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
            return
        self._foul = max(self._foul - 1, 0)
        failed_at = self._failed_at
        if failed_at is not None and not self._foul:
            self.sound = self._clock.monotonic() - failed_at >= RETRY

    def close(self) -> None:
        """Let go of the spool. What is not committed stays noted for the next start."""
        if self._spool is not None:
            self.put_down()
            self.sound = False
            self._spool.close()
            self._spool = None

    def _sync(self) -> None:
        self.put_down()
        if self._spool is None or not self._waiting:
            return  # closed, or they wait for a commit now
        self._syncing, self._waiting = self._waiting, []
        self._spool.sync(self._synced)

    def _synced(self, error: StorageFailed | None) -> None:
        waiters, self._syncing = self._syncing, []
        if error is not None:
            self._waiting = waiters + self._waiting
            self._failed(error)
            return
        for future, _ in waiters:
            if not future.done():
                future.set_result(None)
        if self._waiting:
            self._sync()

    def _failed(self, error: Exception) -> None:
        self.sound = False
        self._foul = 2  # both parts may have a hole now, and are used again when they were emptied
        self._failed_at = self._clock.monotonic()
        _log.warning("Answers wait for the database now: %s", error)
        waiting, self._waiting = self._waiting, []
        self._fall_back(waiting)


def replay(tx: Transaction, records: list[bytes]) -> int:
    """Book what a dead process had noted and may not have committed; how many ended so.

    A second time changes nothing: a row that stands closed is as it was noted, one that was noted
    as open stands, and one that does not stand any more was added up with its day.

    Raises:
        StorageRefused: the notes belong to another database or another release.
    """
    adds: dict[tuple[str, str, int], list[int]] = {}
    booked = 0
    [(added_up,)] = tx.execute(_ADDED_UP)
    for record in records:
        for row in _rows(tx, record):
            found = tx.execute(_STATE, row[:1])
            ended = row[_OPENING] != "open"
            reserved = 0 if ended else row[_RESERVED]
            if not found and row[0] <= added_up:
                continue
            if not found:
                tx.execute(WHOLE, row)
            elif ended and found[0][0] == "open":
                tx.execute(CLOSE, (*row[_OPENING:], row[0]))
                reserved = -found[0][1]
            else:
                continue
            booked += ended
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
