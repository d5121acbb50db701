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

from tokenhub.web.body import ChunkedBody, SizedBody, check_size, framing
from tokenhub.web.head import Refused, check_what_is_asked, parse_head, response_head
from tokenhub.web.http import ClientStream, Request, Response, reset

if TYPE_CHECKING:
    from tokenhub.web.http import Headers
    from tokenhub.web.http1 import HttpServer

IDLE, HEAD, BODY, RUNNING, CLOSING = range(5)

_NEVER = math.inf
_BARE_LF = re.compile(rb"(?<!\r)\n")
_NO_BODY = (204, 304)
# Joining a small body to its head saves a system call; joining a large one costs a copy.
_JOIN = 65_536
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body", "_buffer", "_close", "_deadline", "_peer", "_reading", "_request", "_scanned",
        "_server", "_stream", "_task", "_transport", "_unsent", "_writable", "state",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._peer = ""
        self._buffer = b""
        self._scanned = 0  # bytes of an incomplete head that hold no bare LF
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
        assert self._request is not None
        limits = self._server.limits
        taken = now - self._request.started
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
            self._deadline = self._server.loop.time() + seconds
            self._transport.close()

    def _proceed(self) -> None:
        """Take as much out of the buffer as the state allows; start the request when whole."""
        try:
            if self.state == BODY:
                self._read_body()
            else:
                self._read_head()
        except Exception as error:  # noqa: BLE001  # body_limit belongs to another layer
            self._refuse(error)
        if not self._reading and len(self._buffer) <= self._server.limits.read_ahead:
            self._reading = True
            self._transport.resume_reading()

    def _read_head(self) -> None:
        buffer = self._buffer
        if not buffer:
            return
        limits = self._server.limits
        end = buffer.find(b"\r\n\r\n")
        size = len(buffer) if end < 0 else end + 4
        line = limits.request_line
        if size > line and b"\r\n" not in buffer[: line + 2]:
            raise Refused(414, "uri_too_long", f"The request line is over {line} bytes.")
        if size > limits.head:
            raise Refused(431, "headers_too_large", f"The head is over {limits.head} bytes.")
        now = self._server.loop.time()
        if end >= 0:
            self._scanned = 0
            self._buffer = buffer[size:]
            self._accept(buffer[:size], now)
            return
        if _BARE_LF.search(buffer, self._scanned):
            raise Refused(400, "malformed_request", "Lines must end with CR LF.")
        self._scanned = size
        if self.state == IDLE:
            self.state = HEAD
            self._deadline = now + limits.head_seconds

    def _accept(self, head: bytes, now: float) -> None:
        """Decide how the body is framed, and whether it may come at all."""
        server = self._server
        method, target, minor, headers = parse_head(head)
        request = Request(
            method, target, minor, headers, self, self._peer, server.clock.new_id(), now
        )
        self._request = request
        connection = headers.get(b"connection")
        # HTTP/1.0 is always closed: its keep-alive is not worth a second set of rules.
        self._close = not minor or (connection is not None and _asks_close(connection))
        length = framing(headers)
        check_what_is_asked(headers)
        if length == 0:
            self._begin(request)
            return
        limit = server.body_limit(request)
        check_size(length or 0, limit)
        if length is not None and len(self._buffer) >= length:
            # The usual case: the whole body in the same read.
            request.body, self._buffer = self._buffer[:length], self._buffer[length:]
            self._begin(request)
            return
        small_chunks = server.limits.small_chunks
        self._body = ChunkedBody(limit, small_chunks) if length is None else SizedBody(length)
        self.state = BODY
        if b"expect" in headers and minor and not self._buffer:
            self._transport.write(_CONTINUE)
        self._read_body()

    def _read_body(self) -> None:
        assert self._body is not None
        assert self._request is not None
        rest = self._body.feed(self._buffer)
        self._buffer = rest or b""
        if rest is None:
            server = self._server
            self._deadline = server.loop.time() + server.limits.body_idle_seconds
        else:
            self._request.body = self._body.content()
            self._body = None
            self._begin(self._request)

    def _begin(self, request: Request) -> None:
        self.state = RUNNING
        self._deadline = _NEVER
        self._task = self._server.loop.create_task(self._run(request))

    async def _run(self, request: Request) -> None:
        """One request's task: the handler, and its answer."""
        response = None
        try:
            response = await self._server.handler(request)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception as error:  # noqa: BLE001  # a traceback never reaches a client
            response = self._server.render(request, error)
        if self.state == RUNNING:
            self._finish(request, response)

    def _finish(self, request: Request, response: Response | None) -> None:
        stream = self._stream
        if stream is None:
            if response is None:
                missing = RuntimeError("the handler gave neither a response nor a stream")
                response = self._server.render(request, missing)
            self._send(request, response)
        elif not stream.ended:
            stream.abort()
            self._close = True
        if self._close or self._server.draining:
            self._shut(self._server.limits.write_stall_seconds)
            return
        self._stream = self._request = self._task = None
        self.state = IDLE
        if self._writable:
            self._deadline = self._server.loop.time() + self._server.limits.keep_alive_seconds
            if self._buffer or not self._reading:
                self._proceed()

    def _send(self, request: Request | None, response: Response) -> None:
        try:
            head = self._head(request, response)
        except ValueError as error:
            # Only the body of the rendered error is used, so that this cannot fail again.
            response = Response(500, self._server.render(request, error).body)
            head = self._head(request, response)
        body = response.body
        if (request is not None and request.method == "HEAD") or response.status in _NO_BODY:
            self._transport.write(head)
        elif len(body) < _JOIN:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def _head(self, request: Request | None, response: Response) -> bytes:
        own = self._own_lines(request)
        if response.status in _NO_BODY:
            return response_head(response.status, own, response.headers)
        own += b"Content-Length: %d\r\n" % len(response.body)
        typed = ((b"Content-Type", response.content_type), *response.headers)
        return response_head(response.status, own, typed)

    def _own_lines(self, request: Request | None) -> bytes:
        server = self._server
        request_id = server.clock.new_id() if request is None else request.id
        own = b"Date: %b\r\nX-Request-Id: %b\r\n" % (server.date, request_id.encode())
        if self._close or server.draining:
            self._close = True
            own += b"Connection: close\r\n"
        return own

    def open_stream(self, request: Request, status: int, headers: Headers) -> ClientStream:
        """Send the head of a streamed answer; RuntimeError when there is an answer already."""
        if self._stream is not None or request is not self._request:
            raise RuntimeError("this request is answered already")
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the body.
        chunked = request.minor == 1
        own = self._own_lines(request)
        if chunked:
            own += b"Transfer-Encoding: chunked\r\n"
        head = response_head(status, own, headers)
        mute = request.method == "HEAD"
        stream = ClientStream(self._transport, head, chunked=chunked, mute=mute)
        if self.state == RUNNING:
            self._stream = stream
            self._server.loop.call_soon(stream.send_head)
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
        self._body = None
        self._deadline = self._server.loop.time() + self._server.limits.linger_seconds
        self._transport.write_eof()


def _asks_close(connection: bytes) -> bool:
    return b"close" in re.split(rb"[\t ,]+", connection.lower())
