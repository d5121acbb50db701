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
from http import HTTPStatus
from typing import TYPE_CHECKING

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenhub.web.http import Headers

# Possessive quantifiers (Python 3.11) keep every match linear in the size of the head.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELDS = rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+"
_HEAD = re.compile(rb"([A-Z]{1,16}) ([!\"$-~]++) HTTP/1\.([01])\r\n(" + _FIELDS + rb")\r\n")
_FIELD = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_FIELD_LINES = re.compile(_FIELDS)
# Also no tab or trailing space: llhttp, for one, takes "chunked" with a tab for another coding.
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: ?chunked\r\n", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# A second one of these is an attack or a broken client; others are joined as lists.
_SINGLE = frozenset((
    b"authorization", b"content-encoding", b"content-length", b"content-type", b"expect",
    b"host", b"transfer-encoding", b"x-api-key",
))  # fmt: skip
_OURS = frozenset(
    (b"connection", b"content-length", b"date", b"transfer-encoding", b"x-request-id")
)
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip

MAX_HEADERS = 100


class Refused(InvalidRequest):
    """The edge itself refuses the request; no handler sees it and the connection closes."""

    def __init__(
        self, status: int, code: str, message: str, hint: str | None = None, *headers: bytes
    ) -> None:
        pairs = tuple(zip(headers[::2], headers[1::2], strict=True))
        super().__init__(message, code=code, hint=hint, headers=pairs)
        self.status = status  # type: ignore[misc]  # one class answers with several statuses


def parse_head(head: bytes) -> tuple[bytes, bytes, int, dict[bytes, bytes]]:
    """Method, target, minor version and headers of a head that ends with its empty line.

    Raises Refused when the head breaks the grammar or has too many or doubled fields.
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
    return method, target, minor, headers


def _check_host(host: bytes | None, minor: int) -> None:
    if host is None:
        if minor:
            raise Refused(400, "missing_host", "HTTP/1.1 needs a Host header.")
    elif not _HOST.fullmatch(host):
        raise Refused(400, "invalid_host", "The Host header is not a host name with a port.")


def check_what_is_asked(headers: dict[bytes, bytes]) -> None:
    """Raise Refused when the headers ask for something this server does not do."""
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
    return b"%b%b%b\r\n" % (line, own, b"".join([_field(name, value) for name, value in headers]))


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
