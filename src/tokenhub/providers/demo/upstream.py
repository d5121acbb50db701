"""The demo provider inside this process, behind the same port as the HTTP pool.

It keeps the port's promises: limits, pause and resume, cancelling, and a cut that looks like a
broken connection. No task of its own: every wait is one loop timer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.providers.upstream import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenhub.providers.demo.provider import DemoProvider
    from tokenhub.providers.egress import Origin
    from tokenhub.providers.upstream import Timeouts, UpstreamRequest

_READ = 64 * 1024  # bytes handed over at once, as a socket would


class DemoUpstream:
    """An ``Upstream`` whose other side is a ``DemoProvider``."""

    def __init__(self, provider: DemoProvider) -> None:
        self.provider = provider

    async def send(
        self,
        origin: Origin | None,
        request: UpstreamRequest,
        timeouts: Timeouts,
        stream: bool,  # noqa: FBT001  # see Upstream.send
    ) -> Answer:
        """Answer one request; ``origin`` means nothing here."""
        del origin
        heading = request.heading
        headers = {name.lower(): value for name, value in request.headers()}
        scripted = self.provider.respond(
            heading.method.decode("ascii"), heading.target, headers, bytes(request.body)
        )
        if scripted.wait:
            try:
                await _wait(scripted.wait, timeouts.first_byte, "sent nothing")
            except BaseException:
                _close(scripted.body)
                raise
        head = dict(scripted.headers)
        if isinstance(scripted.body, bytes):
            if scripted.cut:
                raise _cut_off()
            return Answer(scripted.status, head, scripted.body)
        answer = DemoAnswer(scripted.status, head, scripted.body, timeouts, cut=scripted.cut)
        if not stream:
            answer.body = await answer.read()
        return answer


class DemoAnswer(Answer):
    """A stream under way: a pump that hands over events when they are due."""

    __slots__ = ("_chunks", "_cut", "_done", "_due", "_sink", "_timeouts", "_timer", "paused")

    def __init__(
        self,
        status: int,
        headers: dict[bytes, bytes],
        chunks: Iterator[tuple[float, bytes]],
        timeouts: Timeouts,
        *,
        cut: bool,
    ) -> None:
        super().__init__(status, headers, None)
        self.paused = False
        self._chunks = chunks
        self._cut = cut
        self._timeouts = timeouts
        self._due = b""  # taken from the script, waiting for its time
        self._sink: Callable[[bytes], None] | None = None
        self._done: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None

    async def read(self) -> bytes:
        """The whole body."""
        parts: list[bytes] = []
        await self.relay(parts.append)
        return b"".join(parts)

    async def relay(self, sink: Callable[[bytes], None]) -> None:
        """Hand over the stream; see the port."""
        if self.body is not None:
            await super().relay(sink)
            return
        self._sink = sink
        self._done = asyncio.get_running_loop().create_future()
        try:
            self._pump()
            await self._done
        finally:
            self._stop()

    def pause(self) -> None:
        """Hold everything back until ``resume``."""
        self.paused = True

    def resume(self) -> None:
        """Go on where it stopped."""
        if self.paused:
            self.paused = False
            if self._timer is None and self._running():
                self._timer = asyncio.get_running_loop().call_soon(self._pump)

    def abort(self) -> None:
        """Give up; a waiting ``relay`` fails."""
        self._finish(TransportError(FailureClass.RESET, "The answer was given up.", sent=True))
        self._stop()

    def _running(self) -> bool:
        return self._done is not None and not self._done.done()

    def _pump(self) -> None:
        """Hand over what is due, then set the timer for the next event."""
        self._timer = None
        if self.paused or not self._running():
            return
        try:
            wait = self._take()
        except Exception as error:  # noqa: BLE001  # out of the sink; it belongs to relay's caller
            self._finish(error)
            return
        if wait is None:
            self._finish(_cut_off() if self._cut else None)
            return
        loop = asyncio.get_running_loop()
        if wait > self._timeouts.idle:
            silence = TransportError(FailureClass.TIMEOUT, "The provider fell silent.", sent=True)
            self._timer = loop.call_later(self._timeouts.idle, self._finish, silence)
        elif wait:
            self._timer = loop.call_later(wait, self._pump)
        else:
            self._timer = loop.call_soon(self._pump)

    def _take(self) -> float | None:
        """Give the sink one read's worth; seconds until the next, None at the end."""
        assert self._sink is not None
        ready, self._due = [self._due], b""
        size = 0
        wait: float | None = None
        for pause, chunk in self._chunks:
            if pause:
                self._due, wait = chunk, pause
                break
            ready.append(chunk)
            size += len(chunk)
            if size >= _READ:
                wait = 0.0
                break
        if data := b"".join(ready):
            self._sink(data)
        return wait

    def _finish(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _close(self._chunks)


async def _wait(seconds: float, limit: float, what: str) -> None:
    future = asyncio.get_running_loop().create_future()
    timer = asyncio.get_running_loop().call_later(min(seconds, limit), _wake, future)
    try:
        await future
    finally:
        timer.cancel()
    if seconds > limit:
        message = f"The provider {what} for {limit:g} seconds."
        raise TransportError(FailureClass.TIMEOUT, message, sent=True)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _cut_off() -> TransportError:
    return TransportError(FailureClass.RESET, "The provider broke the connection.", sent=True)


def _close(chunks: object) -> None:
    if (close := getattr(chunks, "close", None)) is not None:
        close()
