"""One client's connection: bytes of a socket in, one task per request, bytes out.

A connection goes round this ring; bytes that come while RUNNING wait in the buffer, so
pipelined requests are answered in order and at most one runs:

    IDLE ─► HEAD ─► BODY ─► RUNNING ─► IDLE        (CLOSING from everywhere)

Sources: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, cast

from tokenhub.core.members import LONG
from tokenhub.web.body import ChunkedBody, SizedBody, framing, too_large
from tokenhub.web.head import (
    MAX_KNOWN,
    STATUS_LINES,
    Refused,
    check_what_is_asked,
    field_lines,
    parse_head,
    remember,
    status_line,
)
from tokenhub.web.http import ClientStream, Request, Response, reset

if TYPE_CHECKING:
    from tokenhub.web.head import Head, Known
    from tokenhub.web.http import Headers, Reply
    from tokenhub.web.http1 import HttpServer

IDLE, HEAD, BODY, RUNNING, CLOSING = range(5)

_NEVER = math.inf
_BARE_LF = re.compile(rb"(?<!\r)\n")
_NO_BODY = (204, 304)
# Joining a small body to its head saves a system call; joining a large one costs a copy.
_JOIN = 65_536
# Heads that differ before no more of them are looked at for the sake of the next one.
_PATIENCE = 3
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_began", "_body", "_buffer", "_close", "_deadline", "_known", "_last", "_patience",
        "_peer", "_reading", "_request", "_scanned", "_server", "_stream", "_task", "_transport",
        "_unsent", "_writable", "state",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._peer = ""
        self._buffer = b""
        self._scanned = 0  # bytes of an incomplete head that hold no bare LF
        self._known: Known | None = None
        self._patience = _PATIENCE
        self._last: Head | None = None  # that was new
        self._began = 0.0  # loop time at which the body of now began
        self._body: SizedBody | ChunkedBody | None = None
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: ClientStream | None = None
        self._close = False  # after the present answer
        self._reading = True
        self._writable = True
        self._unsent = 0
        self._deadline = _NEVER
        self.state = IDLE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast("asyncio.Transport", transport)
        server = self._server
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if peer else ""
        self._deadline = server.loop.time() + server.limits.head_seconds
        if not server.admit(self, self._peer):
            busy = Refused(503, "too_many_connections", "Too many connections.", "Try again later.")
            self._close = True
            self._send(None, server.render(None, busy))
            self._shut(0.0)

    def data_received(self, data: bytes) -> None:
        """Parse what came, or keep it while a request runs."""
        if self.state == CLOSING:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self.state != RUNNING and self._writable:
            self._proceed()
        elif len(self._buffer) > self._server.limits.read_ahead and self._reading:
            # The price: a client that sends this much ahead and leaves is noticed later.
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The client closed its side: it is gone; the transport closes when this returns."""
        self._client_gone()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over, whoever ended it."""
        del exc
        self._known = self._last = None  # they hold the client's key
        self._client_gone()
        self._server.forget(self, self._peer, self._task)

    def _client_gone(self) -> None:
        stream = self._stream
        answered = stream is not None and not stream.open
        if self.state == RUNNING and not answered:
            if stream is not None:
                stream.gone()
            if self._task is not None:
                self._task.cancel()
            self._transport.abort()
        self._shut(self._server.limits.write_stall_seconds)

    def pause_writing(self) -> None:
        """The client does not take what we send."""
        self._writable = False
        self._unsent = self._transport.get_write_buffer_size()
        self._deadline = self._server.loop.time() + self._server.limits.write_stall_seconds
        if self._stream is not None:
            self._stream.set_paused(paused=True)

    def resume_writing(self) -> None:
        """The client took most of it."""
        self._writable = True
        if self.state == RUNNING:
            self._deadline = _NEVER
            if self._stream is not None:
                self._stream.set_paused(paused=False)
        elif self.state != CLOSING:
            self._deadline = self._server.loop.time() + self._server.limits.keep_alive_seconds
            self._proceed()

    def check_time(self, now: float) -> None:
        """Called by the sweep: end what takes too long."""
        limits = self._server.limits
        if not self._writable:
            unsent = self._transport.get_write_buffer_size()
            if unsent <= self._unsent - limits.write_progress:
                self._unsent = unsent
                self._deadline = now + limits.write_stall_seconds
            elif now >= self._deadline:
                self.abort()
        elif self.state == BODY:
            self._check_body_time(now)
        elif now >= self._deadline:
            if self.state == HEAD:
                self._refuse(Refused(408, "request_timeout", "The request head took too long."))
            elif self.state == CLOSING:
                self.abort()
            else:
                self._shut(limits.linger_seconds)

    def _check_body_time(self, now: float) -> None:
        assert self._body is not None
        limits = self._server.limits
        taken = now - self._began
        slow = self._body.received < taken * limits.body_min_rate
        if now >= self._deadline or (slow and taken > limits.body_slow_seconds):
            self._refuse(Refused(408, "request_timeout", "The request body came too slowly."))

    def close_if_idle(self) -> None:
        """Draining: close unless a request is under way."""
        if self.state == IDLE:
            self._shut(self._server.limits.write_stall_seconds)

    def abort(self) -> None:
        """Drop the connection; connection_lost then cancels the handler."""
        reset(self._transport)

    def _shut(self, seconds: float) -> None:
        """Close when what is buffered has been sent, at the latest after ``seconds``."""
        if self.state != CLOSING:
            self.state = CLOSING
            self._buffer = b""
            if self._task is None:
                self._body = self._request = None  # as in _let_go
            self._deadline = self._server.loop.time() + seconds
            self._server.outbox.flush()
            self._transport.close()

    def _proceed(self) -> None:
        """Take as much out of the buffer as the state allows; start the request when whole."""
        try:
            known = self._known
            if self.state == BODY:
                self._read_body(self._buffer)
            elif known is not None and (found := known.find(self._buffer)) is not None:
                headers, length, size = found
                self._scanned = 0
                self._patience = _PATIENCE
                self._take_body(self._opened(known.head, headers), length, size)
            elif self._buffer:
                self._read_new_head(self._buffer)
        except Exception as error:  # noqa: BLE001  # body_limit belongs to another layer
            self._refuse(error)
        if not self._reading and len(self._buffer) <= self._server.limits.read_ahead:
            self._reading = True
            self._transport.resume_reading()

    def _read_new_head(self, buffer: bytes) -> None:
        limits = self._server.limits
        end = buffer.find(b"\r\n\r\n")
        size = len(buffer) if end < 0 else end + 4
        line = limits.request_line
        if size > line and b"\r\n" not in buffer[: line + 2]:
            raise Refused(414, "uri_too_long", f"The request line is over {line} bytes.")
        if size > limits.head:
            raise Refused(431, "headers_too_large", f"The head is over {limits.head} bytes.")
        if end >= 0:
            self._scanned = 0
            self._check_head(buffer[:size])
            return
        if _BARE_LF.search(buffer, self._scanned):
            raise Refused(400, "malformed_request", "Lines must end with CR LF.")
        self._scanned = size
        if self.state == IDLE:
            self.state = HEAD
            self._deadline = self._server.loop.time() + limits.head_seconds

    def _check_head(self, raw: bytes) -> None:
        head = parse_head(raw)
        headers = head.headers
        last, self._last = self._last, head if len(raw) <= MAX_KNOWN else None
        if last is not None and head.asks_as(last):
            head.kept = last.kept
        request = self._opened(head, headers)
        length = framing(headers)
        check_what_is_asked(headers)
        if self._patience and length:
            self._patience -= 1
            known = remember(raw, head, self._server.limits.head)
            if known is not None:
                known = self._server.known.setdefault(known.frame, known)
                self._last = request.head = known.head
            self._known = known
        self._take_body(request, length, len(raw))

    def _opened(self, head: Head, headers: dict[bytes, bytes]) -> Request:
        self._close = head.closes
        clock = self._server.clock
        self._request = request = Request(
            head, headers, self, self._peer, clock.new_id(), clock.now_ms()
        )
        return request

    def _take_body(self, request: Request, length: int | None, start: int) -> None:
        """Ask whether the body may come at all, and take what is there of it."""
        buffer = self._buffer
        if length == 0:
            self._buffer = buffer[start:]
            self._begin(request)
            return
        server = self._server
        limit = server.body_limit(request)
        if length is not None:
            if length > limit:
                raise too_large(limit)
            end = start + length
            if len(buffer) >= end:
                # The usual case: the whole body in the same read. A copy of a long one would cost
                # its time, and push more out of the processor's caches.
                long = length >= LONG
                request.body = memoryview(buffer)[start:end] if long else buffer[start:end]
                self._buffer = buffer[end:]
                self._begin(request)
                return
        small_chunks = server.limits.small_chunks
        self._body = ChunkedBody(limit, small_chunks) if length is None else SizedBody(length)
        self._began = server.loop.time()
        self.state = BODY
        if b"expect" in request.headers and request.head.minor and len(buffer) == start:
            server.outbox.write(self._transport, _CONTINUE)
        self._read_body(memoryview(buffer)[start:])

    def _read_body(self, data: bytes | memoryview) -> None:
        assert self._body is not None
        assert self._request is not None
        rest = self._body.feed(data)
        self._buffer = rest or b""
        if rest is None:
            server = self._server
            self._deadline = server.loop.time() + server.limits.body_idle_seconds
        else:
            self._request.at_ms = self._server.clock.now_ms()
            self._server.body_limit(self._request)  # whether it may come still holds
            self._request.body = self._body.content()
            self._body = None
            self._begin(self._request)

    def _begin(self, request: Request) -> None:
        self.state = RUNNING
        self._deadline = _NEVER
        # The class itself, and a name: half a microsecond less than the loop's create_task.
        self._task = asyncio.Task(self._run(request), loop=self._server.loop, name="request")

    async def _run(self, request: Request) -> None:
        """One request's task: the handler, and its answer."""
        response = None
        try:
            response = await self._server.handler(request)
        except asyncio.CancelledError:
            self.abort()
            self._let_go()
            raise
        except Exception as error:  # noqa: BLE001  # a traceback never reaches a client
            response = self._server.render(request, error)
        if self.state == RUNNING:
            self._finish(request, response)
        else:
            self._let_go()

    def _let_go(self) -> None:
        # They refer to this connection. Left in such a circle, all that a request ever held would
        # stay until the cycle collector comes by, which may be after thousands of them.
        self._stream = self._request = self._task = None

    def _finish(self, request: Request, response: Reply | None) -> None:
        stream = self._stream
        if stream is None:
            if response is None:
                missing = RuntimeError("the handler gave neither a response nor a stream")
                response = self._server.render(request, missing)
            self._send(request, response)
        elif not stream.ended:
            stream.abort()
            self._close = True
        self._stream = self._request = self._task = None  # as in _let_go
        if self._close or self._server.draining:
            self._shut(self._server.limits.write_stall_seconds)
            return
        self.state = IDLE
        if self._writable:
            self._deadline = self._server.loop.time() + self._server.limits.keep_alive_seconds
            if self._buffer or not self._reading:
                self._proceed()

    def _send(self, request: Request | None, response: Reply) -> None:
        status, body = response.status, response.body
        kind: bytes | None = response.content_type
        size = b"\r\nContent-Length: %d\r\n" % len(body)
        if status in _NO_BODY:
            size, body, kind = b"\r\n", b"", None
        elif request is not None and request.head.method == "HEAD":
            body = b""
        joined, apart = (body, b"") if len(body) < _JOIN else (b"", body)
        try:
            head = self._head(request, status, size, kind, response.headers, joined)
        except ValueError as error:
            # Only the body of the rendered error is used, so that this cannot fail again.
            self._send(request, Response(500, self._server.render(request, error).body))
            return
        outbox = self._server.outbox
        outbox.write(self._transport, head)
        if apart:
            outbox.flush()
            self._transport.write(apart)

    def _head(
        self,
        request: Request | None,
        status: int,
        framing: bytes,
        content_type: bytes | None,
        headers: Headers,
        body: bytes = b"",
    ) -> bytes:
        """The head of an answer, and the body that goes with it in one piece."""
        server = self._server
        line = STATUS_LINES.get(status) or status_line(status)
        fields = field_lines(content_type, tuple(headers))
        request_id = server.clock.new_id() if request is None else request.id
        ending = b""
        if self._close or server.draining:
            self._close = True
            ending = b"\r\nConnection: close"
        own = (line, server.date_line, request_id.encode(), ending, framing, fields, body)
        return b"".join(own)

    def open_stream(self, request: Request, status: int, headers: Headers) -> ClientStream:
        """Send the head of a streamed answer; RuntimeError when there is an answer already."""
        if self._stream is not None or request is not self._request:
            raise RuntimeError("this request is answered already")
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the body.
        chunked = request.head.minor == 1
        framing = b"\r\nTransfer-Encoding: chunked\r\n" if chunked else b"\r\n"
        head = self._head(request, status, framing, None, headers)
        mute = request.head.method == "HEAD"
        outbox = self._server.outbox
        stream = ClientStream(outbox, self._transport, chunked=chunked, mute=mute)
        # A pipelined request may begin in the turn whose end shows that the answer before it is
        # stuck: nobody was there to be told then.
        stream.paused = not self._writable
        if self.state == RUNNING:
            self._stream = stream
            outbox.write(self._transport, head)
        else:
            stream.gone()
        return stream

    def _refuse(self, error: Exception) -> None:
        """Answer and close, leaving the client time to read the answer.

        Closing while it still sends would make the kernel answer with RST, which can overtake
        the answer; so only our side is closed, and what comes is thrown away.
        """
        self._close = True
        self._send(self._request, self._server.render(self._request, error))
        self.state = CLOSING
        self._buffer = b""
        self._body = self._request = None  # as in _let_go
        self._deadline = self._server.loop.time() + self._server.limits.linger_seconds
        self._server.outbox.flush()
        self._transport.write_eof()
