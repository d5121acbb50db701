"""A streamed answer: the half of a connection that its caller holds.

The connection pushes bytes, an end or a failure; the caller takes them through one ``relay`` or
``read`` and answers with pause, resume and abort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.providers.upstream import MAX_WHOLE_BODY, Answer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from tokenhub.providers.connection import Connection

# Bytes kept while nobody relays yet; then reading stops.
MAX_EARLY = 256 * 1024


class StreamAnswer(Answer):
    """An answer whose body is still arriving. One ``relay`` or ``read`` takes it."""

    __slots__ = ("_connection", "_early", "_error", "_loop", "_waiter", "paused", "sink")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
        status: int,
        headers: dict[bytes, bytes] | bytes,
    ) -> None:
        super().__init__(status, headers, None)
        self._loop = loop
        self._connection: Connection | None = connection  # None = nothing more will come
        self._early = b""
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.paused = False  # by the caller
        # For the connection: who takes the body bytes of a read; nobody does before ``relay``.
        self.sink: Callable[[bytes], None] | None = None

    async def read(self) -> bytes:
        """The whole body."""
        body = bytearray()

        def keep(data: bytes) -> None:
            if len(body) + len(data) > MAX_WHOLE_BODY:
                message = "the answer's body is too large"
                raise TransportError(FailureClass.GARBAGE, message, sent=True)
            body.extend(data)

        await self.relay(keep)
        return bytes(body)

    async def relay(self, sink: Callable[[bytes], None]) -> None:
        """Call ``sink`` with all that each read brought; return at a clean end."""
        assert self.sink is None, "a stream is relayed once"
        try:
            if self._early:
                sink(self._take_early())
            if self._connection is not None:
                self.sink = sink
                self._connection.touch()
                self._connection.set_reading(not self.paused)
                self._waiter = self._loop.create_future()
                await self._waiter
            elif self._error is not None:
                raise self._error
        finally:
            # Cancelled, or the sink failed: without effect after a clean end.
            self.abort()
            # The sink leads back here, and so do an error's frames.
            self.sink, self._waiter, self._error = _nowhere, None, None

    def pause(self) -> None:
        """Stop reading."""
        self.paused = True
        if self._connection is not None:
            self._connection.set_reading(False)

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if self._connection is not None:
            self._connection.touch()
            self._connection.set_reading(True)

    def abort(self) -> None:
        """Close the connection if the answer is still under way."""
        if self._connection is not None:
            self._connection.close()

    def push(self, data: bytes, chunks: Sequence[bytes] = ()) -> None:
        """For the connection: the body bytes of one read, and the chunks they came in."""
        if self.sink is None:
            self._early = self._early + data if self._early else data
            if len(self._early) > MAX_EARLY and self._connection is not None:
                self._connection.set_reading(False)
            return
        if chunks:
            self.chunks = chunks
        try:
            self.sink(data)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits relay()
            if self._connection is not None:
                self._connection.close(error)
        if chunks:
            self.chunks = ()

    def _take_early(self) -> bytes:
        # The frame of ``relay`` would keep them as long as the stream lasts.
        early, self._early = self._early, b""
        return early

    def end(self) -> None:
        """For the connection: the body is complete."""
        self._connection = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: BaseException) -> None:
        """For the connection: the body breaks off here."""
        self._connection = None
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


def _nowhere(data: bytes) -> None:
    """Where bytes go when nobody relays any more."""
    del data
