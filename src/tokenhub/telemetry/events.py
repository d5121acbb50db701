"""Live events: published on the loop, kept in a ring, handed to subscribers who may be slow."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
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
        "An attempt failed and the next one was made.",
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
    "vault": ("The vault was locked.", ("new_state", "reason")),
    "config": ("Providers, models or prices changed.", ("reason",)),
    "heartbeat": ("Every 15 seconds; has no id.", ("reason",)),
}
"""Every type of event: when it is sent, and its members besides ``type`` and ``timestamp``."""

RING = 1024
BACKLOG = 256
GATHER_S = 0.02  # a reader is woken this long after the first event it has not seen
GATHER_MOST = BACKLOG // 2  # ... or with so many

Make = Callable[..., Any]
"""Makes an event's members, a dict or a Struct, from its facts."""

Told = tuple[str, Make, tuple[Any, ...]]
"""An event: its kind, make and facts."""

_encode = msgspec.json.Encoder().encode
# What stands between an event's number and its time.
_HEADS = {
    kind: b'\nevent: %b\ndata: {"type":"%b","timestamp":"' % (kind.encode(), kind.encode())
    for kind in TYPES
}
_UNNUMBERED = _HEADS["heartbeat"].removeprefix(b"\n")


@lru_cache(maxsize=2)
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().removesuffix("+00:00")


@lru_cache(maxsize=2)
def _stamp(at_ms: int) -> bytes:
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03d}Z".encode()


class Event(msgspec.Struct):
    """One event; its JSON is made once, for the first subscriber that wants it."""

    number: int
    type: str
    at_ms: int
    make: Make
    facts: tuple[Any, ...]
    frame: bytes = b""

    def framed(self, prefix: bytes) -> bytes:
        """The event as server-sent event, with id, name and one line of JSON."""
        body = _encode(self.make(*self.facts))
        # A heartbeat is not kept, so it has no id to resume from.
        numbered = self.number != 0
        self.frame = b"".join((
            prefix if numbered else b"",
            b"%d" % self.number if numbered else b"",
            _HEADS[self.type] if numbered else _UNNUMBERED,
            _stamp(self.at_ms),
            b'"' if body == b"{}" else b'",',
            body[1:],
            b"\n\n",
        ))  # fmt: skip
        self.facts = ()
        return self.frame


class Subscription:
    """One reader's backlog. What does not fit is dropped, oldest first, and told by a notice."""

    def __init__(self, bus: EventBus, types: frozenset[str]) -> None:
        self._bus = bus
        self._types = types and types | {"heartbeat"}
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._wake: asyncio.Future[None] | None = None
        self.closed = False

    def offer(self, events: Iterable[Event]) -> None:
        """Called by the bus, oldest first."""
        if self._types:
            events = [event for event in events if event.type in self._types]
        waiting = self._waiting
        waiting.extend(events)
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
        prefix = self._bus.prefix
        frames = [event.frame or event.framed(prefix) for event in self._waiting]
        self._waiting.clear()
        if self._dropped:
            notice = b'event: dropped\ndata: {"type":"dropped","count":%d}\n\n' % self._dropped
            frames.insert(0, notice)
            self._dropped = 0
        return b"".join(frames)

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
        self.prefix = f"id: {self.epoch}-".encode()
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=RING)
        self._number = 0
        self._subscribers: set[Subscription] = set()
        self._fresh: list[Event] = []  # not handed out yet; empty while nobody listens
        self._gathering: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self.published: dict[str, int] = dict.fromkeys(TYPES, 0)

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._subscribers)

    def publish(self, kind: str, fields: dict[str, Any]) -> None:
        """Tell everybody. ``kind`` is one of TYPES; ``fields`` are JSON-able and hold no secret."""
        if kind != "heartbeat":
            self.tell((kind, dict, (fields,)))
            return
        self.published[kind] += 1
        if self._subscribers:
            self._fresh.append(Event(0, kind, self._clock.now_ms(), dict, (fields,)))
            self._gather()

    def tell(self, *told: Told) -> None:
        """Tell everybody what happened at one moment.

        Its members, which hold no secret, are made of the facts when somebody reads it.
        """
        now = self._clock.now_ms()
        published, number = self.published, self._number
        for kind, make, facts in told:
            published[kind] += 1
            number += 1
            event = Event(number, kind, now, make, facts)
            self._ring.append(event)
            if self._subscribers:
                self._fresh.append(event)
        self._number = number
        if self._fresh:
            self._gather()

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
            for subscriber in self._subscribers:
                subscriber.offer(fresh)

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
        oldest = self._ring[0].number if self._ring else self._number + 1
        if not known:
            subscription.missed(1)
        elif after + 1 < oldest:
            subscription.missed(oldest - after - 1)
        subscription.offer([event for event in self._ring if event.number > after])

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
