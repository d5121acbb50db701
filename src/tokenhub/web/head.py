"""The grammar of a request's head, and the head of an answer.

It is RFC 9112 without its tolerances: whatever two parsers could read in two ways (bare LF,
folded lines, spaces around names, doubled framing fields) is refused, because a proxy in front
may have read it the other way. One regular expression holds the whole grammar; llhttp is 0.7 us
faster, but takes HTTP/0.9 and 2.0, absolute targets and lists of transfer codings, so that the
checks around it would cost the gain.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    Headers = tuple[tuple[bytes, bytes], ...]

# Possessive quantifiers (Python 3.11) keep every match linear in the size of the head.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELDS = rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+"
_HEAD = re.compile(rb"([A-Z]{1,16}) ([!\"$-~]++) HTTP/1\.([01])\r\n(" + _FIELDS + rb")\r\n")
_FIELD = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_FIELD_LINES = re.compile(_FIELDS)
# Also no tab or trailing space: llhttp, for one, takes "chunked" with a tab for another coding.
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: ?chunked\r\n", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_MOST_DIGITS = 15
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,%d})\r\n" % _MOST_DIGITS, re.IGNORECASE)
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A second one of these is an attack or a broken client; others are joined as lists.
_SINGLE = frozenset((
    b"authorization", b"content-encoding", b"content-length", b"content-type", b"expect",
    b"host", b"transfer-encoding", b"x-api-key",
))  # fmt: skip
_ASKING = frozenset((b"content-encoding", b"expect", b"upgrade"))
_OURS = frozenset(
    (b"connection", b"content-length", b"date", b"transfer-encoding", b"x-request-id")
)
STATUS_LINES = {200: b"HTTP/1.1 200 OK\r\n"}  # others are added when first used

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip

MAX_HEADERS = 100
# Of a head that is kept with its connection: several thousand may be open.
MAX_KNOWN = 2048


class Refused(InvalidRequest):
    """The edge itself refuses the request; no handler sees it and the connection closes."""

    def __init__(
        self, status: int, code: str, message: str, hint: str | None = None, *headers: bytes
    ) -> None:
        pairs = tuple(zip(headers[::2], headers[1::2], strict=True))
        super().__init__(message, code=code, hint=hint, headers=pairs)
        self.status = status  # type: ignore[misc]  # one class answers with several statuses


class Head:
    """A request's head, understood.

    Attributes:
        method: upper case, ``GET``.
        target: the bytes between method and version.
        path, query: target before and after ``?``, still percent-encoded.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        headers: lower-case name to value; repeated ones joined by ``, ``.
        client_id: the client's own X-Request-Id when it is well formed, else "".
        closes: whether the connection ends with the answer.
        kept: for the layer above: what it found out from nothing but the method, the target and
            the credentials.
    """

    __slots__ = (
        "client_id", "closes", "headers", "kept", "method", "minor", "path", "query", "target",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, minor: int, headers: dict[bytes, bytes]
    ) -> None:
        self.method = method.decode()
        self.target = target
        self.path, _, self.query = target.decode().partition("?")
        self.minor = minor
        self.headers = headers
        client_id = headers.get(b"x-request-id")
        valid = client_id is not None and _CLIENT_ID.fullmatch(client_id)
        self.client_id = valid[0].decode() if valid else ""
        connection = headers.get(b"connection")
        # HTTP/1.0 is always closed: its keep-alive is not worth a second set of rules.
        self.closes = not minor or (connection is not None and _asks_close(connection))
        self.kept: Any = None

    def asks_as(self, other: Head) -> bool:
        """Whether both ask for the same with the same credentials, whatever else they say."""
        mine, its = self.headers.get, other.headers.get
        return (
            self.target == other.target
            and self.method == other.method
            and mine(b"authorization") == its(b"authorization")
            and mine(b"x-api-key") == its(b"x-api-key")
        )


class Known:
    """A head that was found right, to know the next one by.

    A client that keeps its connection repeats itself: its heads often differ in their
    Content-Length only. Seeing that costs 0.3 us, reading and checking a head 10 us.

    A client with a thousand connections says the same on all of them, so equal ones are kept once.
    The head's secrets are kept as long as such a connection lasts.

    Attributes:
        head: as it was read.
        frame: all of its bytes but the value of Content-Length.
    """

    __slots__ = ("__weakref__", "_after", "_before", "_length", "_size", "frame", "head")

    def __init__(self, raw: bytes, head: Head, start: int, length: bytes) -> None:
        self.head = head
        self._length = length
        self._before = raw[:start]
        self._after = raw[start + len(length) :]
        self.frame = self._before, self._after
        self._size = start + _MOST_DIGITS + len(self._after)

    def find(self, buffer: bytes) -> tuple[dict[bytes, bytes], int, int] | None:
        """The headers, Content-Length and size of an equal head that ``buffer`` begins with."""
        if not buffer.startswith(self._before):
            return None
        start = len(self._before)
        end = buffer.find(self._after, start, self._size)
        # Nothing but digits: no line ends and no other field begins in between.
        if end < 0 or not (length := buffer[start:end]).isdigit():
            return None
        headers = self.head.headers
        if length != self._length:
            headers = {**headers, b"content-length": length}
        return headers, int(length), end + len(self._after)


def remember(raw: bytes, head: Head, limit: int) -> Known | None:
    """A right head to know the next one by; None where that one could be over ``limit`` bytes."""
    if len(raw) > min(MAX_KNOWN, limit - _MOST_DIGITS):
        return None
    found = _LENGTH.search(raw)
    return None if found is None else Known(raw, head, found.start(1), found[1])


def parse_head(head: bytes) -> Head:
    """A head that ends with its empty line.

    Raises Refused when the head breaks the grammar or has too many or doubled fields.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        raise Refused(400, "malformed_request", _what_is_wrong(head))
    method, target, minor_digit, lines = match.groups()
    fields = _FIELD.findall(lines)
    if len(fields) > MAX_HEADERS:
        raise Refused(431, "too_many_headers", f"More than {MAX_HEADERS} header fields.")
    headers = {name.lower(): value for name, value in fields}
    if len(headers) != len(fields) or lines.find(b" \r") >= 0 or lines.find(b"\t\r") >= 0:
        headers = _joined(fields)
    minor = 1 if minor_digit == b"1" else 0
    _check_host(headers.get(b"host"), minor)
    if b"transfer-encoding" in headers and not (minor and _CHUNKED.search(head)):
        raise Refused(
            400, "invalid_transfer_encoding", "The only Transfer-Encoding is chunked, in HTTP/1.1."
        )
    if method == b"CONNECT":
        raise Refused(400, "connect_refused", "This server is not a proxy.")
    if target[0] != 0x2F and (target != b"*" or method != b"OPTIONS"):
        raise Refused(
            400, "invalid_target", "The request target must be a path that starts with '/'."
        )
    return Head(method, target, minor, headers)


def _joined(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Fields that may be repeated, or have blanks after their value."""
    headers: dict[bytes, bytes] = {}
    for raw_name, raw_value in fields:
        name = raw_name.lower()
        value = raw_value.rstrip(b" \t")
        if name in headers:
            if name in _SINGLE:
                raise Refused(400, "duplicate_header", f"{name.decode()} is given twice.")
            value = headers[name] + (b"; " if name == b"cookie" else b", ") + value
        headers[name] = value
    return headers


def _asks_close(connection: bytes) -> bool:
    return b"close" in re.split(rb"[\t ,]+", connection.lower())


def _check_host(host: bytes | None, minor: int) -> None:
    if host is None:
        if minor:
            raise Refused(400, "missing_host", "HTTP/1.1 needs a Host header.")
    elif not _HOST.fullmatch(host):
        raise Refused(400, "invalid_host", "The Host header is not a host name with a port.")


def check_what_is_asked(headers: dict[bytes, bytes]) -> None:
    """Raise Refused when the headers ask for something this server does not do."""
    if _ASKING.isdisjoint(headers):
        return
    # Some clients offer h2c on every plain connection; RFC 9110 section 7.8 lets us ignore that.
    if headers.get(b"upgrade", b"h2c").lower() != b"h2c":
        raise Refused(
            400, "upgrade_refused", "This server speaks HTTP/1.1 only.", "Send no Upgrade header."
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused(
            415, "unsupported_encoding", "The body must not be compressed.",
            "Send it without Content-Encoding.", b"Accept-Encoding", b"identity",
        )  # fmt: skip
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise Refused(417, "expectation_failed", "Only 'Expect: 100-continue' is understood.")


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


def status_line(status: int) -> bytes:
    """The first line of an answer that has none in ``STATUS_LINES``, and has one from now on.

    Raises ValueError for no status of a final answer.
    """
    from http import HTTPStatus  # noqa: PLC0415  # 1 ms for its names, and most answers are a 200

    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of a final answer")
    phrase = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else ""
    line = STATUS_LINES[status] = f"HTTP/1.1 {status} {phrase}\r\n".encode()
    return line


@lru_cache(maxsize=4096)  # most answers carry one of a few sets of headers, two for a model
def field_lines(content_type: bytes | None, headers: Headers) -> bytes:
    """The handler's header lines and the head's end.

    Raises ValueError for a line that would forge another one or the framing.
    """
    if content_type is not None:
        headers = ((b"Content-Type", content_type), *headers)
    return b"".join([*(_field(name, value) for name, value in headers), b"\r\n"])


@lru_cache(maxsize=4096)  # answers repeat the same few fields; checking one costs 1 us
def _field(name: bytes, value: bytes) -> bytes:
    field = b"%b: %b\r\n" % (name, value)
    if field.count(b"\n") != 1 or not _FIELD_LINES.fullmatch(field):
        raise ValueError("a response header has a character that is not allowed")
    if name.lower() in _OURS:
        raise ValueError(f"{name.decode()} is set by the edge only")
    return field


def http_date(seconds: int) -> bytes:
    """A time since 1970 as ``Date`` wants it (RFC 9110, section 5.6.7), in English everywhere."""
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    clock = f"{hour:02}:{minute:02}:{second:02}"
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {clock} GMT".encode()
