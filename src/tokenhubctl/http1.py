"""A small HTTP/1.1 client: one connection per request, plain or TLS, direct or through a proxy.

Why not http.client: its email parser alone costs 25 ms of CPU at every start. RFC 9112.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, BinaryIO, Self

from tokenhubctl import __version__
from tokenhubctl.connect import connect, proxy_authorization, proxy_for, translated
from tokenhubctl.errors import CliError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenhubctl.address import Endpoint
    from tokenhubctl.connect import Limits

MAX_HEADER_LINE = 65_536
MAX_HEADERS = 200
READ_SIZE = 65_536


class Answer:
    """An answer whose headers have arrived.

    ``headers`` has lower-case names. Read the body once: ``read()`` whole or ``chunks()`` as it
    comes; that to HEAD has none, whatever its headers say. Close it, or use it in a ``with``.
    """

    def __init__(self, connection: socket.socket, limits: Limits, method: str) -> None:
        self._socket = connection
        self._limits = limits
        self._head_only = method == "HEAD"
        self._file: BinaryIO = connection.makefile("rb")
        try:
            self.status, self.headers = self._head()
            while 100 <= self.status < 200:
                self.status, self.headers = self._head()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The body, decoded, in the pieces it arrives in. A body cut short raises Unreachable."""
        if self._head_only or self.status in {204, 304}:
            return iter(())
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return self._chunked()
        length = self.headers.get("content-length")
        return self._until_close() if length is None else self._counted(_size(length, 10))

    def _head(self) -> tuple[int, dict[str, str]]:
        version, _, rest = self._line().partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not status.isdigit():
            raise Unreachable("What answered does not speak HTTP/1.1.", hint=NOT_TOKENHUB)
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = self._line()
            if not line:
                return int(status), headers
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        raise Unreachable("The answer has more headers than any TokenHub sends.", hint=NOT_TOKENHUB)

    def _line(self) -> str:
        with translated(self._limits):
            line = self._file.readline(MAX_HEADER_LINE)
        if not line.endswith(b"\n"):
            raise Unreachable(CUT_SHORT)
        return line.rstrip(b"\r\n").decode("latin-1")

    def _some(self, most: int) -> bytes:
        with translated(self._limits):
            # read1 hands on what is there; read would wait for `most` bytes of a live stream.
            return self._file.read1(most)  # type: ignore[attr-defined, no-any-return]

    def _until_close(self) -> Iterator[bytes]:
        while data := self._some(READ_SIZE):
            yield data

    def _counted(self, left: int) -> Iterator[bytes]:
        while left:
            data = self._some(min(left, READ_SIZE))
            if not data:
                raise Unreachable(CUT_SHORT)
            left -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while size := _size(self._line().partition(";")[0], 16):
            yield from self._counted(size)
            self._line()
        while self._line():
            pass  # trailers


CUT_SHORT = "The connection broke before the whole answer had arrived."
NOT_TOKENHUB = "Is TOKENHUB_URL the address of a TokenHub server? See `tokenhubctl doctor`."


def _size(text: str, base: int) -> int:
    digits = text.strip()
    try:
        # int() alone would also take a sign and underscores.
        return int(digits if digits.isalnum() else "", base)
    except ValueError as error:
        raise Unreachable("The answer's length cannot be read.", hint=NOT_TOKENHUB) from error


def request(
    endpoint: Endpoint,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | None,
    limits: Limits,
) -> Answer:
    """Send one request and wait for the headers of its answer.

    Args:
        endpoint: the server.
        method: the HTTP method.
        target: path and query, already percent-encoded, without the endpoint's base path.
        headers: further headers; a value with a line break is refused.
        body: sent with Content-Length when not None.
        limits: time limits.
    """
    proxy = proxy_for(endpoint)
    path = endpoint.base + target
    through: dict[str, str] = {}
    if proxy is not None and not endpoint.tls:
        path = f"http://{endpoint.authority}{path}"
        through = proxy_authorization(proxy)
    lines = {
        "Host": endpoint.authority,
        "User-Agent": f"tokenhubctl/{__version__}",
        "Accept-Encoding": "identity",
        "Connection": "close",
        **through,
        **headers,
    }
    if body is not None:
        lines["Content-Length"] = str(len(body))
    data = render_head(f"{method} {path} HTTP/1.1", lines) + (body or b"")
    connection = connect(endpoint, proxy, limits)
    try:
        _send(connection, data, limits)
    except BaseException:
        connection.close()
        raise
    return Answer(connection, limits, method)


def _send(connection: socket.socket, data: bytes, limits: Limits) -> None:
    connection.settimeout(limits.read)
    try:
        with translated(limits):
            connection.sendall(data)
    except Unreachable:
        # A server that refuses a large body answers and closes before it has read it all.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
            if connection.recv(1, socket.MSG_PEEK):
                return
        raise


def render_head(first: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request as bytes; refuses what would break out of its line."""
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join(lines) + "\r\n\r\n"
    if any("\r" in line or "\n" in line or "\0" in line for line in lines):
        raise CliError("A header would contain a line break.", code="bad_header")
    try:
        return head.encode("latin-1")
    except UnicodeEncodeError as error:
        raise CliError(
            "A header holds a character that HTTP cannot carry.",
            hint="Look at the token: it must be plain ASCII.",
            code="bad_header",
        ) from error
