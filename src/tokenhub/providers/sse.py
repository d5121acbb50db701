"""Server-sent events on bytes: an incremental reader and a writer.

Source: WHATWG HTML, section 9.2.5 and 9.2.6, "Parsing / interpreting an event stream". The reader
differs from the page's in two ways a gateway needs: it works on bytes (JSON readers check the
UTF-8 later), and one event may not be larger than a cap.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_MAX_EVENT = 8 * 1024 * 1024

_LF = ord("\n")
_CR = ord("\r")
_BREAK = b"\n\n"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Event(NamedTuple):
    """One dispatched event.

    ``event`` is b"" where the stream named none (a browser would say "message"). ``id`` is the
    last id seen so far, which an event without an id of its own inherits.
    """

    data: bytes
    event: bytes = b""
    id: bytes = b""


class EventTooLarge(ValueError):
    """One event of the stream is larger than the reader's cap."""


class EventReader:
    """Bytes in, whole events out; how the stream was cut into reads makes no difference.

    Attributes:
        retry_ms: the reconnection time the stream asked for last, None when it never did.
    """

    __slots__ = (
        "_data", "_event", "_id", "_max_event", "_size", "_skip_lf", "_start", "_tail", "retry_ms",
    )  # fmt: skip

    def __init__(self, max_event: int = DEFAULT_MAX_EVENT) -> None:
        self._max_event = max_event
        self._start: bytes | None = b""  # what may become a byte order mark; None = past it
        self._tail = bytearray()  # the line begun and not yet ended
        self._skip_lf = False  # the last read ended in CR, whose LF may still come
        self._data: list[bytes] = []
        self._size = 0  # bytes of the event begun and not yet dispatched
        self._event = b""
        self._id = b""
        self.retry_ms: int | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that end in ``data``.

        What stands behind the last blank line is kept for the next call. A stream that ends there
        has an incomplete last event, which by the specification is never dispatched.

        Raises:
            EventTooLarge: the event is over the cap; the reader cannot be used any more.
        """
        if self._start is not None:
            data = self._without_bom(data)
        if not data:
            return []
        data = self._with_lf(data)
        if _LF not in data:
            self._tail += data
            self._check(self._size + len(self._tail))
            return []
        lines = data.split(b"\n")
        if self._tail:
            lines[0] = bytes(self._tail) + lines[0]
        self._tail = bytearray(lines.pop())
        events: list[Event] = []
        for line in lines:
            if line:
                self._field(line)
            else:
                self._dispatch(events)
        self._check(self._size + len(self._tail))
        return events

    def _without_bom(self, data: bytes) -> bytes:
        assert self._start is not None
        data = self._start + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(_BOM)

    def _with_lf(self, data: bytes) -> bytes:
        """The same lines, each ended by LF alone; "" is possible after a cut CRLF."""
        if self._skip_lf:
            self._skip_lf = False
            data = data.removeprefix(b"\n")
        if _CR not in data:
            return data
        self._skip_lf = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _field(self, line: bytes) -> None:
        self._size += len(line)
        self._check(self._size)
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value
        elif name == b"retry" and value.isdigit() and len(value) < 16:
            self.retry_ms = int(value)

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(b"\n".join(self._data), self._event, self._id))
            self._data = []
        self._event = b""
        self._size = 0

    def _check(self, size: int) -> None:
        if size > self._max_event:
            raise EventTooLarge(f"One event is larger than {self._max_event} bytes.")


def cut_events(tail: bytearray, data: bytes) -> bytes:
    """``tail`` and ``data`` up to the last blank line, b"" without one; ``tail`` gets the rest.

    For streams whose lines end in LF alone. The tail grows in place, so an event takes linear time
    in however many reads it comes.
    """
    if tail:
        if _BREAK not in data and not (tail[-1] == _LF and data.startswith(b"\n")):
            tail += data
            return b""
        data = b"".join((tail, data))
        tail.clear()
    if data.endswith(_BREAK):
        return data
    end = data.rfind(_BREAK) + len(_BREAK)
    if end < len(_BREAK):
        end = 0
    tail += data[end:]
    return data[:end]


def encode_event(data: bytes, event: bytes = b"", id: bytes = b"") -> bytes:  # noqa: A002
    """One event as it goes over the wire; line ends inside ``data`` become several data lines.

    A reader gives the data back with each line end as LF.

    Raises:
        ValueError: ``event`` or ``id`` holds a line end, or ``id`` a NUL.
    """
    for name, value in (("event", event), ("id", id)):
        if b"\n" in value or b"\r" in value or b"\0" in value:
            raise ValueError(f"`{name}` of a server-sent event holds a line end or NUL.")
    lines = [b"event: %b\n" % event] if event else []
    if id:
        lines.append(b"id: %b\n" % id)
    lines += [b"data: %b\n" % line for line in _LINE_END.split(data)]
    lines.append(b"\n")
    return b"".join(lines)


def encode_comment(text: bytes = b"") -> bytes:
    """A comment, which readers skip: a heartbeat that keeps intermediaries from timing out."""
    return b"".join(b": %b\n" % line for line in _LINE_END.split(text)) + b"\n"
