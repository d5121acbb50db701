"""One HTTP/1.1 connection to an upstream: an ``asyncio.Protocol`` on httptools (llhttp).

It serves one request at a time. What a request needs is in the ``Answer`` it gets, never on the
connection, so a connection that is free again cannot change an answer already given:

    free ──exchange()──▶ waiter set ──headers (stream)──▶ StreamAnswer ──┐
      ▲                      │ message complete (whole)                   │ message complete
      └──── Owner.released ◀─┴────────────────────────────────────────────┘
    any state ──error, limit, abort()──▶ closed ──▶ Owner.lost

llhttp runs in its strict mode: bare CR or LF, control characters and NUL in headers, folded
headers, conflicting or repeated Content-Length and malformed chunk sizes or extensions end the
connection. What llhttp lets pass and we do not is checked in ``on_headers_complete``. A head in a
known frame (``frames.py``) is one that both have found right: a whole answer with it is not parsed.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.providers.frames import MAX_KNOWN, Frames, short_head
from tokenhub.providers.stream import StreamAnswer
from tokenhub.providers.upstream import MAX_STREAM_BODY, MAX_WHOLE_BODY, Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenhub.core.outbox import Outbox
    from tokenhub.providers.upstream import Timeouts

MAX_HEAD = 64 * 1024
MAX_HEADERS = 200
# An idle connection that the other end had already closed shows it at once. One that breaks
# later broke while the provider was working, and sending again could be paid for twice.
STALE_SECONDS = 1.0
# A chunk of one byte costs six on the wire. Much worse than that is an attack on our memory or
# processor by way of chunk extensions and the like.
_MAX_OVERHEAD = 8
_SLACK = 2 * MAX_HEAD
_WELL_INSIDE = 64 * 1024  # bytes on the wire, of any limit on them
_NO_HEADERS: dict[bytes, bytes] = {}


class StaleConnection(TransportError):
    """A reused connection was closed or spoiled by the other end before the answer began."""


class Owner(Protocol):
    """Who keeps a connection between requests."""

    def released(self, connection: Connection) -> None:
        """The answer has been given away; the connection can serve another request."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is closed. Called once."""
        ...


class _Stop(Exception):
    """Raised in a parser callback to make the parser give up."""


class Connection(asyncio.Protocol):
    """See the module's text. All methods are called on the loop's thread."""

    __slots__ = (
        "_active", "_body", "_closed", "_deadline", "_done", "_extra", "_fault", "_frames", "_head",
        "_head_done", "_headers", "_keep_alive", "_limits", "_loop", "_outbox", "_owner", "_parser",
        "_parts", "_reading", "_repeated", "_size", "_sized", "_started", "_status", "_stream",
        "_streaming", "_transport", "_waiter", "_wire", "idle_until", "on_body", "uses",
    )  # fmt: skip

    _transport: asyncio.Transport
    _limits: Timeouts  # of the request under way, which began at ``_started``
    _started: float
    _active: bool
    _head_done: bool
    _done: bool
    _keep_alive: bool
    _size: int
    _wire: int
    _deadline: float

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: Owner,
        outbox: Outbox,
        frames: Frames | None = None,
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._outbox = outbox
        self._frames = Frames() if frames is None else frames
        self._closed = False
        self._reading = True
        self._waiter: asyncio.Future[Answer] | None = None
        self._stream: StreamAnswer | None = None
        self._extra = False
        self._begin_anew()
        self._fault = ""  # once there is one, the connection does not serve again
        self._body: bytearray | None = None
        self._headers = _NO_HEADERS
        self._head: bytes | None = None  # that was known by its frame, instead of its headers
        self._sized = False  # the answer says where it ends
        self._parts: list[bytes] = []
        # The parser calls the list itself: a frame of Python for each chunk would add a quarter to
        # reading a stream. Set before the parser looks for its callbacks.
        self.on_body = self._parts.append
        self._parser: HttpResponseParser | None = None  # until there is somebody to listen to
        self.uses = 0  # requests begun on it
        self.idle_until = math.inf  # loop time at which its owner gives it up

    def usable(self) -> bool:
        """Whether a request can be sent on it now, as far as this end can know."""
        return not self._closed and not self._transport.is_closing()

    def addresses(self) -> tuple[str, str]:
        """Our own address and the other end's, without ports."""
        info = self._transport.get_extra_info
        return (info("sockname") or ("",))[0], (info("peername") or ("",))[0]

    def exchange(
        self,
        request: bytes | Sequence[bytes | memoryview],
        timeouts: Timeouts,
        stream: bool,  # noqa: FBT001  # named, it costs as much as the call
    ) -> asyncio.Future[Answer]:
        """Send a request; the future gets the answer. The connection must be free and usable.

        Args:
            request: as it goes out; a long one in parts, which are sent uncopied.
            timeouts: its limits.
            stream: give the answer away as soon as its headers are there.
        """
        loop = self._loop
        self._started = loop.time()
        self._limits = timeouts
        self._streaming = stream
        self.uses += 1
        self._waiter = waiter = loop.create_future()
        if isinstance(request, bytes):
            self._outbox.write(self._transport, request)
        else:
            self._transport.writelines(request)
        return waiter

    def withdraw(self, waiter: asyncio.Future[Answer]) -> None:
        """The task that awaited ``waiter`` was cancelled: close, unless that exchange is over."""
        if waiter is self._waiter:
            self.close()
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            # Answered in the same turn of the loop: a whole answer has nothing left to abort, and
            # the connection may serve somebody else by now.
            waiter.result().abort()

    def check(self, now: float) -> None:
        """Enforce the limits; called by the owner's sweep."""
        if self._waiter is None and self._stream is None:
            if now >= self.idle_until:
                self.close()
            return
        limits = self._limits
        deadline = self._deadline or self._started + limits.first_byte
        if limits.total is not None and now >= self._started + limits.total:
            self._expire("the answer took longer than the limit for the whole request")
        elif self._stream is not None and self._stream.paused:
            self._deadline = max(deadline, now + limits.idle)
        elif self._active:
            # Set by whatever read brought, cleared here: no look at the clock for each read.
            self._active = False
            self._deadline = now + limits.idle
        elif now >= deadline:
            what = "fell silent in mid-answer" if self._size else "sent no first byte in time"
            self._expire(f"the provider {what}")

    def close(self, error: BaseException | None = None) -> None:
        """Close at once; an exchange under way fails with ``error``."""
        waiter, stream = self._waiter, self._stream
        self._waiter = self._stream = None
        if not self._closed:
            self._closed = True
            self._transport.abort()
            self._owner.lost(self)
        if error is None and (waiter or stream):
            error = TransportError(FailureClass.RESET, "this side closed the connection", sent=True)
        if waiter is not None and not waiter.done():
            assert error is not None
            waiter.set_exception(error)
        if stream is not None:
            assert error is not None
            stream.fail(error)

    def touch(self) -> None:
        """Begin the idle limit anew: reading was resumed. Before the first byte it has no say."""
        self._active = self._size > 0

    def set_reading(self, reading: bool) -> None:  # noqa: FBT001 - a switch
        """Read from the socket, or leave the bytes in the kernel so that the sender must wait."""
        if reading is self._reading or not self.usable():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; also called by hand behind a proxy's tunnel."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        self._parser = HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse one read, then hand on what it brought: headers, body, end or error."""
        waiter, stream = self._waiter, self._stream
        if waiter.done() if waiter is not None else stream is None:
            # Nobody waits. Bytes without a question: not to be trusted with another one. Bytes
            # for a task that was cancelled a moment ago: it will not take them any more.
            self.close()
            return
        head = found = None
        fed: bytes | memoryview = data
        if not self._wire:
            if self._outbox.holds(self._transport):
                self._spoke_first()
                return
            for frame in self._frames.known:
                if (found := frame.match(data, 0, MAX_KNOWN)) is None:
                    continue
                end = found.end()
                whole = found.lastindex and len(data) == end + int(found[1])
                if whole and not self._streaming and len(data) <= _WELL_INSIDE:
                    # Most answers: nothing is left to parse, and the parser need not know of it.
                    assert waiter is not None
                    self._waiter = None
                    waiter.set_result(Answer(200, data, data[end:]))
                    if self._transport.get_write_buffer_size():  # see ``_free``
                        self.close()
                    else:
                        self._owner.released(self)
                    return
                head, fed = short_head(found), memoryview(data)[end:]  # not copied
                break
        assert self._parser is not None
        self._wire += len(data)
        try:
            if head is not None:
                self._parser.feed_data(head)
            self._parser.feed_data(fed)
        except (HttpParserError, HttpParserUpgrade) as error:
            if self._done:
                self._extra = True
            elif self.uses == 1 and self._parser.get_http_version() == "0.0":
                message = "what answers there does not speak HTTP"
                self.close(TransportError(FailureClass.MISDIRECTED, message, sent=True))
                return
            else:
                self._fault = self._fault or f"the answer is not HTTP/1.1: {error}"
        parts = self._parts
        if stream is not None and len(parts) == 1 and not self._done and not self._fault:
            # Most reads of a stream: one piece of its body, inside all limits.
            size = self._size + len(parts[0])
            if self._wire <= _MAX_OVERHEAD * size + _SLACK and size <= MAX_STREAM_BODY:
                self._size = size
                self._active = True
                stream.push(parts.pop())
                return
        if not self._head_done:
            if not self._fault and self._wire > MAX_HEAD:
                self._fault = f"the answer's headers are larger than {MAX_HEAD} bytes"
            if self._fault:
                self._refuse()
            return
        if found is not None:
            self._head = data[: found.end()]
        elif self._frames.curious and self._wire == len(data) and not self._fault:
            self._frames.learn(data)
        if self._done and waiter is not None and self._body is None and self._wire <= _WELL_INSIDE:
            # Most answers: whole in one read, and too small for any limit.
            self._waiter = None
            chunks = parts[:]
            parts.clear()
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            waiter.set_result(Answer(self._status, self._head or self._headers, body, chunks))
            self._free()
            return
        chunks = parts[:]
        data = self._take_parts()
        stream = self._stream
        if stream is None or self._done or self._fault:
            self._hand_on(data, chunks)
        elif data:
            stream.push(data, chunks)

    def eof_received(self) -> None:
        """The other end will send no more."""
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by either end or the network."""
        self._ended(exc)
        # The parser holds our bound methods: without this only the cycle collector would free us.
        self._parser = None

    # httptools' callbacks, inside feed_data

    def on_message_begin(self) -> None:
        """A status line begins: the answer's, or an interim answer's before it."""
        if self._done:
            raise _Stop  # a second answer to one request
        self._headers = {}
        self._head = None
        self._repeated = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer, which is dropped."""
        if self._head_done:
            return
        headers = self._headers
        name = name.lower()
        if name in headers:
            self._repeated += 1
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Check what the parser does not."""
        assert self._parser is not None
        self._status = status = self._parser.get_status_code()
        if status == 101:
            self._stop("the answer switches protocols")
        if not 100 <= status <= 599:
            self._stop(f"the answer has the status {status}")
        if status < 200:
            return
        headers = self._headers
        if len(headers) + self._repeated > MAX_HEADERS:
            self._stop(f"the answer has more than {MAX_HEADERS} headers")
        coding = headers.get(b"content-encoding")
        if coding and coding.lower() != b"identity":
            self._stop("the answer is compressed, which was not asked for")
        framing = headers.get(b"transfer-encoding")
        self._sized = framing is not None or b"content-length" in headers
        if framing is not None and framing.lower() != b"chunked":
            self._stop("the answer has an unknown transfer encoding")
        # The read may hold body bytes too, so it alone does not say how large the head was.
        if self._wire > MAX_HEAD and _size(headers) > MAX_HEAD:
            self._stop(f"the answer's headers are larger than {MAX_HEAD} bytes")
        self._head_done = True

    def on_message_complete(self) -> None:
        """The end of the answer, or of an interim one."""
        if self._head_done:
            assert self._parser is not None
            self._done = True
            # Only in here: once feed_data has returned, the parser has begun the next message
            # and says False.
            self._keep_alive = self._parser.should_keep_alive()

    def _begin_anew(self) -> None:
        """Forget what was read. An answer that the parser was not asked about leaves nothing."""
        self._active = self._head_done = self._done = self._keep_alive = False
        self._size = self._wire = 0
        self._deadline = 0.0  # that of silence, on the loop's clock; 0 = the one for the first byte

    def _stop(self, fault: str) -> None:
        self._fault = fault
        raise _Stop

    def _take_parts(self) -> bytes:
        parts = self._parts
        if not parts:
            data = b""
        else:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._size += len(data)
            self._active = True
            if self._size > (MAX_STREAM_BODY if self._streaming else MAX_WHOLE_BODY):
                self._fault = self._fault or "the answer's body is too large"
                return b""
        if self._wire > _MAX_OVERHEAD * self._size + _SLACK:
            self._fault = self._fault or "the answer is mostly chunk framing"
        return data

    def _hand_on(self, data: bytes, chunks: Sequence[bytes] = ()) -> None:
        """Give away the body bytes of one read, then the end or the fault."""
        if self._stream is None and (not self._streaming or (self._done and not self._fault)):
            if self._fault:
                self._refuse()
            elif self._done:
                if self._body is not None:
                    data = bytes(self._body + data)
                    self._body = None
                self._answer(data)
            elif data:
                self._keep(data)
            return
        if (stream := self._stream) is None:
            assert self._waiter is not None
            head = self._head or self._headers
            self._stream = stream = StreamAnswer(self._loop, self, self._status, head)
            self._headers, self._head = _NO_HEADERS, None  # they are the caller's now
            waiter, self._waiter = self._waiter, None
            if not waiter.done():  # its task may have been cancelled a moment ago
                waiter.set_result(stream)
        stream.ended = self._done and not self._fault
        if data:
            stream.push(data, chunks)
            if self._stream is not stream:  # the sink failed or aborted
                return
        if self._fault:
            self._refuse()
        elif self._done:
            self._stream = None
            stream.end()
            self._free()

    def _keep(self, data: bytes) -> None:
        if self._body is None:
            self._body = bytearray(data)
        else:
            self._body += data

    def _answer(self, body: bytes) -> None:
        """Give away a whole answer. In this order: given away first, then free for the next."""
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        if not waiter.done():
            waiter.set_result(Answer(self._status, self._head or self._headers, body))
        self._free()

    def _free(self) -> None:
        if not self._reading:
            self.set_reading(True)
        # A provider that answers before it has read the request leaves bytes in our buffer.
        sound = self._keep_alive and not self._extra and not self._transport.is_closing()
        if sound and not self._transport.get_write_buffer_size():
            self._begin_anew()
            self._owner.released(self)
        else:
            self.close()

    def _spoke_first(self) -> None:
        # Bytes that came before the request left are no answer to it. Taken for one, they would
        # give each request from here on the answer to the one before it.
        kind = StaleConnection if self.uses > 1 else TransportError
        message = "the provider spoke before it was asked"
        self.close(kind(FailureClass.GARBAGE, message, sent=False))

    def _refuse(self) -> None:
        self.close(TransportError(FailureClass.GARBAGE, self._fault, sent=True))

    def _expire(self, message: str) -> None:
        self.close(TransportError(FailureClass.TIMEOUT, message, sent=True))

    def _ended(self, exc: Exception | None) -> None:
        """The other end is gone: the end of an answer without a length, else a broken one."""
        if self._waiter is None and self._stream is None:
            self.close()
            return
        if self._head_done and not self._sized and exc is None:
            self._done = True
            self._hand_on(b"")
        elif self._wire:
            message = "the connection broke in mid-answer"
            self.close(TransportError(FailureClass.RESET, message, sent=True))
        else:
            late = self._loop.time() - self._started > STALE_SECONDS
            kind = StaleConnection if self.uses > 1 and not late else TransportError
            message = "the connection was closed without an answer"
            sent = not self._outbox.holds(self._transport)
            self.close(kind(FailureClass.RESET, message, sent=sent))


def _size(headers: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items())
