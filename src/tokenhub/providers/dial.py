"""Open a connection to an origin: resolve, check every address, connect, proxy, TLS.

The one place where the hub connects to anything a provider's base URL names.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.providers.egress import AddressRefused, EgressPolicy, Origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tokenhub.providers.connection import Connection

    Resolver = Callable[[str, int], Awaitable[list[str]]]
    Factory = Callable[[], Connection]

# How long one address may keep quiet before the next is tried beside it (RFC 8305, section 5).
HEAD_START = 0.25
# A name with more addresses than this has its first ones tried; all are checked.
MAX_TRIED = 6
_MAX_TUNNEL_HEAD = 16 * 1024
_PROXY_FORM = "must be like http://[user:password@]host:port"


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy that opens tunnels with CONNECT.

    ``authorization`` is a header value or b"". ``direct`` are names, and the domains of names, that
    are reached without it.
    """

    host: str
    port: int
    authorization: bytes = b""
    direct: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str, direct: tuple[str, ...] = ()) -> Proxy:
        """Read ``http://[user:password@]host:port``.

        Raises:
            ValueError: anything else. The message does not repeat the URL, which holds a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError:
            raise ValueError(_PROXY_FORM) from None
        if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError(_PROXY_FORM)
        if parts.query or parts.fragment:
            raise ValueError(_PROXY_FORM)
        authorization = b""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = b"Basic " + base64.b64encode(pair.encode())
        return cls(parts.hostname, port, authorization, direct)

    def leads_to(self, origin: Origin) -> bool:
        """Whether the origin is reached through it. What is local means nothing to a proxy."""
        host = f".{origin.host}"
        return not origin.local and not any(host.endswith(f".{name}") for name in self.direct)

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


class Dialer:
    """Opens connections under the egress rules.

    Args:
        policy: which addresses are refused.
        ca_file: certificate authorities to trust besides the system's, PEM.
        proxy: what everything is reached through that is not plainly local.
        resolver: name and port → addresses; None asks the system.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        ca_file: Path | None = None,
        proxy: Proxy | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._policy = policy
        self._ca_file = ca_file
        self._proxy = proxy
        self._resolve = resolver or _resolve
        self._tls: ssl.SSLContext | None = None

    async def open(self, origin: Origin, factory: Factory) -> Connection:
        """A connection that is ready for a request.

        Raises:
            TransportError: CONNECT, nothing was sent.
        """
        proxy = self._proxy
        if proxy is not None and not proxy.leads_to(origin):
            proxy = None
        try:
            tls = await self._context() if origin.tls else None
            if proxy is not None:
                return await self._tunnel(proxy, origin, factory, tls)
            addresses = await self._addresses(origin)
            return await _first(
                addresses, lambda address: self._connect(address, origin, factory, tls)
            )
        except AddressRefused as refused:
            raise _failed(origin, proxy, str(refused)) from None
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate is not valid: {error.verify_message}"
            raise _failed(origin, proxy, why) from None
        except ssl.SSLError as error:
            why = f"TLS failed: {error.reason or 'handshake broken off'}"
            raise _failed(origin, proxy, why) from None
        except socket.gaierror as error:
            why = f"the name does not resolve: {error.strerror}"
            raise _failed(origin, proxy, why) from None
        except OSError as error:
            # asyncio words an error of the system differently from uvloop, its number is the same.
            known = os.strerror(error.errno) if error.errno else error.strerror
            raise _failed(origin, proxy, known or type(error).__name__) from None

    async def _addresses(self, origin: Origin) -> list[str]:
        """Every address of the origin, resolved now and all allowed."""
        if origin.literal:
            addresses = [origin.host]
        else:
            addresses = await self._resolve(origin.host, origin.port)
        if not addresses:
            raise OSError(0, "the name has no address")
        # One bad address refuses the name: else the order of the answer would decide.
        for address in addresses:
            self._policy.check(address, origin.port)
        return addresses[:MAX_TRIED]

    async def _connect(
        self, address: str, origin: Origin, factory: Factory, tls: ssl.SSLContext | None
    ) -> Connection:
        name = origin.host if tls is not None else None
        _, connection = await asyncio.get_running_loop().create_connection(
            factory, address, origin.port, ssl=tls, server_hostname=name
        )
        try:
            self._policy.check_connected(*connection.addresses(), origin.port)
        except AddressRefused:
            connection.close()
            raise
        return connection

    async def _tunnel(
        self, proxy: Proxy, origin: Origin, factory: Factory, tls: ssl.SSLContext | None
    ) -> Connection:
        """Connect through the proxy; it resolves the name, we check what is a literal."""
        if origin.literal:
            self._policy.check(origin.host, origin.port)
        loop = asyncio.get_running_loop()
        transport, tunnel = await loop.create_connection(
            lambda: _Tunnel(loop), proxy.host, proxy.port
        )
        try:
            await tunnel.open(origin, proxy)
            connection = factory()
            # Before TLS too: a handshake that fails tells the connection that it is lost.
            connection.connection_made(transport)
            if tls is None:
                transport.set_protocol(connection)
            else:
                wrapped = await loop.start_tls(
                    transport, connection, tls, server_hostname=origin.host
                )
                assert wrapped is not None
                connection.connection_made(wrapped)
        except BaseException:
            transport.abort()
            raise
        return connection

    async def _context(self) -> ssl.SSLContext:
        """The TLS settings, made at first use: reading the trust store takes milliseconds."""
        if self._tls is None:
            loop = asyncio.get_running_loop()
            self._tls = await loop.run_in_executor(None, _make_context, self._ca_file)
        return self._tls


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel and reads its answer."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._answered: asyncio.Future[None] = loop.create_future()
        self._head = b""

    async def open(self, origin: Origin, proxy: Proxy) -> None:
        """Have the proxy connect to the origin.

        Raises:
            OSError: it would not.
        """
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = f"{host}:{origin.port}".encode()
        lines = [b"CONNECT %b HTTP/1.1" % target, b"Host: " + target]
        if proxy.authorization:
            lines.append(b"Proxy-Authorization: " + proxy.authorization)
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(head) < _MAX_TUNNEL_HEAD:
            return
        status = head.split(b"\r\n", 1)[0].split(b" ")
        if not end or rest or not status[0].startswith(b"HTTP/1.") or len(status) < 2:
            self._fail("the proxy did not answer in HTTP/1.1")
        elif status[1] != b"200":
            self._fail(f"the proxy answered {status[1][:3].decode('ascii', 'replace')}")
        elif not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._fail("the proxy closed the connection")

    def _fail(self, why: str) -> None:
        if not self._answered.done():
            self._answered.set_exception(OSError(0, why))


async def _first(
    addresses: list[str], attempt: Callable[[str], Awaitable[Connection]]
) -> Connection:
    """The first connection that stands, each next address tried after a head start."""
    if len(addresses) == 1:
        return await attempt(addresses[0])
    waiting = addresses[::-1]
    running: set[asyncio.Future[Connection]] = set()
    failure: BaseException | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.ensure_future(attempt(waiting.pop())))
            done, running = await asyncio.wait(
                running,
                timeout=HEAD_START if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                failure = task.exception()
                if failure is None:
                    running |= done - {task}
                    return task.result()
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_discard)
    assert failure is not None
    raise failure


def _discard(task: asyncio.Future[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _make_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Python 3.13 turned both of these on; the verdict is the same on each version, and curl's.
    # Strict refuses private authorities that everything else on the machine takes.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _failed(origin: Origin, proxy: Proxy | None, why: str) -> TransportError:
    through = "" if proxy is None else f" through the proxy {proxy.host}:{proxy.port}"
    message = f"cannot connect to {origin.host}:{origin.port}{through}: {why}"
    return TransportError(FailureClass.CONNECT, message, sent=False)
