"""Live events: published on the loop, kept in a ring, handed to subscribers who may be slow."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenhub.core.clock import Clock

_WHO = ("request_id", "api_key_name", "mode", "model_id", "provider_id")
TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "route_success": (
        "A request was answered.",
        (
            *_WHO,
            "latency_ms",
            "ttft_ms",
            "reason",
            "cost_usd",
            "input_tokens",
            "output_tokens",
            "total_tokens",
        ),
    ),
    "route_error": (
        "A request ended in an error, or its client left.",
        (*_WHO, "latency_ms", "error_class", "error_msg", "status"),
    ),
    "decision": (
        "A request was routed.",
        (*_WHO, "reason", "policy", "candidates", "propensity"),
    ),
    "escalation": (
        "An attempt failed or was slow, and the next one was made.",
        (*_WHO, "error_class", "reason"),
    ),
    "budget": (
        "A request was refused because its key's budget does not cover it.",
        ("request_id", "api_key_name", "mode", "reason"),
    ),
    "health_change": (
        "A provider's state changed.",
        ("provider_id", "old_state", "new_state", "reason"),
    ),
    "vault": (
        "The vault was unlocked (`created`, `admin`), locked (`admin`, `idle`) or `rotated`.",
        ("new_state", "reason"),
    ),
    "config": ("Providers, models or prices changed.", ("reason",)),
    "heartbeat": ("Every 15 seconds; has no id.", ("reason",)),
}
"""Every type of event: when it is sent, and its members besides ``type`` and ``timestamp``."""

RING = 1024
BACKLOG = 256
GATHER_S = 0.02  # a reader is woken this long after the first event it has not seen
GATHER_MOST = BACKLOG // 4  # ... or with so many requests, which are two events each, four at most

Make = Callable[..., Sequence[Any]]
"""Makes the members of some events, each a dict or a Struct, from their facts."""

Moment = tuple[int, tuple[str, ...], int, Make, tuple[Any, ...]]
"""Events told together: the number of the first, their types, Unix ms, make and facts."""

_encode_lines = msgspec.json.Encoder().encode_lines
# What stands between an event's number and its time.
_HEADS = {kind: f'\nevent: {kind}\ndata: {{"type":"{kind}","timestamp":"' for kind in TYPES}
_UNNUMBERED = _HEADS["heartbeat"].removeprefix("\n")


@lru_cache(maxsize=2)
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().removesuffix("+00:00")


@lru_cache(maxsize=2)
def _stamp(at_ms: int) -> str:
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03d}Z"


def _framed(moments: Iterable[Moment], prefix: str) -> tuple[list[str], list[str]]:
    """Types and texts of events: server-sent events with id, name and one line of JSON."""
    told: list[Any] = []
    for _, _, _, make, facts in moments:
        told += make(*facts)
    # All in one call, and text rather than bytes: both put together faster. Each without its "{".
    bodies = iter(_encode_lines(told).decode()[1:-1].split("\n{"))
    types: list[str] = []
    frames = []
    for first, kinds, at_ms, _, _ in moments:
        number, stamp = first, _stamp(at_ms)
        types += kinds
        for kind in kinds:
            body = next(bodies)
            if number and body != "}":
                frames.append(f'{prefix}{number}{_HEADS[kind]}{stamp}",{body}\n\n')
            else:
                # A heartbeat is not kept, so it has no id to resume from.
                head = f"{prefix}{number}{_HEADS[kind]}" if number else _UNNUMBERED
                comma = "," if body != "}" else ""
                frames.append(f'{head}{stamp}"{comma}{body}\n\n')
            number += 1
    return types, frames


def _as_told(fields: dict[str, Any]) -> tuple[dict[str, Any]]:
    return (fields,)


class Subscription:
    """One reader's backlog. What does not fit is dropped, oldest first, and told by a notice."""

    def __init__(self, bus: EventBus, types: frozenset[str]) -> None:
        self._bus = bus
        self.types = types and types | {"heartbeat"}
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._wake: asyncio.Future[None] | None = None
        self.closed = False

    def offer(self, types: Iterable[str], frames: Iterable[str]) -> None:
        """Called by the bus with types and texts of events, oldest first."""
        waiting, wanted = self._waiting, self.types
        if wanted:
            pairs = zip(types, frames, strict=True)
            frames = [frame for kind, frame in pairs if kind in wanted]
        waiting.extend(frames)
        while len(waiting) > BACKLOG:
            waiting.popleft()
            self._dropped += 1
        if waiting:
            self._stir()

    def missed(self, count: int) -> None:
        """Note events that were gone before this reader came back."""
        self._dropped += count

    async def take(self) -> bytes | None:
        """All waiting events as frames, waiting for the first; None when the bus has closed."""
        self._bus.hand_out()
        while not self._waiting and not self._dropped:
            if self.closed:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        frames = "".join(self._waiting).encode()
        self._waiting.clear()
        if self._dropped:
            notice = b'event: dropped\ndata: {"type":"dropped","count":%d}\n\n' % self._dropped
            frames = notice + frames
            self._dropped = 0
        return frames

    def close(self) -> None:
        """No more events for this reader."""
        self.closed = True
        self._bus.forget(self)
        self._stir()

    def _stir(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class EventBus:
    """Publishes events to whoever listens; costs next to nothing while nobody does."""

    def __init__(self, clock: Clock) -> None:
        self.epoch = os.urandom(4).hex()
        self._prefix = f"id: {self.epoch}-"
        self._clock = clock
        self._ring: deque[Moment] = deque()
        self._ring_room = RING  # so many moments before the oldest are looked at
        self._last = 0  # number given
        self._subscribers: set[Subscription] = set()
        self._fresh: list[Moment] = []  # not handed out yet; empty while nobody listens
        self._gathering: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self.beats = 0

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._subscribers)

    def publish(self, kind: str, fields: dict[str, Any]) -> None:
        """Tell everybody. ``kind`` is one of TYPES; ``fields`` are JSON-able and hold no secret."""
        if kind != "heartbeat":
            self.tell((kind,), _as_told, (fields,))
            return
        self.beats += 1
        if self._subscribers:
            self._fresh.append((0, (kind,), self._clock.now_ms(), _as_told, (fields,)))
            self._gather()

    def tell(self, kinds: tuple[str, ...], make: Make, facts: tuple[Any, ...]) -> None:
        """Tell everybody what happened at one moment.

        Args:
            kinds: the types of its events, at most four.
            make: makes their members, which hold no secret, when somebody listens.
            facts: what it makes them of.
        """
        moment = (self._last + 1, kinds, self._clock.now_ms(), make, facts)
        self._last += len(kinds)
        ring = self._ring
        ring.append(moment)
        if len(ring) >= self._ring_room:
            self._trim()
        if self._subscribers:
            fresh = self._fresh
            fresh.append(moment)
            if self._gathering is None or len(fresh) >= GATHER_MOST:
                self._gather()

    def _trim(self) -> None:
        """Let go of what the ring need not hold, and make room for some more."""
        ring, last = self._ring, self._last
        while ring and last - ring[0][0] - len(ring[0][1]) >= RING - 1:
            ring.popleft()
        self._ring_room = len(ring) + RING // 8

    def _gather(self) -> None:
        if len(self._fresh) >= GATHER_MOST:
            self.hand_out()
        elif self._gathering is None:
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_later(GATHER_S, self.hand_out)

    def hand_out(self) -> None:
        """Give every reader what was published since the last time, and wake those who wait."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            types, frames = _framed(self._wanted(fresh), self._prefix)
            for subscriber in self._subscribers:
                subscriber.offer(types, frames)

    def _wanted(self, moments: list[Moment]) -> list[Moment]:
        """Those of which somebody wants a part."""
        if not all(subscriber.types for subscriber in self._subscribers):
            return moments
        types = frozenset().union(*[subscriber.types for subscriber in self._subscribers])
        return [moment for moment in moments if not types.isdisjoint(moment[1])]

    def subscribe(self, last_id: str = "", types: Iterable[str] = ()) -> Subscription:
        """Listen from now on, or from just after ``last_id`` as far as the ring reaches.

        Events that the ring no longer holds, or that another life of the server published, are
        announced by a ``dropped`` notice (count 0 becomes 1 when the number is not known).
        """
        self.hand_out()
        subscription = Subscription(self, frozenset(types))
        if last_id:
            self._replay(subscription, last_id)
        self._subscribers.add(subscription)
        return subscription

    def _replay(self, subscription: Subscription, last_id: str) -> None:
        epoch, _, number = last_id.rpartition("-")
        known = epoch == self.epoch and number.isascii() and number.isdigit()
        after = int(number) if known else 0
        self._trim()
        oldest = self._ring[0][0] if self._ring else self._last + 1
        if not known:
            subscription.missed(1)
        elif after + 1 < oldest:
            subscription.missed(oldest - after - 1)
        held = [moment for moment in self._ring if moment[0] + len(moment[1]) > after + 1]
        if held:
            types, frames = _framed(held, self._prefix)
            seen = max(after + 1 - held[0][0], 0)
            subscription.offer(types[seen:], frames[seen:])

    def forget(self, subscription: Subscription) -> None:
        """Called by a subscription that closes."""
        self._subscribers.discard(subscription)

    def close(self) -> None:
        """The server shuts down: every reader's stream ends."""
        if self._beating is not None:
            self._beating.cancel()
        self.hand_out()
        for subscription in list(self._subscribers):
            subscription.close()

    def beat(self, every: float, reason: Callable[[], str]) -> None:
        """Publish a heartbeat every ``every`` seconds until the bus is closed."""
        loop = asyncio.get_running_loop()

        def tick() -> None:
            self.publish("heartbeat", {"reason": reason()})
            self._beating = loop.call_later(every, tick)

        self._beating = loop.call_later(every, tick)
