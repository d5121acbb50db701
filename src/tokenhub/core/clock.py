"""Now, monotonic time and new ids: the three things tests must be able to move."""

from __future__ import annotations

import itertools
import os
import time
from typing import Protocol


class Clock(Protocol):
    """Where every room gets its time and its ids from."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; the origin means nothing."""
        ...

    def new_id(self) -> str:
        """A fresh request id: unique over restarts, URL-safe, short."""
        ...


class SystemClock:
    """The real clock.

    Ids are a random prefix per process and a counter: 0.25 us against 2.7 us for a UUID.
    """

    def __init__(self) -> None:
        self._prefix = f"r-{os.urandom(6).hex()}-"
        self._counter = itertools.count(1)

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds UTC."""
        return time.time_ns() // 1_000_000

    # Not a method of ours: it is asked a dozen times per request, and the frame is dearer than it.
    monotonic = staticmethod(time.monotonic)

    def new_id(self) -> str:
        """A fresh id like ``r-3f9a0c1b2d4e-1a``."""
        return self._prefix + "%x" % next(self._counter)  # noqa: UP031  # twice as fast as format
