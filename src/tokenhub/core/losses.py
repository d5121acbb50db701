"""Losses: says once that rows of a log are lost, and once how many it were."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Losses:
    """What one log loses while it cannot be written; a line for each piece would be 50 a second.

    Args:
        name: of the log, as people read it.
    """

    __slots__ = ("_lost", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._lost = 0

    def lost(self, count: int, error: BaseException) -> None:
        """Some rows could not be written."""
        if not self._lost:
            _log.error("The %s cannot be written; its rows are lost.", self._name, exc_info=error)
        self._lost += count

    def written(self) -> None:
        """Some could."""
        if self._lost:
            _log.warning("The %s can be written again; %d rows are lost.", self._name, self._lost)
            self._lost = 0
