"""Our HTTP/1.1 server: listens, limits and drains; ``connection.py`` does the talking.

Time limits are deadlines compared by one sweep over all connections: a timer per request would
cost more than the parsing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from tokenhub.core.outbox import Outbox
from tokenhub.web.connection import RUNNING, Connection
from tokenhub.web.head import http_date
from tokenhub.web.http import Request, Response, render_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenhub.core.clock import Clock
    from tokenhub.web.head import Known
    from tokenhub.web.http import Reply

    Handler = Callable[[Request], Awaitable[Reply | None]]
    BodyLimit = Callable[[Request], int]
    Render = Callable[[Request | None, Exception], Response]


class Limits(msgspec.Struct, frozen=True):
    """What one client may take. Seconds and bytes.

    Attributes:
        connections: open at once; more get 503.
        connections_per_ip: of these, from one address.
        request_line: 414 above.
        head: all header lines with the request line; 431 above.
        head_seconds: from the first byte of a head to its end; 408.
        body_idle_seconds: without a byte of the body; 408.
        body_slow_seconds: after these a body must have come at ``body_min_rate``; 408.
        body_min_rate: bytes per second.
        small_chunks: chunks under 64 bytes in one body; each costs as much as a large one.
        keep_alive_seconds: without a next request.
        write_stall_seconds: the client must take ``write_progress`` bytes in these, or is cut off.
        write_progress: bytes.
        read_ahead: pipelined bytes kept while a request runs.
        linger_seconds: how long a refused client may take to read the answer.
    """

    connections: int = 8192
    connections_per_ip: int = 4096
    request_line: int = 8192
    head: int = 32_768
    head_seconds: float = 10.0
    body_idle_seconds: float = 15.0
    body_slow_seconds: float = 30.0
    body_min_rate: int = 1024
    small_chunks: int = 16_384
    keep_alive_seconds: float = 75.0
    write_stall_seconds: float = 60.0
    write_progress: int = 16_384
    read_ahead: int = 65_536
    linger_seconds: float = 5.0


def no_body_over_10_mib(request: Request) -> int:
    """The body limit where the layer above names none."""
    del request
    return 10 * 1024 * 1024


class HttpServer:
    """Listens, and calls ``handler`` for every request.

    Args:
        handler: the answer to a whole request; None when it opened a stream and ended it. Its
            task is cancelled when the client leaves before the answer is complete.
        clock: ids and the Date header.
        body_limit: asked when a head with a body is complete: the largest body in bytes, or a
            HubError that is answered without reading the body. Asked once more when a body that
            took several reads is whole, which may be hours later.
        render: the answer to a refusal (HubError) or to an unexpected exception of the handler.
            The request is None when its head was not understood.
        limits: what one client may take.
        outbox: by which all answers leave; one of its own unless given.
    """

    def __init__(
        self,
        handler: Handler,
        clock: Clock,
        *,
        body_limit: BodyLimit = no_body_over_10_mib,
        render: Render = render_error,
        limits: Limits | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.handler = handler
        self.clock = clock
        self.body_limit = body_limit
        self.limits = limits or Limits()
        self.draining = False
        self.connections: set[Connection] = set()
        self.date_line = b""
        # What open connections hold, equal ones once. By their hash, so that nobody can find out
        # by the time it takes how much of another client's head was guessed.
        self.known: WeakValueDictionary[tuple[bytes, bytes], Known] = WeakValueDictionary()
        self._render = render
        self._per_ip: dict[str, int] = {}
        self._orphans: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Server | None = None
        self._outbox = outbox
        self.loop: asyncio.AbstractEventLoop
        self.outbox: Outbox

    async def start(self, host: str, port: int, *, backlog: int = 1024) -> int:
        """Listen; the port is returned, for it may have been 0. OSError when it is taken."""
        self.loop = asyncio.get_running_loop()
        self.outbox = self._outbox or Outbox(self.loop)
        self._listener = await self.loop.create_server(
            lambda: Connection(self), host, port, backlog=backlog
        )
        self._sweep()
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def drain(self, seconds: float) -> int:
        """Stop: no new connection, idle ones closed, running requests answered, then ``close``.

        Returns how many requests had to be cut off after ``seconds``.
        """
        self.draining = True
        self._stop_listening()
        # Two turns of the loop: requests that had already arrived are read and answered.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for connection in tuple(self.connections):
            connection.close_if_idle()
        if self.connections or self._orphans:
            self._emptied = self.loop.create_future()
            timer = self.loop.call_later(seconds, _resolve, self._emptied)
            await self._emptied
            timer.cancel()
        cut_off = sum(connection.state == RUNNING for connection in self.connections)
        await self.close()
        return cut_off

    async def close(self, seconds: float = 5.0) -> None:
        """Stop at once; handlers are cancelled and may clean up for ``seconds``."""
        self.draining = True
        self._stop_listening()
        if self.connections:
            self.outbox.flush()
        for connection in tuple(self.connections):
            connection.abort()
        deadline = asyncio.get_running_loop().time() + seconds
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            # connection_lost comes one turn later and cancels the task.
            await asyncio.sleep(0)
            if self._orphans:
                await asyncio.wait(tuple(self._orphans), timeout=left)
            elif not self.connections:
                break
        if self._timer is not None:
            self._timer.cancel()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def admit(self, connection: Connection, peer: str) -> bool:
        """Count a new connection; False when there are too many."""
        here = self._per_ip.get(peer, 0)
        if len(self.connections) >= self.limits.connections or (
            here >= self.limits.connections_per_ip
        ):
            return False
        self._per_ip[peer] = here + 1
        self.connections.add(connection)
        return True

    def forget(self, connection: Connection, peer: str, task: asyncio.Task[None] | None) -> None:
        """A connection is lost; its task may need some time to clean up."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._per_ip[peer] -= 1
            if not self._per_ip[peer]:
                del self._per_ip[peer]
        if task is not None and not task.done():
            self._orphans.add(task)
            task.add_done_callback(self._orphan_done)
        self._check_emptied()

    def _orphan_done(self, task: asyncio.Task[None]) -> None:
        self._orphans.discard(task)
        self._check_emptied()

    def _check_emptied(self) -> None:
        if self._emptied is not None and not self.connections and not self._orphans:
            _resolve(self._emptied)

    def render(self, request: Request | None, error: Exception) -> Response:
        """The answer to an error; never raises."""
        try:
            return self._render(request, error)
        except Exception as broken:  # noqa: BLE001  # the edge answers whatever happens
            return render_error(request, broken)

    def _sweep(self) -> None:
        limits = self.limits
        shortest = min(
            limits.head_seconds, limits.body_idle_seconds, limits.keep_alive_seconds,
            limits.write_stall_seconds, limits.linger_seconds, 4.0,
        )  # fmt: skip
        self._timer = self.loop.call_later(shortest / 4, self._sweep)
        # What every answer's own lines begin with.
        self.date_line = b"Date: %b\r\nX-Request-Id: " % http_date(self.clock.now_ms() // 1000)
        now = self.loop.time()
        for connection in tuple(self.connections):
            connection.check_time(now)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
