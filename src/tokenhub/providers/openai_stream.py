"""One OpenAI event stream, relayed byte for byte and read on the way.

Most reads hold events that differ in their words alone, and are checked by their pattern. Other
plain events are decoded one by one and their bytes returned as they came. Anything odd, comments,
CRLF, other fields, a broken event, takes that read event by event through the SSE reader. The bytes
that come out, and what is noted of them, are the same on all three ways.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.providers.adapter import DONE, MAX_EVENT, StreamRelay
from tokenhub.providers.failures import classify_event, garbage, no_stream
from tokenhub.providers.openai_events import decode_event, read_event, said
from tokenhub.providers.openai_pattern import learn
from tokenhub.providers.sse import EventReader, EventTooLarge, cut_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenhub.providers.openai_events import Event
    from tokenhub.providers.openai_pattern import Pattern

_PREFIX = b"data: "
_BREAK = b"\n\n"
_JOINT = b"\n\ndata: "
_LF = ord("\n")
_CR = ord("\r")
_LEAD = 16 * 1024  # bytes kept back while no content has come
_NO_CHOICE: frozenset[int] = frozenset()
_FIRST_CHOICE = frozenset({0})
_GUESSES = 4  # reads in a row that are searched for a pattern in vain


class OpenAIRelay(StreamRelay):
    """A ``StreamRelay`` between two speakers of OpenAI's dialect.

    Comments and fields other than ``data`` are dropped; they carry nothing in this dialect.

    Args:
        show_usage: whether the client asked for the extra usage chunk; else it is kept back.
    """

    __slots__ = (
        "_finished", "_guesses", "_held", "_live", "_pattern", "_reader", "_seen", "_tail",
    )  # fmt: skip

    def __init__(self, *, show_usage: bool) -> None:
        super().__init__(show_usage=show_usage)
        self._tail = bytearray()
        self._held = b""
        self._live = False
        # Nearly always one choice: shared sets of it weigh nothing.
        self._seen = self._finished = _NO_CHOICE
        self._reader: EventReader | None = None
        self._pattern: Pattern | None = None
        self._guesses = _GUESSES

    def feed(self, data: bytes, chunks: Sequence[bytes] = ()) -> bytes:
        """Whole events of this read, with what was left of the last one in front."""
        if self.complete or self.failure is not None:
            return b""
        pattern = self._pattern
        if (
            pattern is not None
            and not chunks
            and not self._tail
            and (size := pattern.said(data)) >= 0
        ):
            # Nothing but words, most reads of a slow stream: what else there is to note of them
            # was noted when the pattern was learnt.
            self.content_bytes += size
            self._guesses = _GUESSES
            return data if self.started else self._release(data)
        if self._unread is not None:
            whole = self._begin(data)
            if not whole:
                return b""
            if whole is not data:
                data, chunks = whole, ()
        if self._reader is not None:
            return self._release(self._one_by_one(self._reader, data))
        if _CR in data:
            return self._release(self._switch(data))
        if self._tail or not data.endswith(_BREAK):
            data, chunks = cut_events(self._tail, data), ()
            if not data:
                return self._wait()
        out = self._plain(data, chunks)
        if out is None:
            out = self._one_by_one(EventReader(), data)
        return out if self.started else self._release(out)

    def finish(self) -> bytes:
        """The held-back end: ``[DONE]`` after a complete answer, else the error event."""
        out = self._last_words()
        if self.failure is not None:
            return out
        if not self._seen:
            return self._fail(no_stream(self._unread or b""))
        ended = bool(self._finished) and self._seen <= self._finished
        if not (self.complete or ended):
            return out + self._fail(
                ProviderError(FailureClass.RESET, "The provider's stream ended before its answer.")
            )
        self.complete = self.started = True
        held, self._held = self._held, b""
        return held + out + DONE

    def _plain(self, block: bytes, chunks: Sequence[bytes] = ()) -> bytes | None:
        """What to relay if every event is plain and sound, else None and nothing is noted."""
        row = self._row(block, chunks)
        start, end, size = (0, 0, 0) if row is None else row
        before, after = block[:start], block[end:]
        done = after.endswith(DONE)
        if done:
            after = after[: -len(DONE)]
        first, last = _read(before), _read(after)
        if first is None or last is None:
            return None
        before = self._kept(before, first)
        if row is not None:
            assert self._pattern is not None
            self._seen = _with(self._seen, self._pattern.choice)
            if size:
                self._live = True
                self.content_bytes += size
        after = self._kept(after, last)
        self.complete = done
        if len(before) + end - start + len(after) == len(block):
            return block
        return b"".join((before, memoryview(block)[start:end], after))

    def _row(self, body: bytes, chunks: Sequence[bytes]) -> tuple[int, int, int] | None:
        """The events of this stream's pattern; it is learnt anew when the words become others'."""
        row = None if self._pattern is None else self._pattern.find(body, chunks)
        if row is not None:
            self._guesses = _GUESSES
        elif self._guesses:
            self._guesses -= 1
            # Kept when there is nothing to learn: a comment or a tool call came in between.
            if (pattern := learn(body)) is not None:
                self._pattern = pattern
                row = pattern.find(body, chunks)
        return row

    def _kept(self, body: bytes, events: list[Event]) -> bytes:
        """Take down what sound events say; their bytes, but for those kept from the client."""
        kept = [self._note(event) for event in events]
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
        if (told := event.usage) is not None and not told.says_nothing():
            self.usage = told.tokens(event.service_tier)
        if not event.choices:
            return self._show_usage or event.usage is None
        for choice in event.choices:
            self._seen = _with(self._seen, choice.index)
            if choice.finish_reason is not None:
                self._finished = _with(self._finished, choice.index)
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

    def _wait(self) -> bytes:
        if len(self._tail) <= MAX_EVENT:
            return b""
        self._tail.clear()
        return self._fail(garbage("sent an event of more than 8 MiB"))

    def _switch(self, data: bytes) -> bytes:
        """Other line ends: from here on the SSE reader finds the events."""
        self._reader = EventReader()
        self._pattern = None
        data = b"".join((self._tail, data))
        self._tail.clear()
        return self._one_by_one(self._reader, data)

    def _last_words(self) -> bytes:
        """The last event of a server that saves the empty line after it."""
        if self._over():
            return b""
        before = self.malformed
        if self._reader is not None:
            out = self._release(self._one_by_one(self._reader, b"\n\n"))
        else:
            tail = b"".join((self._tail, _BREAK))
            self._tail.clear()
            out = self._release(self._one_by_one(EventReader(), tail))
        self.malformed = before
        return out


def _with(choices: frozenset[int], index: int) -> frozenset[int]:
    if index in choices:
        return choices
    return choices | {index} if choices or index else _FIRST_CHOICE


def _read(body: bytes) -> list[Event] | None:
    """The events of whole reads that hold plain sound ones and no error, else None."""
    if not body:
        return []
    if not body.startswith(_PREFIX) or not body.endswith(_BREAK):
        return None
    payloads = body[len(_PREFIX) : -2].split(_JOINT)
    # JSON may be broken into lines, an event's data may not.
    if any(_LF in payload for payload in payloads):
        return None
    try:
        if not body.isascii():
            body.decode()
        events = [decode_event(payload) for payload in payloads]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for event in events:
        if event.error is not None or event.kind == "error":
            return None
    return events
