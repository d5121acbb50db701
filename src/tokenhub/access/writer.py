"""Writer: sends the ledger's batches to the database, one at a time and in order.

What is booked within ``PACE`` goes out together, at once when somebody waits for it; while a batch
is on its way to the disk the next one grows. A batch that cannot be written is tried again until it
can: nothing booked is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from tokenhub.access.batch import Batch
from tokenhub.access.daybook import Daybook
from tokenhub.access.refusals import unwritten
from tokenhub.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.access.daybook import Waiter
    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Database, Transaction
    from tokenhub.storage.spool import Spool

PACE = 0.02
"""Seconds for which what nobody waits for may stand in the daybook alone."""

_RETRY_FIRST, _RETRY_MOST = 0.1, 5.0

_log = logging.getLogger(__name__)


class Writer:
    """The queue of one batch between the books in memory and those on disk.

    Attributes:
        busy: a batch is on its way, or a time is set for it.
        hurried: the next one goes out as soon as it can.
        pending: what goes out next.
        daybook: where what is settled outlives this process until it is written.
        failing_since: monotonic seconds since which nothing could be written, None if all is well.
    """

    def __init__(
        self,
        db: Database,
        spool: Spool | None,
        clock: Clock,
        epoch: int,
        began_ms: int,
        before: Callable[[Batch], None],
    ) -> None:
        """``before`` is shown each batch just before it goes out."""
        self._db = db
        self._clock = clock
        self._before = before
        self._loop = asyncio.get_running_loop()
        self._epoch = epoch
        self._timer: asyncio.TimerHandle | None = None
        self.busy = False
        self.hurried = False
        self._stopped = False
        self._delay = _RETRY_FIRST
        self.pending = Batch(self._epoch)
        self.daybook = Daybook(spool, clock, epoch, began_ms, self._take_over)
        self.failing_since: float | None = None

    def schedule(self) -> None:
        """Send ``pending`` within ``PACE``, or when the way is free."""
        if not self.busy:
            self.busy = True
            self._timer = self._loop.call_later(PACE, self._send)

    def hurry(self) -> None:
        """Send ``pending`` at the end of this turn of the loop, or when the way is free."""
        if self.hurried:
            return
        self.hurried = True
        if self._timer is not None:
            self._timer.cancel()
        elif self.busy:
            return
        self.busy = True
        self._loop.call_soon(self._send)

    async def flush(self) -> None:
        """Wait until everything booked so far is durable.

        Raises:
            Unavailable: it cannot be written now.
        """
        if self.failing_since is not None:
            raise unwritten()
        if self.busy or self.pending:
            future = self._loop.create_future()
            self.pending.reserving.append(future)
            self.hurry()
            await future

    async def stop(self) -> bool:
        """Write the rest; False when that is not possible (no further attempt is made)."""
        self._stopped = True
        try:
            await self.flush()
        except Unavailable:
            return False
        return True

    def _take_over(self, waiters: list[Waiter]) -> None:
        pending = self.pending
        for future, spends in waiters:
            (pending.reserving if spends else pending.settling).append(future)
        self.hurry()

    def _send(self) -> None:
        self._timer = None
        self.hurried = False
        batch = self.pending
        self._before(batch)
        self.daybook.turn()
        self.pending = Batch(self._epoch)
        self._write(batch.statements(), batch)

    def _write(self, statements: Callable[[Transaction], None], batch: Batch) -> None:
        done = partial(self._landed, statements, batch)
        try:
            self._db.write_soon(statements, done)
        except Unavailable as error:
            self._loop.call_soon(done, error)

    def _landed(
        self,
        statements: Callable[[Transaction], None],
        batch: Batch,
        error: BaseException | None,
    ) -> None:
        if error is not None:
            self._delayed(statements, batch, error)
            return
        if self.failing_since is not None:
            _log.warning("The ledger can be written again.")
            self.failing_since = None
            self._delay = _RETRY_FIRST
        self.daybook.landed()
        batch.landed()
        if self.hurried:
            self._send()
        elif self.pending:
            self._timer = self._loop.call_later(PACE, self._send)
        else:
            self.busy = False

    def _delayed(
        self,
        statements: Callable[[Transaction], None],
        batch: Batch,
        error: BaseException,
    ) -> None:
        if self.failing_since is None:
            self.failing_since = self._clock.monotonic()
            _log.critical(
                "The ledger cannot be written; budgeted keys are refused.", exc_info=error
            )
        batch.delayed()
        self.pending.delayed()
        if not self._stopped:
            self._loop.call_later(self._delay, self._write, statements, batch)
            self._delay = min(self._delay * 2, _RETRY_MOST)
