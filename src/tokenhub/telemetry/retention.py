"""Old rows go, every hour, table by table, in slices that hold no lock for long.

| Rows                  | Kept                                                             |
|-----------------------|------------------------------------------------------------------|
| request log           | ``TOKENHUB_LOG_RETENTION_DAYS``                                  |
| rewards and decisions | ``TOKENHUB_DECISION_RETENTION_DAYS``                             |
| series of seconds     | 1 hour                                                           |
| series of minutes     | 7 days, or the retention if that is shorter                      |
| series of hours, days | as set by ``tsdb retention``, or TOKENHUB_SERIES_RETENTION_DAYS  |
| attempts in the books | as the request log, this month and the last in any case          |
| audit trail, accounts | for ever: they are proof                                         |
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from tokenhub.core.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenhub.core.clock import Clock

log = logging.getLogger(__name__)

FIRST_S = 60.0
EVERY_S = 3_600.0
DAY_MS = 86_400_000


class Rule(NamedTuple):
    """One table's: ``prune(before_ms)`` deletes older rows and says how many; 0 days = keep all."""

    name: str
    days: int
    prune: Callable[[int], Awaitable[int]]


class Retention:
    """Applies rules.

    Attributes:
        deleted: rows deleted since the start, by rule.
    """

    def __init__(self, clock: Clock, rules: tuple[Rule, ...]) -> None:
        self._clock = clock
        self._rules = rules
        self.deleted = {rule.name: 0 for rule in rules}

    async def run(self) -> None:
        """Apply all rules a minute from now and then every hour, until cancelled."""
        await asyncio.sleep(FIRST_S)
        while True:
            await self.apply()
            await asyncio.sleep(EVERY_S)

    async def apply(self) -> None:
        """Apply all rules once. One that fails is logged, and its turn comes again."""
        for rule in self._rules:
            if not rule.days:
                continue
            try:
                before = self._clock.now_ms() - rule.days * DAY_MS
                self.deleted[rule.name] += await rule.prune(before)
            except HubError as error:
                log.warning("Old rows of %s were not deleted: %s", rule.name, error.message)
