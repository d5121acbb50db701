"""How a request's body is framed, and its bytes out of the frames (RFC 9112 sections 6 and 7)."""

from __future__ import annotations

import re
from io import BytesIO

from tokenhub.core.errors import TooLarge
from tokenhub.web.head import Refused

_DIGITS = re.compile(rb"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_SIZE_LINE = 10  # with its CR LF
_SMALL = 64


def framing(headers: dict[bytes, bytes]) -> int | None:
    """The length of the body, None when it is chunked. Refused when the two could be confused."""
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        if length is not None:
            raise Refused(
                400, "ambiguous_length", "Content-Length and Transfer-Encoding exclude each other."
            )
        return None
    if length is None:
        return 0
    if not _DIGITS.fullmatch(length):
        raise Refused(400, "invalid_content_length", "Content-Length is not a number.")
    return int(length)


def too_large(limit: int) -> TooLarge:
    """The refusal of a body of more than ``limit`` bytes."""
    return TooLarge(
        f"The request body is over the {limit} bytes this path takes.",
        hint="Send a smaller body.",
    )


class SizedBody:
    """A body with Content-Length that comes in several reads."""

    __slots__ = ("_content", "_missing", "received")

    def __init__(self, length: int) -> None:
        # BytesIO grows in place and hands out its bytes without a copy.
        self._content = BytesIO()
        self._missing = length
        self.received = 0

    def feed(self, data: bytes | memoryview) -> bytes | None:
        """Take body bytes; what follows the body once it is complete, None before."""
        piece = data[: self._missing]
        self._content.write(piece)
        self.received += len(piece)
        self._missing -= len(piece)
        return None if self._missing else bytes(data[len(piece) :])

    def content(self) -> bytes:
        """The whole body, decoded."""
        return self._content.getvalue()


class ChunkedBody:
    """A chunked body. Extensions and trailers carry nothing we use and are refused.

    Args:
        limit: the largest body in bytes; TooLarge above.
        small_chunks: how many chunks under 64 bytes; each costs as much time as a large one.
    """

    __slots__ = (
        "_content", "_last", "_limit", "_missing", "_rest", "_small_left", "received",
    )  # fmt: skip

    def __init__(self, limit: int, small_chunks: int) -> None:
        self._content = BytesIO()
        self._limit = limit
        self._small_left = small_chunks
        self._rest = b""  # the begin of a size line or of the CR LF after a chunk
        self._missing = 0  # bytes of this chunk, with its CR LF, to come
        self._last = False
        self.received = 0

    def feed(self, data: bytes | memoryview) -> bytes | None:
        """Take framed bytes; what follows the body once it is complete, None before."""
        data = self._rest + data
        at = 0
        while True:
            if self._missing > 2:
                piece = data[at : at + self._missing - 2]
                self._content.write(piece)
                self.received += len(piece)
                self._missing -= len(piece)
                at += len(piece)
                if self._missing > 2:
                    break
            if self._missing:
                if len(data) < at + 2:
                    break
                self._end_chunk(data[at : at + 2])
                at += 2
                if self._last:
                    return data[at:]
            end = data.find(b"\r\n", at, at + _SIZE_LINE)
            if end < 0 and len(data) < at + _SIZE_LINE:
                break
            self._start_chunk(data[at:end] if end >= 0 else b"")
            at = end + 2
        self._rest = data[at:]
        return None

    def content(self) -> bytes:
        """The whole body, decoded."""
        return self._content.getvalue()

    def _start_chunk(self, line: bytes) -> None:
        if not _CHUNK_SIZE.fullmatch(line):
            raise Refused(400, "invalid_chunk", "A chunk must start with its size in hexadecimal.")
        size = int(line, 16)
        if self.received + size > self._limit:
            raise too_large(self._limit)
        self._last = not size
        self._missing = size + 2
        self._small_left -= size < _SMALL
        if self._small_left < 0:
            raise Refused(400, "too_many_chunks", "The body comes in too many small chunks.")

    def _end_chunk(self, line_end: bytes) -> None:
        if line_end != b"\r\n":
            fault = "Trailer fields are not taken." if self._last else "A chunk is too long."
            raise Refused(400, "invalid_chunk", fault)
        self._missing = 0
