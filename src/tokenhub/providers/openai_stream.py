"""One OpenAI event stream, relayed byte for byte and read on the way.

Fast path: a read that holds whole plain events is checked and read in one call (about 1 us per
event) and returned as it came. Anything odd, comments, CRLF, other fields, a broken event, takes
that read event by event through the SSE reader; the bytes that come out are the same.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.providers.adapter import DONE, MAX_EVENT, StreamRelay
from tokenhub.providers.failures import classify_event, garbage
from tokenhub.providers.openai_events import decode_lines, read_event, said
from tokenhub.providers.sse import EventReader, EventTooLarge

if TYPE_CHECKING:
    from tokenhub.providers.openai_events import Event

_PREFIX = b"data: "
_BREAK = b"\n\n"
_JOINT = b"\n\ndata: "
_LEAD = 16 * 1024  # bytes kept back while no content has come


class OpenAIRelay(StreamRelay):
    """A ``StreamRelay`` between two speakers of OpenAI's dialect.

    Comments and fields other than ``data`` are dropped; they carry nothing in this dialect.

    Args:
        show_usage: whether the client asked for the extra usage chunk; else it is kept back.
    """

    def __init__(self, *, show_usage: bool) -> None:
        super().__init__(show_usage=show_usage)
        self._tail = b""
        self._held = b""
        self._live = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._reader: EventReader | None = None

    def feed(self, data: bytes) -> bytes:
        """Whole events of this read, with what was left of the last one in front."""
        if self._over():
            return b""
        if self._reader is not None:
            return self._release(self._one_by_one(self._reader, data))
        if b"\r" in data:
            return self._release(self._switch(data))
        if self._tail:
            data = self._tail + data
        end = data.rfind(_BREAK) + 2
        if end == 1:
            return self._wait(data)
        block = data if end == len(data) else data[:end]
        self._tail = data[end:]
        out = self._plain(block)
        if out is None:
            out = self._one_by_one(EventReader(), block)
        return self._release(out)

    def finish(self) -> bytes:
        """The held-back end: ``[DONE]`` after a complete answer, else the error event."""
        out = self._last_words()
        if self.failure is not None:
            return out
        if not self._seen:
            return self._fail(garbage("sent a stream without an answer"))
        ended = bool(self._finished) and self._seen <= self._finished
        if not (self.complete or ended):
            return out + self._fail(
                ProviderError(FailureClass.RESET, "The provider's stream ended before its answer.")
            )
        self.complete = self.started = True
        held, self._held = self._held, b""
        return held + out + DONE

    def _plain(self, block: bytes) -> bytes | None:
        """The block if every event in it is plain and sound, else None and nothing is noted."""
        done = block.endswith(DONE)
        body = block[: -len(DONE)] if done else block
        if not body:
            self.complete = done
            return b""
        if not body.startswith(_PREFIX) or not body.endswith(_BREAK):
            return None
        try:
            if not body.isascii():
                body.decode()
            events = decode_lines(body[len(_PREFIX) :].replace(_JOINT, b"\n"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        # Two line ends an event and no more: no second document on a line, no lines to spare.
        if body.count(b"\n") != 2 * len(events):
            return None
        if any(event.error is not None or event.kind == "error" for event in events):
            return None
        kept = [self._note(event) for event in events]
        self.complete = done
        if all(kept):
            return body
        parts = list(compress(body[len(_PREFIX) : -2].split(_JOINT), kept))
        return _PREFIX + _JOINT.join(parts) + _BREAK if parts else b""

    def _one_by_one(self, reader: EventReader, data: bytes) -> bytes:
        try:
            events = reader.feed(data)
        except EventTooLarge:
            return self._fail(garbage("sent an event of more than 8 MiB"))
        out = bytearray()
        for event in events:
            out += self._payload(event.data)
            if self._over():
                break
        return bytes(out)

    def _payload(self, payload: bytes) -> bytes:
        if payload.strip() == b"[DONE]":
            self.complete = True
            return b""
        event = read_event(payload)
        if event is None:
            self.malformed += 1
            return b""
        if event.failed:
            return self._fail(classify_event(payload))
        if not self._note(event):
            return b""
        # A line end inside JSON is white space; the event goes out as one line.
        return _PREFIX + payload.replace(b"\n", b" ") + _BREAK

    def _note(self, event: Event) -> bool:
        """Take down what the event says; False when the client must not see it."""
        if event.usage is not None:
            self.usage = event.usage.tokens(event.service_tier)
        if not event.choices:
            return self._show_usage or event.usage is None
        for choice in event.choices:
            self._seen.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
                self.finish_reason = self.finish_reason or choice.finish_reason
                self._live = True
            size = said(choice)
            if size:
                self._live = True
                self.content_bytes += size
        return True

    def _release(self, out: bytes) -> bytes:
        # What comes before the first content (a role, an empty delta) waits, so that an error in
        # its place still lets another provider answer.
        if self.started:
            return out
        if self.failure is not None:
            return b""
        if not self._live and len(self._held) + len(out) <= _LEAD:
            self._held += out
            return b""
        out, self._held = self._held + out, b""
        self.started = bool(out)
        return out

    def _wait(self, tail: bytes) -> bytes:
        self._tail = tail
        if len(tail) <= MAX_EVENT:
            return b""
        self._tail = b""
        return self._fail(garbage("sent an event of more than 8 MiB"))

    def _switch(self, data: bytes) -> bytes:
        """Other line ends: from here on the SSE reader finds the events."""
        self._reader = EventReader()
        data, self._tail = self._tail + data, b""
        return self._one_by_one(self._reader, data)

    def _last_words(self) -> bytes:
        """The last event of a server that saves the empty line after it."""
        if self._over():
            return b""
        before = self.malformed
        if self._reader is not None:
            out = self._release(self._one_by_one(self._reader, b"\n\n"))
        else:
            tail, self._tail = self._tail, b""
            out = self._release(self._one_by_one(EventReader(), tail + _BREAK))
        self.malformed = before
        return out
