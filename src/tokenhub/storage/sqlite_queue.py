"""What waits for the SQLite writer: a write that somebody waits for never waits for many rows.

Patient writes, the rows of the logs, are overtaken by all others. While nobody else waits they
share one transaction; where somebody does, each transaction takes one of them along.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenhub.storage.database import Transaction

MAX_GROUP = 512  # bounds how long the first closure of a group waits for the last one


class Write:
    """A queued closure, and whom to tell ``(error, value)`` on the loop."""

    __slots__ = ("done", "fn", "patient")

    def __init__(
        self,
        fn: Callable[[Transaction], Any],
        done: Callable[[BaseException | None, Any], None],
        *,
        patient: bool = False,
    ) -> None:
        self.fn = fn
        self.done = done
        self.patient = patient


class WriteQueue:
    """Filled from any thread with writes, and None after the last one; emptied by the writer."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._ready: deque[Write] = deque()
        self._patient: deque[Write] = deque()
        self._open = True
        self.put = self._arrived.put

    def wait(self) -> bool:
        """Wait for a write; False when there is none left and none will come."""
        self._sort(block=not (self._ready or self._patient))
        return bool(self._ready or self._patient)

    def group(self) -> Iterator[Write]:
        """The writes of one transaction, to be run one by one as they come out."""
        ready, patient = self._ready, self._patient
        awaited = bool(ready)
        for _ in range(MAX_GROUP):
            if ready:
                yield ready.popleft()
            elif patient:
                yield patient.popleft()
                self._sort(block=False)
                if awaited or ready:
                    return
            else:
                return

    def _sort(self, *, block: bool) -> None:
        while self._open:
            try:
                write = self._arrived.get(block)
            except queue.Empty:
                return
            block = False
            if write is None:
                self._open = False
            elif write.patient:
                self._patient.append(write)
            else:
                self._ready.append(write)
