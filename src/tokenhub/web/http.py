"""What a handler sees of HTTP: Request, Response, ClientStream; and the grammar of a head.

The grammar is RFC 9112 without its tolerances: whatever two parsers could read in two ways
(bare LF, folded lines, spaces around names, doubled framing fields) is refused, because a
proxy in front may have read it the other way.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tokenhub.core.errors import HubError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Headers = Sequence[tuple[bytes, bytes]]

# Possessive quantifiers (Python 3.11) keep every match linear in the size of the head.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELDS = rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+"
_HEAD = re.compile(rb"([A-Z]{1,16}) ([!\"$-~]++) HTTP/1\.([01])\r\n(" + _FIELDS + rb")\r\n")
_FIELD = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_FIELD_LINES = re.compile(_FIELDS)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A second one of these is an attack or a broken client; others are joined as lists.
_SINGLE = frozenset((
    b"authorization", b"content-encoding", b"content-length", b"content-type", b"expect",
    b"host", b"transfer-encoding", b"x-api-key",
))  # fmt: skip
_OURS = frozenset(
    (b"connection", b"content-length", b"date", b"transfer-encoding", b"x-request-id")
)
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

MAX_HEADERS = 100


class Refused(InvalidRequest):
    """The edge itself refuses the request; no handler sees it and the connection closes."""

    def __init__(
        self, status: int, code: str, message: str, hint: str | None = None, *headers: bytes
    ) -> None:
        pairs = tuple(zip(headers[::2], headers[1::2], strict=True))
        super().__init__(message, code=code, hint=hint, headers=pairs)
        self.status = status  # type: ignore[misc]  # one class answers with several statuses


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


class Wire(Protocol):
    """The connection a request came on."""

    def open_stream(self, request: Request, status: int, headers: Headers) -> ClientStream:
        """Send the head of a streamed answer."""
        ...


class Request:
    """One request, whole, as it came.

    Attributes:
        method: upper case, ``GET``.
        target: the bytes between method and version.
        path: target before ``?``, still percent-encoded.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        query: target after ``?``, still percent-encoded.
        headers: lower-case name to value; repeated ones joined by ``, ``.
        body: decoded from its framing; empty while the body limit is asked.
        peer: the address of the other end, without port.
        id: made here, unique.
        client_id: the client's own X-Request-Id when it is well formed, else "".
        params: captured from the path; filled by whoever matches routes.
        route: for the layer above to keep what it matched.
        started: loop time at which the head was complete.
    """

    __slots__ = (
        "_wire", "body", "client_id", "headers", "id", "method", "minor", "params", "path", "peer",
        "query", "route", "started", "target",
    )  # fmt: skip

    params: dict[str, str]

    def __init__(
        self,
        method: bytes,
        target: bytes,
        minor: int,
        headers: dict[bytes, bytes],
        wire: Wire,
        peer: str,
        request_id: str,
        started: float,
    ) -> None:
        self.method = method.decode()
        self.target = target
        self.path, _, self.query = target.decode().partition("?")
        self.minor = minor
        self.headers = headers
        self.body = b""
        self.peer = peer
        self.id = request_id
        client_id = headers.get(b"x-request-id")
        valid = client_id is not None and _CLIENT_ID.fullmatch(client_id)
        self.client_id = valid[0].decode() if valid else ""
        self.params = {}
        self.route: Any = None
        self.started = started
        self._wire = wire

    def open_stream(self, status: int, headers: Headers) -> ClientStream:
        """Answer with a stream: the head is sent now, Content-Type must be in ``headers``."""
        return self._wire.open_stream(self, status, headers)


class ClientStream:
    """The body of a streamed answer; what is written after the client left is dropped.

    The producer must stop while ``paused`` is true: ``on_pause`` and ``on_resume`` tell it.
    """

    __slots__ = (
        "_chunked", "_mute", "_resumed", "_transport", "_unsent", "ended", "on_pause",
        "on_resume", "open", "paused",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.WriteTransport, head: bytes, *, chunked: bool, mute: bool
    ) -> None:
        self._transport = transport
        self._unsent = head  # joined to the first piece when that comes in the same turn
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
        if self.open and (framed := self._frame(data)):
            self._send(framed)

    def end(self, data: bytes = b"") -> None:
        """The body is complete with ``data``; the connection can serve the next request."""
        if self.open:
            last = b"0\r\n\r\n" if self._chunked and not self._mute else b""
            # Closed first: a pause caused by these bytes concerns no producer any more.
            self.open = False
            self.ended = True
            self._send(self._frame(data) + last)

    def _frame(self, data: bytes) -> bytes:
        # An empty chunk would be the end of the body.
        if not data or self._mute:
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _send(self, framed: bytes) -> None:
        if self._unsent:
            framed, self._unsent = self._unsent + framed, b""
        if framed:
            self._transport.write(framed)

    def send_head(self) -> None:
        """Send the head if no piece has taken it along."""
        if self._unsent and not self._transport.is_closing():
            self._send(b"")

    async def drain(self) -> None:
        """Return when the client has taken enough that writing may go on."""
        if self.paused and self.open:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def abort(self) -> None:
        """Close so that the client sees a broken body, after what was already written."""
        if not self.open:
            return
        self.send_head()
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


def parse_head(head: bytes) -> tuple[bytes, bytes, int, dict[bytes, bytes]]:
    """Method, target, minor version and headers of a head that ends with its empty line.

    Raises Refused when the head breaks the grammar, has too many or doubled fields, or asks for
    something this server does not do.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        raise Refused(400, "malformed_request", _what_is_wrong(head))
    fields = _FIELD.findall(match[4])
    if len(fields) > MAX_HEADERS:
        raise Refused(431, "too_many_headers", f"More than {MAX_HEADERS} header fields.")
    headers: dict[bytes, bytes] = {}
    for raw_name, raw_value in fields:
        name = raw_name.lower()
        value = raw_value.rstrip(b" \t")
        if name in headers:
            if name in _SINGLE:
                raise Refused(400, "duplicate_header", f"{name.decode()} is given twice.")
            value = headers[name] + (b"; " if name == b"cookie" else b", ") + value
        headers[name] = value
    method, target, minor = match[1], match[2], 1 if match[3] == b"1" else 0
    _check_host(headers.get(b"host"), minor)
    if method == b"CONNECT":
        raise Refused(400, "connect_refused", "This server is not a proxy.")
    if target[0] != 0x2F and (target != b"*" or method != b"OPTIONS"):
        raise Refused(
            400, "invalid_target", "The request target must be a path that starts with '/'."
        )
    if b"upgrade" in headers:
        raise Refused(
            400, "upgrade_refused", "This server speaks HTTP/1.1 only.", "Send no Upgrade header."
        )
    return method, target, minor, headers


def _check_host(host: bytes | None, minor: int) -> None:
    if host is None:
        if minor:
            raise Refused(400, "missing_host", "HTTP/1.1 needs a Host header.")
    elif not _HOST.fullmatch(host):
        raise Refused(400, "invalid_host", "The Host header is not a host name with a port.")


def _what_is_wrong(head: bytes) -> str:
    """The first fault of a head that broke the grammar, without repeating any of its bytes."""
    if re.search(rb"(?<!\r)\n|\r(?!\n)", head):
        return "Lines must end with CR LF; a bare CR or LF was found."
    line, *fields = head[:-4].split(b"\r\n")
    if not re.fullmatch(rb"[^ ]+ [^ ]+ HTTP/1\.[01]", line):
        return "The request line must be: METHOD SP target SP HTTP/1.1."
    for number, field in enumerate(fields, 1):
        if field[:1] in {b" ", b"\t"}:
            return f"Header line {number} is folded; a value must stand on one line."
        if not re.match(_TOKEN + rb":", field):
            return f"Header line {number} is not 'Name: value'."
        if not _FIELD_LINES.fullmatch(field + b"\r\n"):
            return f"The value in header line {number} has a control character."
    return "The method or the request target has a character that is not allowed."


def response_head(status: int, own: bytes, headers: Headers) -> bytes:
    """The head of an answer.

    Args:
        status: 200 to 599.
        own: the edge's own complete lines.
        headers: the handler's; ValueError for one that would forge a line or the framing.
    """
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of a final answer")
    if not headers:
        return b"%b%b\r\n" % (line, own)
    block = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    if block.count(b"\n") != len(headers) or not _FIELD_LINES.fullmatch(block):
        raise ValueError("a response header has a character that is not allowed")
    for name, _ in headers:
        if name.lower() in _OURS:
            raise ValueError(f"{name.decode()} is set by the edge only")
    return b"%b%b%b\r\n" % (line, own, block)


def render_error(request: Request | None, error: Exception) -> Response:
    """The plainest JSON for an error; says nothing of an unexpected one."""
    del request
    if not isinstance(error, HubError):
        error = HubError("The server failed while it handled this request.", code="internal_error")
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if error.hint:
        shape["hint"] = error.hint
    return Response(error.status, msgspec.json.encode({"error": shape}), error.headers)
