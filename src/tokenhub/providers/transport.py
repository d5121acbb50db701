"""The HTTP/1.1 client: a pool of connections per origin, and one sweep for all limits.

    send ── a free connection, newest first ──▶ exchange ──▶ Answer
       └─ none: below the cap open one, at the cap wait for one

Taking a free connection needs no await, so a request on a warm pool costs one future round trip.
Nothing is retried except a request on a reused connection that the other end had already closed, or
spoken on unasked; that one goes out once more on a new connection. Redirects are never followed.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.core.outbox import Outbox
from tokenhub.providers.connection import Connection, StaleConnection
from tokenhub.providers.dial import Dialer, Proxy
from tokenhub.providers.egress import EgressPolicy, Origin
from tokenhub.providers.frames import Frames
from tokenhub.providers.upstream import Answer, Heading, Timeouts, Upstream, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from pathlib import Path

    from tokenhub.providers.dial import Resolver

__all__ = [
    "Answer", "Heading", "HttpTransport", "Proxy", "Timeouts", "Upstream", "UpstreamRequest",
]  # fmt: skip

MAX_CONNECTIONS = 4096  # per origin
IDLE_SECONDS = 60.0
SWEEP_SECONDS = 0.25
# Bodies below this are sent in one write with the head; copying a larger one costs more.
_JOIN_BELOW = 64 * 1024

_NL, _CR = b"\n\r"


class HttpTransport:
    """Sends requests to HTTP upstreams. Belongs to one event loop.

    Args:
        policy: the egress rules; None refuses the addresses that are always refused.
        max_connections: cap for each origin; more requests wait, within their connect limit.
        idle_seconds: how long a connection is kept without a request.
        ca_file: certificate authorities to trust besides the system's, PEM.
        proxy: an HTTP proxy for everything that is not local; the environment is never asked.
        resolver: name and port → addresses; None asks the system.
        sweep_seconds: how often limits are looked at, hence how late they can bite.
        outbox: by which requests leave; one of its own unless given.
    """

    def __init__(
        self,
        policy: EgressPolicy | None = None,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        ca_file: Path | None = None,
        proxy: Proxy | None = None,
        resolver: Resolver | None = None,
        sweep_seconds: float = SWEEP_SECONDS,
        outbox: Outbox | None = None,
    ) -> None:
        self._dialer = Dialer(
            policy or EgressPolicy(), ca_file=ca_file, proxy=proxy, resolver=resolver
        )
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._sweep_seconds = sweep_seconds
        self._outbox = outbox
        self._pools: dict[str, _Pool] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(
        self,
        origin: Origin | None,
        request: UpstreamRequest,
        timeouts: Timeouts,
        stream: bool,  # noqa: FBT001  # see Upstream.send
    ) -> Answer:
        """Send a request; see ``Upstream.send``."""
        assert origin is not None
        written = _written(origin, request)
        pool = self._pools.get(origin.origin) or self._add_pool(origin)
        free = pool.free
        while free:
            connection = free.pop()
            if connection.usable():
                break
            connection.close()
        else:
            began = asyncio.get_running_loop().time()
            connection = await pool.open(timeouts.connect)
            timeouts = _left(timeouts, asyncio.get_running_loop().time() - began)
        try:
            return await (waiter := connection.exchange(written, timeouts, stream))
        except StaleConnection:
            del waiter
            # Asked for anew: a sweep may have dropped the pool with its last connection.
            pool = self._pools.get(origin.origin) or self._add_pool(origin)
        except TransportError:
            # A future's error refers to the frames it passed through. One of them referring to the
            # future is a circle, and it would keep the request and its body.
            del waiter
            raise
        except asyncio.CancelledError:
            connection.withdraw(waiter)
            raise
        connection = await pool.open(timeouts.connect)
        waiter = connection.exchange(written, timeouts, stream)
        try:
            return await waiter
        except TransportError:
            del waiter
            raise
        except asyncio.CancelledError:
            connection.withdraw(waiter)
            raise

    def close(self) -> None:
        """Close every connection; what is under way fails, and so does what comes later."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connections(self) -> tuple[int, int]:
        """How many connections are open, and how many of them are free."""
        pools = self._pools.values()
        return sum(len(pool.open_ones) for pool in pools), sum(len(pool.free) for pool in pools)

    def _add_pool(self, origin: Origin) -> _Pool:
        if self._closed:
            message = "the gateway is shutting down"
            raise TransportError(FailureClass.CONNECT, message, sent=False)
        loop = asyncio.get_running_loop()
        if self._outbox is None:
            self._outbox = Outbox(loop)
        pool = _Pool(
            loop, self._dialer, origin, self._max_connections, self._idle_seconds, self._outbox
        )
        self._pools[origin.origin] = pool
        if self._timer is None:
            self._timer = loop.call_later(self._sweep_seconds, self._sweep, loop)
        return pool

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at all connections; a pool that has been empty for a whole sweep is dropped."""
        now = loop.time()
        for key, pool in list(self._pools.items()):
            if not pool.sweep(now):
                del self._pools[key]
        again = bool(self._pools) and not self._closed
        self._timer = loop.call_later(self._sweep_seconds, self._sweep, loop) if again else None


class _Pool:
    """The connections to one origin.

    ``free`` is a stack: the newest is taken, so under low load the others grow old and go. Who
    takes one must see that it is still usable.
    ``opening`` counts the slots that are promised to connections not yet there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dialer: Dialer,
        origin: Origin,
        limit: int,
        idle_seconds: float,
        outbox: Outbox,
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._dialer = dialer
        self._origin = origin
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._closed = False
        self._frames = Frames()
        self._asking = 0  # calls of open() under way
        self._queue: deque[asyncio.Future[Connection | None]] = deque()
        self.free: list[Connection] = []
        self.open_ones: set[Connection] = set()
        self.opening = 0

    async def open(self, seconds: float) -> Connection:
        """A new connection, or at the cap the next that becomes free.

        Raises:
            TransportError: CONNECT, nothing was sent.
        """
        if self._closed:
            raise self._failed("the gateway is shutting down")
        self._asking += 1
        try:
            connection = await self._within(seconds, self._obtain())
        finally:
            self._asking -= 1
        if not connection.usable():
            raise self._failed("it closed the connection at once")
        return connection

    def released(self, connection: Connection) -> None:
        """A connection can serve again: the request that waits longest gets it."""
        connection.idle_until = math.inf
        if self._queue or self._closed:
            self._pass_on(connection)
        else:
            self.free.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed: its slot is free."""
        if connection in self.open_ones:
            self.open_ones.remove(connection)
            if connection in self.free:
                self.free.remove(connection)
            self._pass_slot_on()

    def sweep(self, now: float) -> bool:
        """Enforce the limits of all connections; False when the pool is empty."""
        self._frames.curious = True
        for connection in list(self.open_ones):
            connection.check(now)
        for connection in self.free:
            # Free since the last sweep: no look at the clock for each release.
            if connection.idle_until == math.inf:
                connection.idle_until = now + self._idle_seconds
        return bool(self.open_ones or self._asking)

    def close(self) -> None:
        """Close all."""
        self._closed = True
        for waiter in self._queue:
            if not waiter.done():
                waiter.set_exception(self._failed("the gateway is shutting down"))
        self._queue.clear()
        for connection in list(self.open_ones):
            connection.close()

    async def _obtain(self) -> Connection:
        while len(self.open_ones) + self.opening >= self._limit:
            handed = await self._wait()
            if handed is None:
                break  # a slot, counted in ``opening`` already
            if handed.usable():
                return handed
        else:
            self.opening += 1
        try:
            connection = await self._dialer.open(self._origin, self._connection)
        except BaseException:
            self.opening -= 1
            self._pass_slot_on()
            raise
        self.opening -= 1
        if self._closed or not connection.usable():
            connection.close()
            self._pass_slot_on()
            raise self._failed("it closed the connection at once")
        self.open_ones.add(connection)
        return connection

    async def _wait(self) -> Connection | None:
        """Wait for a connection, or for a slot to open one in (None)."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._queue.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled in the very turn in which the wait was over: give it to the next.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise

    def _give_back(self, handed: Connection | None) -> None:
        if handed is None:
            self.opening -= 1
            self._pass_slot_on()
        elif handed.usable():
            self.released(handed)

    def _pass_on(self, connection: Connection) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self._closed:
            connection.close()
        else:
            self.free.append(connection)

    def _pass_slot_on(self) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                self.opening += 1
                waiter.set_result(None)
                return

    def _connection(self) -> Connection:
        return Connection(self._loop, self, self._outbox, self._frames)

    async def _within(self, seconds: float, work: Coroutine[None, None, Connection]) -> Connection:
        """Cancel ``work`` when the time is over. Its own task, but only for new connections."""
        task = self._loop.create_task(work)
        timer = self._loop.call_later(seconds, task.cancel)
        caller = asyncio.current_task()
        assert caller is not None
        cancelled_before = caller.cancelling()
        try:
            return await task
        except asyncio.CancelledError:
            if caller.cancelling() == cancelled_before:
                raise self._failed(f"no connection within {seconds:g} s") from None
            # Cancelled in the very turn in which the connection stood.
            if task.done() and not task.cancelled() and task.exception() is None:
                self._give_back(task.result())
            raise
        finally:
            timer.cancel()
            del task, caller  # their errors refer to this frame

    def _failed(self, why: str) -> TransportError:
        message = f"cannot connect to {self._origin.host}:{self._origin.port}: {why}"
        return TransportError(FailureClass.CONNECT, message, sent=False)


def _left(timeouts: Timeouts, waited: float) -> Timeouts:
    """What the limits leave after the wait for a connection: both count from the call."""
    return Timeouts(
        connect=timeouts.connect,
        first_byte=max(timeouts.first_byte - waited, 0.0),
        idle=timeouts.idle,
        total=None if timeouts.total is None else max(timeouts.total - waited, 0.0),
    )


def _written(origin: Origin, request: UpstreamRequest) -> bytes | tuple[bytes | memoryview, ...]:
    """A request as it goes out; a long one in parts.

    Raises:
        TransportError: CLIENT; a name, value or target would break out of its line.
    """
    heading, secret, body = request.heading, request.credential, request.body
    if heading.host != origin.host_header:
        _write(heading, origin.host_header)
    before, after, beside = heading.written
    more = _lines(request.more) if request.more else b""
    size = len(body)
    if secret is None:
        if isinstance(body, bytes) and size < _JOIN_BELOW:
            return b"%b%d%b%b\r\n%b" % (before, size, after, more, body)
        head = b"%b%d%b%b\r\n" % (before, size, after, more)
    else:
        # Asked by number: asked by bytes, it makes and drops an error each time.
        if _NL in secret or _CR in secret or 0 in secret:
            raise _broken()
        if isinstance(body, bytes) and size < _JOIN_BELOW:
            return b"%b%d%b%b\r\n%b\r\n%b" % (before, size, beside, secret, more, body)
        head = b"%b%d%b%b\r\n%b\r\n" % (before, size, beside, secret, more)
    return (head, body) if isinstance(body, bytes) else (head, *body.parts)


def _write(heading: Heading, host: bytes) -> None:
    """Write a heading for a host: what goes before the body's length, and what after it."""
    before = b"%b %b HTTP/1.1\r\nHost: %b\r\nAccept-Encoding: identity\r\nContent-Length: " % (
        heading.method, heading.target, host,
    )  # fmt: skip
    if before.count(b"\n") != 3 or before.count(b"\r") != 3 or b"\0" in before:
        raise _broken()
    if b" " in heading.target:
        raise _broken()
    if any(byte in heading.credential for byte in (_NL, _CR, 0)):
        raise _broken()
    after = b"\r\n" + _lines(heading.headers)
    heading.written = before, after, after + heading.credential
    heading.host = host


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts: list[bytes] = []
    for name, value in headers:
        if _NL in value or _CR in value or 0 in value or _NL in name or _CR in name or 0 in name:
            raise _broken()
        parts += (name, b": ", value, b"\r\n")
    return b"".join(parts)


def _broken() -> TransportError:
    message = "the request has a line break or NUL in a header, or a space in its target"
    return TransportError(FailureClass.CLIENT, message, sent=False)
