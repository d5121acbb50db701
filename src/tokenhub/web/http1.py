"""Our HTTP/1.1 server: bytes of a socket in, one task per request, bytes out.

A connection goes round this ring; bytes that come while RUNNING wait in the buffer, so
pipelined requests are answered in order and at most one runs:

    IDLE ─► HEAD ─► SIZED or CHUNKED ─► RUNNING ─► IDLE        (CLOSING from everywhere)

Time limits are deadlines compared by one sweep over all connections: a timer per request would
cost more than the parsing. Sources: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from email.utils import formatdate
from io import BytesIO
from typing import TYPE_CHECKING, cast

from tokenhub.core.errors import TooLarge
from tokenhub.web.http import (
    ClientStream,
    Refused,
    Request,
    Response,
    parse_head,
    render_error,
    reset,
    response_head,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenhub.core.clock import Clock
    from tokenhub.web.http import Headers

    Handler = Callable[[Request], Awaitable[Response | None]]
    BodyLimit = Callable[[Request], int]
    Render = Callable[[Request | None, Exception], Response]

IDLE, HEAD, SIZED, CHUNKED, RUNNING, CLOSING = range(6)

_NEVER = math.inf
_DIGITS = re.compile(rb"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_NO_BODY = (204, 304)
# Joining a small body to its head saves a system call; joining a large one costs a copy.
_JOIN = 65_536
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take. Seconds and bytes.

    Attributes:
        connections: open at once; more get 503.
        connections_per_ip: of these, from one address.
        request_line: 414 above.
        head: all header lines with the request line; 431 above.
        head_seconds: from the first byte of a head to its end; 408.
        body_idle_seconds: without a byte of the body; 408.
        body_slow_seconds: after these a body must have come at ``body_min_rate``; 408.
        body_min_rate: bytes per second.
        small_chunks: chunks under 64 bytes in one body; each costs as much as a large one.
        keep_alive_seconds: without a next request.
        write_stall_seconds: the client must take ``write_progress`` bytes in these, or is cut off.
        write_progress: bytes.
        read_ahead: pipelined bytes kept while a request runs.
        linger_seconds: how long a refused client may take to read the answer.
    """

    connections: int = 8192
    connections_per_ip: int = 4096
    request_line: int = 8192
    head: int = 32_768
    head_seconds: float = 10.0
    body_idle_seconds: float = 15.0
    body_slow_seconds: float = 30.0
    body_min_rate: int = 1024
    small_chunks: int = 16_384
    keep_alive_seconds: float = 75.0
    write_stall_seconds: float = 60.0
    write_progress: int = 16_384
    read_ahead: int = 65_536
    linger_seconds: float = 5.0


def no_body_over_10_mib(request: Request) -> int:
    """The body limit where the layer above names none."""
    del request
    return 10 * 1024 * 1024


class HttpServer:
    """Listens, and calls ``handler`` for every request.

    Args:
        handler: the answer to a whole request; None when it opened a stream and ended it. Its
            task is cancelled when the client leaves before the answer is complete.
        clock: ids and the Date header.
        body_limit: asked when a head with a body is complete: the largest body in bytes, or a
            HubError that is answered without reading the body.
        render: the answer to a refusal (HubError) or to an unexpected exception of the handler.
            The request is None when its head was not understood.
        limits: what one client may take.
    """

    def __init__(
        self,
        handler: Handler,
        clock: Clock,
        *,
        body_limit: BodyLimit = no_body_over_10_mib,
        render: Render = render_error,
        limits: Limits | None = None,
    ) -> None:
        self.handler = handler
        self.clock = clock
        self.body_limit = body_limit
        self.limits = limits or Limits()
        self.draining = False
        self.connections: set[Connection] = set()
        self.date = b""
        self._render = render
        self._per_ip: dict[str, int] = {}
        self._orphans: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Server | None = None
        self.loop: asyncio.AbstractEventLoop

    async def start(self, host: str, port: int, *, backlog: int = 1024) -> int:
        """Listen; the port is returned, for it may have been 0. OSError when it is taken."""
        self.loop = asyncio.get_running_loop()
        self._listener = await self.loop.create_server(
            lambda: Connection(self), host, port, backlog=backlog
        )
        self._sweep()
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def drain(self, seconds: float) -> int:
        """Stop: no new connection, idle ones closed, running requests answered, then ``close``.

        Returns how many requests had to be cut off after ``seconds``.
        """
        self.draining = True
        self._stop_listening()
        # Two turns of the loop: requests that had already arrived are read and answered.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for connection in tuple(self.connections):
            connection.close_if_idle()
        if self.connections or self._orphans:
            self._emptied = self.loop.create_future()
            timer = self.loop.call_later(seconds, _resolve, self._emptied)
            await self._emptied
            timer.cancel()
        cut_off = sum(connection.state == RUNNING for connection in self.connections)
        await self.close()
        return cut_off

    async def close(self) -> None:
        """Stop at once; returns when every handler's task is over."""
        self.draining = True
        self._stop_listening()
        for connection in tuple(self.connections):
            connection.abort()
        # connection_lost comes one turn later and cancels the task.
        while self.connections or self._orphans:
            await asyncio.sleep(0)
            if self._orphans:
                await asyncio.wait(tuple(self._orphans))
        if self._timer is not None:
            self._timer.cancel()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def admit(self, connection: Connection, peer: str) -> bool:
        """Count a new connection; False when there are too many."""
        here = self._per_ip.get(peer, 0)
        if len(self.connections) >= self.limits.connections or (
            here >= self.limits.connections_per_ip
        ):
            return False
        self._per_ip[peer] = here + 1
        self.connections.add(connection)
        return True

    def forget(self, connection: Connection, peer: str, task: asyncio.Task[None] | None) -> None:
        """A connection is lost; its task may need some time to clean up."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._per_ip[peer] -= 1
            if not self._per_ip[peer]:
                del self._per_ip[peer]
        if task is not None and not task.done():
            self._orphans.add(task)
            task.add_done_callback(self._orphan_done)
        self._check_emptied()

    def _orphan_done(self, task: asyncio.Task[None]) -> None:
        self._orphans.discard(task)
        self._check_emptied()

    def _check_emptied(self) -> None:
        if self._emptied is not None and not self.connections and not self._orphans:
            _resolve(self._emptied)

    def render(self, request: Request | None, error: Exception) -> Response:
        """The answer to an error; never raises."""
        try:
            return self._render(request, error)
        except Exception as broken:  # noqa: BLE001  # the edge answers whatever happens
            return render_error(request, broken)

    def _sweep(self) -> None:
        limits = self.limits
        shortest = min(
            limits.head_seconds, limits.body_idle_seconds, limits.keep_alive_seconds,
            limits.write_stall_seconds, limits.linger_seconds, 4.0,
        )  # fmt: skip
        self._timer = self.loop.call_later(shortest / 4, self._sweep)
        self.date = formatdate(self.clock.now_ms() / 1000, usegmt=True).encode()
        now = self.loop.time()
        for connection in tuple(self.connections):
            connection.check_time(now)


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body", "_buffer", "_close", "_deadline", "_last", "_limit", "_missing", "_peer",
        "_reading", "_received", "_request", "_server", "_small_chunks", "_stream", "_task",
        "_transport", "_unsent", "_writable", "state",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._peer = ""
        self._buffer = b""
        self._body: BytesIO | None = None
        self._missing = 0  # bytes to come: of the body, or of this chunk with its CR LF
        self._last = False  # this chunk is the last one
        self._received = 0  # bytes of this head, then of this body
        self._small_chunks = 0
        self._limit = 0
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
        elif self.state in {SIZED, CHUNKED}:
            self._check_body_time(now)
        elif now >= self._deadline:
            if self.state == HEAD:
                self._refuse(Refused(408, "request_timeout", "The request head took too long."))
            elif self.state == CLOSING:
                self.abort()
            else:
                self._shut(limits.linger_seconds)

    def _check_body_time(self, now: float) -> None:
        limits = self._server.limits
        taken = now - self._request.started if self._request is not None else 0.0
        if now >= self._deadline or (
            taken > limits.body_slow_seconds and self._received < taken * limits.body_min_rate
        ):
            self._refuse(Refused(408, "request_timeout", "The request body came too slowly."))

    def close_if_idle(self) -> None:
        """Draining: close unless a request is under way."""
        if self.state == IDLE:
            self._shut(self._server.limits.linger_seconds)

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
            if self.state > HEAD or self._read_head():
                if self._read_chunks() if self.state == CHUNKED else self._read_sized():
                    self._begin()
        except Exception as error:  # noqa: BLE001  # body_limit belongs to another layer
            self._refuse(error)
        if not self._reading and len(self._buffer) <= self._server.limits.read_ahead:
            self._reading = True
            self._transport.resume_reading()

    def _read_head(self) -> bool:
        buffer = self._buffer
        if not buffer:
            return False
        limits = self._server.limits
        end = buffer.find(b"\r\n\r\n")
        size = len(buffer) if end < 0 else end + 4
        if size > limits.request_line and b"\r\n" not in buffer[: limits.request_line + 2]:
            raise Refused(
                414, "uri_too_long", f"The request line is over {limits.request_line} bytes."
            )
        if size > limits.head:
            raise Refused(431, "headers_too_large", f"The head is over {limits.head} bytes.")
        now = self._server.loop.time()
        if end < 0:
            if _BARE_LF.search(buffer, self._received):
                raise Refused(400, "malformed_request", "Lines must end with CR LF.")
            self._received = size
            if self.state == IDLE:
                self.state = HEAD
                self._deadline = now + limits.head_seconds
            return False
        self._buffer = buffer[size:]
        self._accept(buffer[:size], now)
        return True

    def _accept(self, head: bytes, now: float) -> None:
        """Decide how the body is framed, and whether it may come at all."""
        server = self._server
        method, target, minor, headers = parse_head(head)
        request = Request(
            method, target, minor, headers, self, self._peer, server.clock.new_id(), now
        )
        self._request = request
        connection = headers.get(b"connection", b"").lower()
        # HTTP/1.0 is always closed: its keep-alive is not worth a second set of rules.
        self._close = not minor or (
            connection not in {b"", b"keep-alive"} and b"close" in re.split(rb"[\t ,]+", connection)
        )
        chunked, length = _framing(headers, minor)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused(
                415, "unsupported_encoding", "The body must not be compressed.",
                "Send it without Content-Encoding.", b"Accept-Encoding", b"identity",
            )  # fmt: skip
        expect = headers.get(b"expect") if minor else None
        if expect is not None and expect.lower() != b"100-continue":
            raise Refused(417, "expectation_failed", "Only 'Expect: 100-continue' is understood.")
        self.state = CHUNKED if chunked else SIZED
        self._missing = length
        self._received = 0
        if not chunked and not length:
            return
        self._limit = server.body_limit(request)
        self._check_size(length)
        self._deadline = now + server.limits.body_idle_seconds
        self._body = BytesIO()
        self._last = False
        self._small_chunks = 0
        if expect is not None and not self._buffer:
            self._transport.write(_CONTINUE)

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise TooLarge(
                f"The request body is over the {self._limit} bytes this path takes.",
                hint="Send a smaller body.",
            )

    def _read_sized(self) -> bool:
        """Take the body by its Content-Length; True when all of it is there."""
        data, missing = self._buffer, self._missing
        assert self._request is not None
        if len(data) < missing:
            if data:
                self._buffer = b""
                self._missing -= len(data)
                self._keep(data)
            return False
        piece, self._buffer = data[:missing], data[missing:]
        if self._received:
            self._keep(piece)
            piece = self._whole_body()
        self._request.body = piece
        return True

    def _keep(self, piece: bytes) -> None:
        assert self._body is not None
        self._body.write(piece)
        self._received += len(piece)
        self._deadline = self._server.loop.time() + self._server.limits.body_idle_seconds

    def _whole_body(self) -> bytes:
        assert self._body is not None
        body = self._body.getvalue()
        self._body = None
        return body

    def _read_chunks(self) -> bool:
        """Take whole and partial chunks (RFC 9112 section 7.1); True after the last one.

        Extensions and trailers carry nothing we use and are refused.
        """
        data, at = self._buffer, 0
        while True:
            if self._missing > 2:
                piece = data[at : at + self._missing - 2]
                at += len(piece)
                self._missing -= len(piece)
                if piece:
                    self._keep(piece)
                if self._missing > 2:
                    break
            if self._missing:
                if len(data) < at + 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    what = "Trailer fields are not taken." if self._last else "A chunk is too long."
                    raise Refused(400, "invalid_chunk", what)
                at += 2
                self._missing = 0
                if self._last:
                    break
            end = data.find(b"\r\n", at, at + 10)
            if end < 0 and len(data) < at + 10:
                break
            self._start_chunk(data[at:end] if end >= 0 else b"")
            at = end + 2
        self._buffer = data[at:]
        if not self._last or self._missing:
            return False
        assert self._request is not None
        self._request.body = self._whole_body()
        return True

    def _start_chunk(self, size_line: bytes) -> None:
        if not _CHUNK_SIZE.fullmatch(size_line):
            raise Refused(400, "invalid_chunk", "A chunk must start with its size in hexadecimal.")
        size = int(size_line, 16)
        self._check_size(self._received + size)
        self._last = not size
        self._missing = size + 2
        self._small_chunks += size < 64
        if self._small_chunks > self._server.limits.small_chunks:
            raise Refused(400, "too_many_chunks", "The body comes in too many small chunks.")

    def _begin(self) -> None:
        assert self._request is not None
        self.state = RUNNING
        self._deadline = _NEVER
        self._task = self._server.loop.create_task(self._run(self._request))

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
        self._received = 0
        self.state = IDLE
        if self._writable:
            self._deadline = self._server.loop.time() + self._server.limits.keep_alive_seconds
            if self._buffer or not self._reading:
                self._proceed()

    def _send(self, request: Request | None, response: Response) -> None:
        body = response.body
        try:
            head = self._head(request, response)
        except ValueError as error:
            response = self._server.render(request, error)
            body = response.body
            head = self._head(request, Response(response.status, body))
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


def _framing(headers: dict[bytes, bytes], minor: int) -> tuple[bool, int]:
    """Whether the body is chunked, and its length when it is not (RFC 9112 section 6)."""
    encoding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if encoding is None:
        if length is None:
            return False, 0
        if not _DIGITS.fullmatch(length):
            raise Refused(400, "invalid_content_length", "Content-Length is not a number.")
        return False, int(length)
    if length is not None:
        raise Refused(
            400, "ambiguous_length", "Content-Length and Transfer-Encoding exclude each other."
        )
    if encoding.lower() != b"chunked" or not minor:
        raise Refused(
            400, "invalid_transfer_encoding", "The only Transfer-Encoding is chunked, in HTTP/1.1."
        )
    return True, 0


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
