"""One streamed answer: the provider's bytes to the client, by callback, with backpressure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenhub.core.errors import FailureClass, ProviderError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.gateway.call import ClientStream
    from tokenhub.providers.adapter import StreamRelay
    from tokenhub.providers.transport import Answer

GRACE_S = 1.0  # between the protocol's end and the connection's


class Relay:
    """Carries one upstream answer to one client.

    The head of the client's answer is sent with the first content, so that until then another
    provider can still be asked. What is written is what the provider sent, joined per read.

    Args:
        answer: the provider's answer, status 200, body not yet read.
        wire: turns its bytes into bytes for the client.
        open_stream: sends the head to the client.
        first_token: seconds from the attempt's start until the first content must be there.
        waited: how many of them are over.
    """

    __slots__ = (
        "_answer", "_first_token", "_grace", "_open_stream", "_rest", "_silent", "_tail",
        "_timer", "_waited", "_wire", "stream",
    )  # fmt: skip

    def __init__(
        self,
        answer: Answer,
        wire: StreamRelay,
        open_stream: Callable[[], ClientStream],
        first_token: float,
        waited: float,
    ) -> None:
        self._answer = answer
        self._wire = wire
        self._open_stream = open_stream
        self._first_token = first_token
        self._waited = waited
        self._silent = False
        self._rest = b""  # what is to be written before the tail
        self._tail = b""
        self._timer: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self.stream: ClientStream | None = None

    async def run(self) -> None:
        """Relay until the provider is done; the tail is kept for ``finish``.

        Raises:
            ProviderError: it failed before any content; nothing was sent to the client.
        """
        if not self._answer.ended:
            left = self._first_token - self._waited
            self._timer = asyncio.get_running_loop().call_later(left, self._too_silent)
        try:
            await self._answer.relay(self._feed)
            self._tail = self._wire.finish()
        except TransportError as error:
            self._tail = self._broken(error)
        finally:
            self._expect_no_more()
            if self._grace is not None:
                self._grace.cancel()
        if self.stream is None:
            if self._wire.failure is not None:
                raise self._wire.failure
            self._start()

    def take(self, body: bytes) -> None:
        """What ``run`` does, for an answer that is all there; ``finish`` sends it.

        Raises:
            ProviderError: as ``run``.
        """
        wire = self._wire
        self._rest = wire.feed(body, self._answer.chunks)
        self._tail = wire.finish()
        if wire.failure is not None and not self._rest:
            raise wire.failure
        self.stream = self._open_stream()

    def write(self) -> None:
        """Send what ``finish`` would, but for the tail."""
        assert self.stream is not None
        self.stream.write(self._rest)
        self._rest = b""

    def finish(self) -> None:
        """Send the tail and close: properly if the answer is whole, else so that it shows."""
        assert self.stream is not None
        last = self._rest + self._tail
        if self._wire.failure is None:
            self.stream.end(last)
        else:
            self.stream.write(last)
            self.stream.abort()

    def _feed(self, data: bytes) -> None:
        wire = self._wire
        out = wire.feed(data, self._answer.chunks)
        if out:
            (self.stream or self._start()).write(out)
        if wire.failure is not None:
            self._answer.abort()
        elif wire.complete and self._grace is None and not self._answer.ended:
            # The answer is whole; a provider that then forgets to end it must not delay its end.
            later = asyncio.get_running_loop().call_later
            self._grace = later(GRACE_S, self._answer.abort)

    def _start(self) -> ClientStream:
        self._expect_no_more()
        stream = self.stream = self._open_stream()
        stream.on_pause = self._answer.pause
        stream.on_resume = self._answer.resume
        if stream.paused:
            self._answer.pause()
        return stream

    def _expect_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it is larger than this

    def _too_silent(self) -> None:
        if self.stream is None:
            self._silent = True
            self._answer.abort()

    def _broken(self, error: TransportError) -> bytes:
        if self._wire.complete or self._wire.failure is not None:
            return self._wire.finish()
        if self._silent:
            message = f"The provider sent no token within {self._first_token:g} s."
            raise ProviderError(FailureClass.TIMEOUT, message) from None
        if self.stream is None:
            raise ProviderError(error.kind, error.message, sent=error.sent) from None
        return self._wire.interrupted(error.message)
