"""The port to an upstream: one request in, one answer out, whole or as a stream.

Implemented by ``transport.HttpTransport`` and by the built-in demo provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokenhub.core.members import Spliced
from tokenhub.providers.frames import read_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.providers.egress import Origin

BEARER = b"authorization: Bearer "
MAX_WHOLE_BODY = 64 * 1024 * 1024
MAX_STREAM_BODY = 100 * 1024 * 1024


class Timeouts(msgspec.Struct, frozen=True):
    """Limits of one request, in seconds. Enforced to within the transport's sweep (0.25 s).

    ``connect`` covers waiting for a free connection, name resolution, TCP, proxy and TLS.
    ``first_byte`` runs from the call to the first byte of the answer's *body*, for whole answers
    and streams alike; headers alone do not stop it. A provider that thinks before it answers
    whole needs a larger one. ``idle`` is the longest silence inside the body, not counted while
    the caller has paused it. ``total`` bounds everything from the call to the end.
    """

    connect: float = 3.0
    first_byte: float = 10.0
    idle: float = 30.0
    total: float | None = None


class Heading:
    """What all requests of a kind begin with; made once, so that only the rest is written anew.

    It is kept, so it holds no credential.

    Args:
        method: b"GET", b"POST", ...; not HEAD or CONNECT.
        target: path and query, with the provider's base path, already percent-encoded.
        headers: without Host, Content-Length, Transfer-Encoding, Accept-Encoding and Connection,
            which are the transport's.
        credential: how the line of a request's credential begins.

    Attributes:
        host, written: the transport's, who last wrote it for this host: the bytes before the
            length of the body, those after it, and the same with the beginning of that line.
    """

    __slots__ = ("credential", "headers", "host", "method", "target", "written")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        credential: bytes = BEARER,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = tuple(headers)
        self.credential = credential
        self.host: bytes | None = None
        self.written = (b"", b"", b"")

    def __repr__(self) -> str:
        # Targets may carry names, which do not belong into a log.
        return f"Heading({self.method!r})"


class UpstreamRequest(msgspec.Struct, eq=False):
    """One request as its adapter wants it sent.

    Attributes:
        heading: what it shares with others.
        body: all of it, a long one in parts.
        more: headers of this request alone.
        credential: the provider's key, None where it has none.
    """

    heading: Heading
    body: bytes | Spliced = b""
    more: Sequence[tuple[bytes, bytes]] = ()
    credential: bytes | None = None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """All its headers but the transport's, for an upstream that reads no lines."""
        headers = [*self.heading.headers, *self.more]
        if self.credential is not None:
            name, _, begin = self.heading.credential.partition(b": ")
            headers.append((name, begin + self.credential))
        return headers

    def __repr__(self) -> str:
        # A credential does not belong into a log.
        return f"UpstreamRequest({self.heading.method!r}, {len(self.body)} bytes)"


class Answer:
    """An answer that is there as a whole; a stream under way is a subclass.

    Attributes:
        status: 200 to 599. Redirects are answers like any other.
        body: all of it, or None while it is still arriving.
        chunks: the pieces in which the provider sent ``body``, or what the sink of ``relay`` is
            being given; () where that is not known. A hint: where an event may end.
        ended: nothing comes after what the sink of ``relay`` is being given.
    """

    __slots__ = ("_headers", "body", "chunks", "ended", "status")

    def __init__(
        self,
        status: int,
        headers: dict[bytes, bytes] | bytes,
        body: bytes | None,
        chunks: Sequence[bytes] = (),
    ) -> None:
        self.status = status
        self._headers = headers
        self.body = body
        self.chunks = chunks
        self.ended = body is not None

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Names in lower case; repeated ones joined by ", "."""
        if isinstance(self._headers, bytes):
            # As they came, with what stands behind them: nobody asks for those of most answers.
            self._headers = read_headers(self._headers)
        return self._headers

    def let_go(self) -> None:
        """Keep no headers: nobody will ask for them, and the body may take long."""
        self._headers = b""

    def __repr__(self) -> str:
        size = "under way" if self.body is None else f"{len(self.body)} bytes"
        return f"{type(self).__name__}({self.status}, {size})"

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            TransportError: it broke off, fell silent, or is larger than 64 MiB.
        """
        assert self.body is not None
        return self.body

    async def relay(self, sink: Callable[[bytes], None]) -> None:
        """Call ``sink`` with all that each read brought, joined; return at a clean end.

        What arrived before this call comes first. An exception out of ``sink`` ends the stream
        and is raised here. Cancelling this call closes the connection.

        Raises:
            TransportError: it broke off, fell silent, or is larger than 100 MiB. All bytes that
                arrived before were given to ``sink``.
        """
        assert self.body is not None
        if self.body:
            sink(self.body)

    def pause(self) -> None:
        """Stop reading: whoever takes the bytes cannot keep up. At most one read still comes."""

    def resume(self) -> None:
        """Read on."""

    def abort(self) -> None:
        """Close the connection if the answer is still under way; a waiting call fails."""


class Upstream(Protocol):
    """Something that answers requests."""

    async def send(
        self,
        origin: Origin | None,
        request: UpstreamRequest,
        timeouts: Timeouts,
        stream: bool,  # noqa: FBT001  # a call with names costs as much again
    ) -> Answer:
        """Send a request.

        With ``stream=False`` the answer comes back with its whole body; with ``stream=True`` as
        soon as its headers are there. Cancelling the waiting task closes the connection at once.

        Args:
            origin: where to; None where the upstream is inside this process.
            request: what to send.
            timeouts: the limits of this request.
            stream: do not wait for the body.

        Raises:
            TransportError: no answer; ``sent`` says whether the provider may have seen the request.
        """
        ...
