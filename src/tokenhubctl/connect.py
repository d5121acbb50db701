"""Connecting: direct or through the proxy of HTTPS_PROXY / http_proxy, with TLS where asked."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenhubctl import address
from tokenhubctl.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenhubctl.address import Endpoint

MAX_CONNECT_REPLY = 16_384
HINT = "Is the server running, and is TOKENHUB_URL right? `tokenhubctl doctor` looks at both."


class Limits(NamedTuple):
    """Seconds: to connect, and of silence while reading (None = wait for ever)."""

    connect: float
    read: float | None


@contextlib.contextmanager
def translated(limits: Limits) -> Iterator[None]:
    """Turn what the operating system says about a connection into Unreachable."""
    try:
        yield
    except TimeoutError as error:
        seconds = f"{limits.read:g} s" if limits.read else "the time allowed"
        raise Unreachable(
            f"No answer within {seconds}.", hint="Allow more with --timeout.", code="timeout"
        ) from error
    except OSError as error:
        raise Unreachable(f"The connection broke: {reason(error)}.", hint=HINT) from error


def reason(error: OSError) -> str:
    """The words of an OSError without its number."""
    return str(error.strerror or error).rstrip(".")


def proxy_for(endpoint: Endpoint) -> str | None:
    """The proxy URL for an endpoint, None for a direct connection; loopback is always direct.

    The upper-case HTTP_PROXY is not read: a web server's CGI variables can forge it.
    """
    names = ("HTTPS_PROXY", "https_proxy") if endpoint.tls else ("http_proxy",)
    found = next((value for name in names if (value := os.environ.get(name))), None)
    if found is None or address.is_loopback(endpoint.host) or _excluded(endpoint.host):
        return None
    return found if "://" in found else f"http://{found}"


def _excluded(host: str) -> bool:
    listed = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    names = [name.strip().lower() for name in listed.split(",")]
    bare = [name.lstrip("*").lstrip(".") for name in names]
    return "*" in names or any(
        name and (host.lower() == name or host.lower().endswith("." + name)) for name in bare
    )


def proxy_authorization(proxy: str) -> dict[str, str]:
    """The header with the user and password of a proxy's URL, escapes in them decoded."""
    credentials = address.split(proxy, setting="the proxy variable")[1]
    if not credentials:
        return {}
    import base64  # noqa: PLC0415
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415

    basic = base64.b64encode(unquote_to_bytes(credentials)).decode()
    return {"Proxy-Authorization": f"Basic {basic}"}


def connect(endpoint: Endpoint, proxy: str | None, limits: Limits) -> socket.socket:
    """A connected socket to the endpoint, or to the proxy that will carry a plain request."""
    if proxy is None:
        connection = _open(endpoint.host, endpoint.port, limits)
    else:
        via, _ = address.split(proxy, setting="the proxy variable")
        connection = _open(via.host, via.port, limits)
        if endpoint.tls:
            _tunnel(connection, endpoint, proxy_authorization(proxy), limits)
    return _wrapped(connection, endpoint, limits) if endpoint.tls else connection


def _open(host: str, port: int, limits: Limits) -> socket.socket:
    try:
        # Bytes, because a str goes through the IDNA codec: 5 ms of imports for plain ASCII.
        name: Any = host.encode("ascii" if host.isascii() else "idna")
        connection = socket.create_connection((name, port), limits.connect)
    except (TimeoutError, OSError, UnicodeError) as error:
        if isinstance(error, TimeoutError):
            why = f"no connection within {limits.connect:g} s"
        else:
            why = reason(error) if isinstance(error, OSError) else "no such host name"
        raise Unreachable(f"Cannot connect to {host}:{port}: {why}.", hint=HINT) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # An endless stream has no read limit, so a peer that vanished must show by itself.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return connection


def _tunnel(
    connection: socket.socket, to: Endpoint, headers: Mapping[str, str], limits: Limits
) -> None:
    host = f"[{to.host}]" if ":" in to.host else to.host
    lines = [f"CONNECT {host}:{to.port} HTTP/1.1", f"Host: {host}:{to.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    reply = b""
    with translated(limits):
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        while b"\r\n\r\n" not in reply and len(reply) < MAX_CONNECT_REPLY:
            # One byte at a time: what follows the head belongs to TLS.
            byte = connection.recv(1)
            if not byte:
                break
            reply += byte
    if reply.split(b" ", 2)[1:2] != [b"200"]:
        connection.close()
        said = reply.split(b"\r\n", 1)[0].decode("latin-1") or "nothing"
        raise Unreachable(f"The proxy refused the connection; it said: {said}")


def _wrapped(connection: socket.socket, endpoint: Endpoint, limits: Limits) -> socket.socket:
    import ssl  # noqa: PLC0415  (7 ms that plain http does not need)

    connection.settimeout(limits.connect)
    context = ssl.create_default_context()
    # Python 3.13 turned both of these on; the verdict is the same on each version, and curl's.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        return context.wrap_socket(connection, server_hostname=endpoint.host)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise Unreachable(
            f"The certificate of {endpoint.host} is not trusted: {error.verify_message}.",
            hint="For a private authority, name its file in SSL_CERT_FILE.",
            code="certificate",
        ) from error
    except OSError as error:
        connection.close()
        raise Unreachable(
            f"No TLS with {endpoint.authority}: {reason(error)}.",
            hint="Does that port speak https? TOKENHUB_URL may have to start with http://.",
            code="tls",
        ) from error
