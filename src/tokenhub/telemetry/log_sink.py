"""Where the log's lines go: a stream, written by a thread of its own.

A pipe whose reader has stopped, a terminal that is held, a disk that hangs: whoever writes to them
waits, and a server that waits for its log answers nobody. So what is logged is only put down here,
and what does not fit any more is lost and counted.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import TextIO

MAX_WAITING = 2**20  # characters
FLUSH_S = 1.0


class Sink(logging.Handler):
    """Hands lines to the thread that writes them; never waits.

    Attributes:
        lost: lines that were not written, because nobody took them or the stream was closed.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._size = 0  # characters of them
        self._untold = 0  # lines lost since what waits last was written
        self._writing = self._closed = False
        self._thread: threading.Thread | None = None
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record's line down."""
        try:
            self.say(self.format(record))
        except Exception:  # noqa: BLE001  # as every handler of logging
            self.handleError(record)

    def say(self, line: str) -> None:
        """Put a line down as it is."""
        with self._changed:
            if self._closed or self._size + len(line) > MAX_WAITING:
                self.lost += 1
                self._untold += 1
                return
            self._waiting.append(line)
            self._size += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, a second at most."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), FLUSH_S)

    def close(self) -> None:
        """Write what waits, as far as ``flush`` goes, and take no more."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """A record that cannot be formatted is lost, and says nothing on stderr."""
        del record
        self.lost += 1

    def _run(self) -> None:
        while lines := self._take():
            try:
                self._write("\n".join([*lines, ""]))
            except (OSError, ValueError):  # nobody reads it any more, or it was closed
                self.lost += len(lines)

    def _take(self) -> list[str]:
        """All that waits, waiting for the first; nothing once the sink is closed."""
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            lines, self._waiting, self._size = self._waiting, [], 0
            lost, self._untold = self._untold, 0
            self._writing = bool(lines)
        if lost:
            lines.append(self.format(_notice(lost)))
        return lines

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            return
        # Not through the stream: its lock, held by a thread that waits, would abort the exit.
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever started us made it so
                select.select([], [self._descriptor], [])


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _notice(lost: int) -> logging.LogRecord:
    told = {"msg": "log lines were lost: nobody took them", "lost": lost}
    level = {"levelno": logging.WARNING, "levelname": "WARNING", "name": __name__}
    return logging.makeLogRecord(told | level)
