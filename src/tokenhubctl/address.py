"""URLs taken apart and put together by hand: short, and free of urllib's import time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tokenhubctl.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Endpoint(NamedTuple):
    """Where to connect: ``https://host:port/base`` taken apart. ``base`` has no trailing slash."""

    tls: bool
    host: str
    port: int
    base: str

    @property
    def authority(self) -> str:
        """host:port as the Host header wants it; the default port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL again, in its one normal form."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.base}"


def split(url: str, *, setting: str = "TOKENHUB_URL") -> tuple[Endpoint, str]:
    """An endpoint and the ``user:password`` of a URL ("" when it has none).

    Trailing slashes of the path are dropped. Raises UsageFault naming ``setting``.
    """
    scheme, found, rest = url.strip().partition("://")
    if not found or scheme.lower() not in {"http", "https"}:
        raise _bad(setting, url, "it must start with http:// or https://")
    if any(mark in rest for mark in "?#") or any(ord(c) <= 32 for c in rest):
        raise _bad(setting, url, "it must end before any '?', '#' or space")
    authority, slash, path = rest.partition("/")
    credentials, _, hostport = authority.rpartition("@")
    tls = scheme.lower() == "https"
    host, port = _host_and_port(hostport, 443 if tls else 80)
    if not host or not 0 < port < 65_536:
        raise _bad(setting, url, "the host or the port is missing or malformed")
    return Endpoint(tls, host, port, (slash + path).rstrip("/")), credentials


def _bad(setting: str, url: str, why: str) -> UsageFault:
    # The part before "@" may be a password.
    shown = url.rpartition("@")[2]
    return UsageFault(
        f"{setting} is not a usable URL ({shown!r}): {why}.",
        hint=f"An example: {setting}=http://localhost:8080",
    )


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, after = text[1:].partition("]")
        if after and not after.startswith(":"):
            return "", 0
        port = after.removeprefix(":")
    else:
        host, _, port = text.partition(":")
        if ":" in port:
            return "", 0
    if not port:
        return host, default
    return host, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name == "::1":
        return True
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(p.isascii() and p.isdigit() for p in parts)


def quote(text: str) -> str:
    """Percent-encode everything but unreserved characters, so any text is one path segment."""
    if text and not text.strip("."):
        return "%2E" * len(text)  # "." and ".." would be resolved away
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in data)


def path(*segments: str) -> str:
    """A path of the admin API from its raw segments, each of them encoded."""
    for segment in segments:
        if not segment:
            raise UsageFault(
                "A name or id is empty.", hint="List what exists with the list command."
            )
    return "/admin/v1/" + "/".join(quote(segment) for segment in segments)


def query(pairs: Iterable[tuple[str, object]]) -> str:
    """``?a=b&c=d`` from pairs; those with None are left out; "" when none is left."""
    parts = [f"{quote(name)}={quote(str(value))}" for name, value in pairs if value is not None]
    return "?" + "&".join(parts) if parts else ""
