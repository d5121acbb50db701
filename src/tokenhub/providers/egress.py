"""Where requests may go: the rules for a provider's base URL and for the addresses behind it.

A base URL is parsed once, into an ``Origin``. A name is resolved anew for each connection, and
every address it has is checked; the connection then goes to a checked address and nowhere else,
so a name that changes its answer between check and use wins nothing.

Private and loopback addresses are allowed: local models live there. Never allowed are addresses
that no model can have and that are worth attacking: link-local and cloud metadata, multicast,
unspecified, reserved, each also when it hides inside an IPv6 form, and our own listeners.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_URL = 2048
_PORTS = {"http": 80, "https": 443}

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*")
# The last label decides whether a host is meant as an IPv4 address (WHATWG URL, section 3.5).
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")

_REFUSED_V4 = tuple(
    (IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "unspecified"),
        ("169.254.0.0/16", "link-local"),
        ("100.100.100.200/32", "a cloud metadata service"),
        ("168.63.129.16/32", "a cloud metadata service"),
        ("192.0.0.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved or broadcast"),
    )
)
_REFUSED_V6 = tuple(
    (IPv6Network(network), why)
    for network, why in (
        ("::/128", "unspecified"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "reserved"),
        ("fd00:ec2::/32", "a cloud metadata service"),
        ("fd20:ce::254/128", "a cloud metadata service"),
        # Local-use NAT64: which IPv4 address is inside depends on the site's own prefix length.
        ("64:ff9b:1::/48", "a translated address"),
        ("ff00::/8", "multicast"),
    )
)
# Written down, because what `is_private` says of an address depends on the version of Python.
_PRIVATE_V4 = tuple(
    map(IPv4Network, ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
_PRIVATE_V6 = tuple(map(IPv6Network, ("::1/128", "fc00::/7")))
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


class AddressRefused(ValueError):
    """The egress rules forbid a connection to this address."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A base URL taken apart; the parts a connection and a request need.

    ``origin`` is ``scheme://host:port`` with the port always written: what a credential is bound
    to. ``url`` is the normalised base URL: no default port, no trailing slash or ``/v1``.
    ``host_header`` is the value of ``Host``. ``path`` is the base path, b"" or b"/...". ``literal``
    says that the host is an IP address. ``local`` marks what plainly is on this machine or its
    network: a loopback or private address, a name without a dot or under ``.local`` and the like.
    """

    scheme: str
    host: str  # lower-case ASCII; an IPv6 address without brackets
    port: int
    path: bytes
    host_header: bytes
    origin: str
    url: str
    tls: bool
    literal: bool
    local: bool


@lru_cache(maxsize=1024)
def parse_base_url(url: str) -> Origin:
    """Normalise a provider's base URL, or say what is wrong with it.

    Cached: each request asks for its provider's.

    Non-ASCII host names are converted as IDNA (RFC 3490). The name is not resolved.

    Raises:
        InvalidRequest: code ``invalid_base_url``; not a URL that we would send a credential to.
    """
    if len(url) > MAX_URL:
        raise _invalid(f"is longer than {MAX_URL} characters")
    if not url.isprintable() or " " in url:
        raise _invalid("holds white space, control or invisible characters")
    if "\\" in url:
        raise _invalid("holds a backslash")
    if "?" in url or "#" in url:
        raise _invalid("has a query or a fragment")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PORTS:
        raise _invalid("does not start with http:// or https://")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise _invalid("holds a user name or password", hint="Give the key as `api_key`.")
    host, address, port = _host_and_port(authority, _PORTS[scheme])
    written = f"[{host}]" if ":" in host else host
    authority = written if port == _PORTS[scheme] else f"{written}:{port}"
    path = _base_path(path)
    return Origin(
        scheme=scheme,
        host=host,
        port=port,
        path=path.encode(),
        host_header=authority.encode(),
        origin=f"{scheme}://{written}:{port}",
        url=f"{scheme}://{authority}{path}",
        tls=scheme == "https",
        literal=address is not None,
        local=_local(host, address),
    )


def check_address(text: str) -> None:
    """Refuse what no provider can have; private and loopback addresses pass.

    Raises:
        AddressRefused: with the reason.
    """
    try:
        address = ip_address(text)
    except ValueError:
        raise AddressRefused("that is not an IP address") from None
    for form in _forms(address):
        if isinstance(form, IPv4Address):
            why = next((why for network, why in _REFUSED_V4 if form in network), None)
        else:
            why = next((why for network, why in _REFUSED_V6 if form in network), None)
        if why is not None:
            hidden = "" if form == address else f" (it stands for {form})"
            raise AddressRefused(f"the address {_written(address)} is {why}{hidden}")


def is_private(address: IPv4Address | IPv6Address) -> bool:
    """Whether only this machine or its own network can mean the address: loopback or private."""
    plain = _plain(address)
    if isinstance(plain, IPv4Address):
        return any(plain in network for network in _PRIVATE_V4)
    return any(plain in network for network in _PRIVATE_V6)


class EgressPolicy:
    """The address rules together with our own listeners, which we must not call ourselves.

    Args:
        listeners: (host, port) pairs this process accepts connections on.
    """

    def __init__(self, listeners: Iterable[tuple[str, int]] = ()) -> None:
        self._own: set[tuple[IPv4Address | IPv6Address, int]] = set()
        self._wildcard_ports: set[int] = set()
        for host, port in listeners:
            self.refuse_listener(host, port)

    def refuse_listener(self, host: str, port: int) -> None:
        """Never connect to this address of our own; a wildcard means all of this machine's.

        Raises:
            ValueError: ``host`` is not an IP address.
        """
        plain = _plain(ip_address(host))
        if plain.is_unspecified:
            self._wildcard_ports.add(port)
        else:
            self._own.add((plain, port))

    def check(self, address: str, port: int) -> None:
        """Ask before a connection is made.

        Raises:
            AddressRefused: with the reason.
        """
        check_address(address)
        plain = _plain(ip_address(address))
        ours = (plain, port) in self._own
        if ours or (port in self._wildcard_ports and plain.is_loopback):
            raise AddressRefused("it is this gateway's own address")

    def check_connected(self, ours: str, theirs: str, port: int) -> None:
        """Ask once a connection stands, before anything is sent.

        A connection to another address of this very machine has the same address on both ends.

        Raises:
            AddressRefused: the other end is our own wildcard listener.
        """
        if port in self._wildcard_ports and ours == theirs:
            raise AddressRefused("it is this gateway's own address")


def _host_and_port(
    authority: str, default: int
) -> tuple[str, IPv4Address | IPv6Address | None, int]:
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _invalid("has a malformed IPv6 address")
        return *_ipv6(host), _port(port.removeprefix(":"), default, given=bool(port))
    host, colon, port = authority.partition(":")
    name, address = _name_or_ipv4(host)
    return name, address, _port(port, default, given=bool(colon))


def _ipv6(text: str) -> tuple[str, IPv6Address]:
    try:
        # A zone ("%eth0") only has a meaning for link-local addresses, which are refused anyway.
        address = IPv6Address("" if "%" in text else text)
    except AddressValueError:
        raise _invalid("has a malformed IPv6 address") from None
    _check_literal(text)
    return _written(address), address


def _name_or_ipv4(text: str) -> tuple[str, IPv4Address | None]:
    if not text:
        raise _invalid("has no host")
    host = _ascii(text).lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid("has a malformed host name")
    if not _NUMERIC.fullmatch(labels[-1]):
        return host, None
    try:
        address = IPv4Address(host)
    except AddressValueError:
        raise _invalid(
            "has a malformed IPv4 address", hint="Write it as four decimal numbers."
        ) from None
    _check_literal(host)
    return host, address


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _invalid("has a malformed international host name") from None


def _port(text: str, default: int, *, given: bool) -> int:
    if not given:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise _invalid("has a port that is not a number from 1 to 65535")
    return int(text)


def _base_path(rest: str) -> str:
    path = ("/" + rest).rstrip("/").removesuffix("/v1").rstrip("/")
    if not _PATH.fullmatch(path):
        raise _invalid("has a malformed path")
    # Dot segments, also percent-encoded, would be resolved by somebody else than us.
    if any(segment.lower().replace("%2e", ".") in {".", ".."} for segment in path.split("/")):
        raise _invalid("has a `.` or `..` in its path")
    return path


def _check_literal(host: str) -> None:
    try:
        check_address(host)
    except AddressRefused as refused:
        raise InvalidRequest(
            f"`base_url` is not allowed: {refused}.",
            code="base_url_refused",
            param="base_url",
            hint="Private and loopback addresses are allowed; this one cannot be a provider's.",
        ) from None


def _invalid(
    why: str,
    *,
    hint: str = "A base URL looks like https://api.example.com or http://127.0.0.1:8000.",
) -> InvalidRequest:
    return InvalidRequest(
        f"`base_url` {why}.", code="invalid_base_url", param="base_url", hint=hint
    )


def _local(host: str, address: IPv4Address | IPv6Address | None) -> bool:
    if address is not None:
        return is_private(address)
    return "." not in host or host.endswith(_LOCAL_SUFFIXES)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _written(address: IPv4Address | IPv6Address) -> str:
    """As the URL standard writes it, one text for each address: a credential is bound to it.

    ``str`` writes an IPv4-mapped address in another way on Python 3.13 than on those before it.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        high, low = divmod(int(address.ipv4_mapped), 1 << 16)
        return f"::ffff:{high:x}:{low:x}"
    return address.compressed


def _forms(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The address, and every IPv4 address that a network may take it for."""
    yield address
    if isinstance(address, IPv4Address):
        return
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if (
        address.ipv4_mapped is not None
        or address in _NAT64
        or (address in _COMPATIBLE and int(address) > 1)
    ):
        yield low
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield low
