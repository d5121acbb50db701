"""How often and how many at once: per API key, and per client address."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from tokenhub.core.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenhub.access.keys import Grant
    from tokenhub.core.clock import Clock

MAX_ADDRESSES = 100_000
MAX_IDLE_KEYS = 10_000
UNLIMITED = -1


class Bucket:
    """A token bucket that starts full: ``rate`` tokens a second, ``burst`` at most.

    Attributes:
        at: when it was last asked, in monotonic seconds.
    """

    __slots__ = ("_tokens", "at")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens = burst
        self.at = now

    def take(self, rate: float, burst: float, now: float) -> float:
        """Take one token: 0, or the seconds until there is one."""
        tokens = self._tokens
        if now > self.at:
            tokens += (now - self.at) * rate
            self.at = now
        tokens = min(tokens, burst)
        if tokens >= 1.0:
            self._tokens = tokens - 1.0
            return 0.0
        self._tokens = tokens
        return (1.0 - tokens) / rate


class Running:
    """The requests of one key under way.

    Attributes:
        count: raised by who was admitted, and lowered when that request has ended.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class KeyLimits:
    """The limits of a key: requests per second, requests at once.

    Args:
        clock: monotonic time.
        default_rps: for keys with ``rate_limit_rps`` 0; 0 = no limit.
        default_burst: for the same keys; a key with a rate of its own may burst to twice that.

    Attributes:
        refused: how many requests, since the start.
    """

    def __init__(self, clock: Clock, *, default_rps: int = 0, default_burst: int = 1) -> None:
        self._clock = clock
        self._default = (float(default_rps), float(default_burst))
        # After so many seconds every bucket is full again, as good as none.
        self._idle_s = max(2.0, default_burst / default_rps if default_rps else 0.0)
        self._buckets: dict[str, Bucket] = {}
        self._running: dict[str, Running] = {}
        self.refused = 0

    def admit(self, grant: Grant) -> Running:
        """Whether one more request may come now; the caller counts it in what this returns.

        Raises:
            RateLimited: too many per second or at once; says which and for how long.
        """
        key_id = grant.key_id
        rate = grant.rate_limit_rps
        if rate >= 0:
            self._take(key_id, rate)
        running = self._running.get(key_id)
        if running is None:
            running = self._first(key_id)
        if grant.max_concurrent and running.count >= grant.max_concurrent:
            self.refused += 1
            raise _refusal(
                f"This key may have {grant.max_concurrent} requests under way at once.",
                "concurrency_limited",
                1.0,
            )
        return running

    def running(self, key_id: str) -> int:
        """Requests of a key under way."""
        running = self._running.get(key_id)
        return 0 if running is None else running.count

    def _first(self, key_id: str) -> Running:
        if len(self._running) >= MAX_IDLE_KEYS:
            self._running = {name: one for name, one in self._running.items() if one.count}
        running = self._running[key_id] = Running()
        return running

    def _take(self, key_id: str, own: int) -> None:
        rate, burst = (float(own), 2.0 * own) if own else self._default
        if not rate:
            return
        now = self._clock.monotonic()
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._bucket(key_id, burst, now)
        wait = bucket.take(rate, burst, now)
        if wait:
            self.refused += 1
            raise _refusal(f"This key may send {rate:g} requests per second.", "rate_limited", wait)

    def _bucket(self, key_id: str, burst: float, now: float) -> Bucket:
        if len(self._buckets) >= MAX_IDLE_KEYS:
            since = now - self._idle_s
            self._buckets = {name: one for name, one in self._buckets.items() if one.at > since}
        bucket = self._buckets[key_id] = Bucket(burst, now)
        return bucket


class AddressLimiter:
    """Requests per second of one client address, whatever key it shows.

    The address is the connection's own; ``X-Forwarded-For`` counts only when a trusted proxy sent
    it, and then its last entry that is no trusted proxy.

    Args:
        clock: monotonic time.
        rps, burst: of one address.
        proxies: networks of trusted proxies, ``10.0.0.0/8``.

    Attributes:
        refused: how many requests, since the start.
    """

    def __init__(self, clock: Clock, rps: int, burst: int, proxies: Sequence[str] = ()) -> None:
        self._clock = clock
        self._rate = float(rps)
        self._burst = float(max(burst, 1))
        self._proxies = tuple(ip_network(one, strict=False) for one in proxies)
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self.refused = 0

    def check(self, peer: str, headers: Mapping[bytes, bytes]) -> None:
        """Count a request.

        Raises:
            RateLimited: too many per second.
        """
        address = self._client(peer, headers) if self._proxies else peer
        now = self._clock.monotonic()
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = Bucket(self._burst, now)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(address)
        wait = bucket.take(self._rate, self._burst, now)
        if wait:
            self.refused += 1
            raise _refusal(
                f"An address may send {self._rate:g} requests per second here.",
                "rate_limited",
                wait,
            )

    def _client(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        if not _within(peer, self._proxies):
            return peer
        hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
        for hop in reversed([text.strip() for text in hops]):
            if not _is_address(hop):
                break
            if not _within(hop, self._proxies):
                return hop
        return peer


def _is_address(text: str) -> bool:
    if "%" in text:  # a zone, which may be as long as a header
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _within(text: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in networks)


def _refusal(message: str, code: str, wait: float) -> RateLimited:
    seconds = max(1, int(wait + 0.999))
    return RateLimited(
        message,
        code=code,
        hint=f"Try again in {seconds} s.",
        headers=((b"retry-after", b"%d" % seconds), (b"retry-after-ms", b"%d" % (wait * 1000 + 1))),
    )
