"""What a handler sees of HTTP: the request, a whole answer, a streamed answer."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tokenhub.core.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenhub.core.outbox import Outbox
    from tokenhub.web.head import Head

    Headers = Sequence[tuple[bytes, bytes]]


class Response:
    """A whole answer. Length, id, date and connection handling are added by the edge."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: Headers = (),
        content_type: bytes = b"application/json",
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.content_type = content_type


class Reply(Protocol):
    """What a handler may answer with: a Response, or what looks like one."""

    @property
    def status(self) -> int:
        """200 to 599."""
        ...

    @property
    def body(self) -> bytes:
        """All of it."""
        ...

    @property
    def headers(self) -> Headers:
        """Beside those that the edge adds."""
        ...

    @property
    def content_type(self) -> bytes:
        """Of the body."""
        ...


class Wire(Protocol):
    """The connection a request came on."""

    def open_stream(self, request: Request, status: int, headers: Headers) -> ClientStream:
        """Send the head of a streamed answer."""
        ...


class Request:
    """One request, whole, as it came.

    Attributes:
        head: what was understood of its head; an equal one may share it, so nobody changes it.
        headers: lower-case name to value; repeated ones joined by ``, ``.
        client_id: the client's own X-Request-Id when it is well formed, else "".
        body: decoded from its framing, a long one perhaps as a view; empty while the body limit is
            asked.
        peer: the address of the other end, without port.
        id: made here, unique.
        at_ms: wall time at which it was whole, or its head while the body limit is asked.
        params: captured from the path; filled by whoever matches routes.
        route: for the layer above to keep what it matched.
    """

    __slots__ = (
        "_wire", "at_ms", "body", "client_id", "head", "headers", "id", "params", "peer", "route",
    )  # fmt: skip

    params: dict[str, str]

    def __init__(
        self,
        head: Head,
        headers: dict[bytes, bytes],
        wire: Wire,
        peer: str,
        request_id: str,
        at_ms: int,
    ) -> None:
        self.head = head
        self.headers = headers
        self.client_id = head.client_id
        self.body: bytes | memoryview = b""
        self.peer = peer
        self.id = request_id
        self.at_ms = at_ms
        self.route: Any = None
        self._wire = wire

    @property
    def method(self) -> str:
        """Upper case, ``GET``."""
        return self.head.method

    @property
    def target(self) -> bytes:
        """The bytes between method and version."""
        return self.head.target

    @property
    def path(self) -> str:
        """The target before ``?``, still percent-encoded."""
        return self.head.path

    @property
    def query(self) -> str:
        """The target after ``?``, still percent-encoded."""
        return self.head.query

    def open_stream(self, status: int, headers: Headers) -> ClientStream:
        """Answer with a stream: the head is sent now, Content-Type must be in ``headers``."""
        return self._wire.open_stream(self, status, headers)


class ClientStream:
    """The body of a streamed answer; what is written after the client left is dropped.

    The producer must stop while ``paused`` is true: ``on_pause`` and ``on_resume`` tell it.
    """

    __slots__ = (
        "_chunked", "_mute", "_outbox", "_resumed", "_transport", "ended", "on_pause",
        "on_resume", "open", "paused",
    )  # fmt: skip

    def __init__(
        self, outbox: Outbox, transport: asyncio.WriteTransport, *, chunked: bool, mute: bool
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._chunked = chunked
        self._mute = mute  # the answer to HEAD has no body
        self._resumed: asyncio.Future[None] | None = None
        self.open = True
        self.ended = False  # properly, by end()
        self.paused = False
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        """Send ``data`` as one piece; nothing is sent for b""."""
        if self.open and data and not self._mute:
            framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
            self._outbox.write(self._transport, framed)

    def end(self, data: bytes = b"") -> None:
        """The body is complete with ``data``; the connection can serve the next request."""
        if self.open:
            # Closed first: a pause caused by these bytes concerns no producer any more.
            self.open = False
            self.ended = True
            if self._mute:
                return
            if self._chunked:
                # An empty chunk would be the end of the body.
                data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
            if data:
                self._outbox.write(self._transport, data)

    async def drain(self) -> None:
        """Return when the client has taken enough that writing may go on."""
        if self.paused and self.open:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def abort(self) -> None:
        """Close so that the client sees a broken body, after what was already written."""
        if not self.open:
            return
        self._outbox.flush()
        self.gone()
        if self._chunked:
            self._transport.close()  # sends what is buffered; the last chunk is missing
        else:
            # Without framing a plain close looks like the end, so reset instead.
            reset(self._transport)

    def gone(self) -> None:
        """The connection is lost: drop further writes and release a waiting ``drain``."""
        self.open = False
        self.set_paused(paused=False)

    def set_paused(self, *, paused: bool) -> None:
        """The edge reports that the client's side is full, or has room again."""
        self.paused = paused
        callback = self.on_pause if paused else self.on_resume
        if callback is not None and self.open:
            callback()
        if not paused and self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)


def reset(transport: asyncio.WriteTransport) -> None:
    """Close with RST: the peer gets an error, not an orderly end."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def render_error(request: Request | None, error: Exception) -> Response:
    """The plainest JSON for an error; says nothing of an unexpected one."""
    del request
    if not isinstance(error, HubError):
        error = HubError("The server failed while it handled this request.", code="internal_error")
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if error.hint:
        shape["hint"] = error.hint
    return Response(error.status, msgspec.json.encode({"error": shape}), error.headers)
