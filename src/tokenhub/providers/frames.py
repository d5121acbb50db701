"""Known heads of a provider's answers: the frame that their values stand in.

An origin's heads have the same names in the same order, and little of what they say matters here:
the status, the framing, and whether the connection stays. Where that is as it was in a head that
the parser has found right, and the other values break no line, all that was checked of that one
holds for this one too. Seeing it costs 1 us for 20 headers, having them parsed 8 us.
"""

from __future__ import annotations

import re

from httptools import HttpResponseParser

MAX_KNOWN = 8 * 1024
"""Bytes of a read that are looked at for a head."""

_MOST = 4  # frames of an origin
# Less than llhttp lets pass. Possessive: a match is linear in the size of the head.
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 200 " + _VALUE)
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):(" + _VALUE + rb")")
_LENGTH = re.compile(rb" ?[0-9]++\r\n")
_ANY_LENGTH = rb" ?([0-9]{1,9}+)\r\n"  # far more than is taken
_CHUNKED = re.compile(rb" ?chunked\r\n", re.IGNORECASE)
_STAYS = re.compile(rb" ?keep-alive\r\n", re.IGNORECASE)
_FRAMING = (b"content-length", b"transfer-encoding")
# With any of these in an unusual way the parser had better see each head.
_MEANT = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CHUNKED,
    b"connection": _STAYS,
    b"content-encoding": re.compile(rb" ?identity\r\n", re.IGNORECASE),
    b"proxy-connection": _STAYS,
    b"upgrade": re.compile(rb"(?!)"),
}
_SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n"
_IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Frames:
    """The frames of one origin's answers with status 200.

    Attributes:
        known: each matches its heads, and has one group, the Content-Length's digits; one without
            it has chunks after it.
        curious: whether a head in no known frame is to be learned. That takes 0.6 ms, so whoever
            owns this sets it anew only after a while.
    """

    __slots__ = ("curious", "known")

    def __init__(self) -> None:
        self.known: tuple[re.Pattern[bytes], ...] = ()
        self.curious = True

    def learn(self, raw: bytes) -> None:
        """Remember the head that ``raw`` begins with; the parser has found it right."""
        self.curious = False
        pattern = _pattern(raw)
        if pattern is not None and all(pattern != frame.pattern for frame in self.known):
            self.known = (re.compile(pattern), *self.known)[:_MOST]


def short_head(found: re.Match[bytes]) -> bytes:
    """The shortest head that says of body and connection what the found one says."""
    return _SIZED % found[1] if found.lastindex else _IN_CHUNKS


def read_headers(head: bytes) -> dict[bytes, bytes]:
    """The headers of what begins with a right head.

    Names are in lower case, repeated ones joined by ", ".
    """
    reader = _Reader()
    HttpResponseParser(reader).feed_data(head)
    return reader.headers


class _Reader:
    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        before = self.headers.get(name)
        self.headers[name] = value if before is None else before + b", " + value


def _pattern(raw: bytes) -> bytes | None:
    """A pattern for heads like this one; None if the parser had better see all of them."""
    status = _STATUS.match(raw, 0, MAX_KNOWN)
    if status is None:
        return None
    parts, names, at = [re.escape(status[0])], [], status.end()
    while (field := _FIELD.match(raw, at, MAX_KNOWN)) is not None:
        name, value = field.groups()
        lower, at = name.lower(), field.end()
        names.append(lower)
        meant = _MEANT.get(lower)
        if meant is None:
            value = _VALUE
        elif not meant.fullmatch(value):
            return None
        else:
            value = _ANY_LENGTH if meant is _LENGTH else re.escape(value)
        parts += (re.escape(name), b":", value)
    if not raw.startswith(b"\r\n", at) or sum(map(names.count, _FRAMING)) != 1:
        return None
    return b"".join((*parts, b"\r\n"))
