"""Server-sent events, read as the HTML standard says (section 9.2.6), whatever the chunking."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """One dispatched event. ``id`` is the last id seen so far, "" when there was none."""

    id: str
    type: str
    data: str


class EventReader:
    """Bytes in, whole events out; an event cut off by the end of the stream is dropped.

    Args:
        last_id: where a former connection stopped. ``last_id`` is always that of a whole event,
            so a reconnect with it neither skips nor repeats one.
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._id = last_id
        self.retry_ms: int | None = None
        self._line = bytearray()
        self._after_cr = False
        self._first = True
        self._type = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if not data:
            return []
        self._after_cr = data[-1:] == b"\r"
        events: list[Event] = []
        for part in data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").splitlines(keepends=True):
            self._line += part
            if part.endswith(b"\n"):
                line = bytes(self._line[:-1])
                self._line.clear()
                if event := self._take(line):
                    events.append(event)
        return events

    def _take(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", "replace").partition(":")
        self._field(name, value.removeprefix(" "))
        return None

    def _field(self, name: str, value: str) -> None:
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> Event | None:
        kind, data = self._type or "message", self._data
        self.last_id = self._id
        self._type, self._data = "", []
        return Event(self.last_id, kind, "\n".join(data)) if data else None
