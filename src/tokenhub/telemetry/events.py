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

Fields = dict[str, Any] | Callable[[], dict[str, Any]]

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=2)
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().removesuffix("+00:00")


class Event:
    """One event; its fields and JSON are made once, for the first subscriber that wants them."""

    __slots__ = ("_fields", "_frame", "at_ms", "number", "type")

    def __init__(self, number: int, kind: str, at_ms: int, fields: Fields) -> None:
        self.number = number
        self.type = kind
        self.at_ms = at_ms
        self._fields = fields
        self._frame = b""

    def frame(self, epoch: str) -> bytes:
        """The event as server-sent event, with id, name and one line of JSON."""
        if not self._frame:
            fields = self._fields if isinstance(self._fields, dict) else self._fields()
            at = f"{_second(self.at_ms // 1000)}.{self.at_ms % 1000:03d}Z"
            body = _encode({"type": self.type, "timestamp": at, **fields})
            # A heartbeat is not kept, so it has no id to resume from.
            name = "" if self.type == "heartbeat" else f"id: {epoch}-{self.number}\n"
            self._frame = b"%bevent: %b\ndata: %b\n\n" % (name.encode(), self.type.encode(), body)
        return self._frame


class Subscription:
    """One reader's backlog. What does not fit is dropped, oldest first, and told by a notice."""

    def __init__(self, bus: EventBus, types: frozenset[str]) -> None:
        self._bus = bus
        self._types = types
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False

    def offer(self, event: Event) -> None:
        """Called by the bus."""
        if self._types and event.type not in self._types and event.type != "heartbeat":
            return
        if len(self._waiting) >= BACKLOG:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(event)
        if self._wake is None or self._wake.done():
            return
        if len(self._waiting) >= GATHER_MOST:
            self._stir()
        elif self._timer is None:
            self._timer = self._wake.get_loop().call_later(GATHER_S, self._stir)

    def missed(self, count: int) -> None:
        """Note events that were gone before this reader came back."""
        self._dropped += count

    async def take(self) -> bytes | None:
        """All waiting events as frames, waiting for the first; None when the bus has closed."""
        while not self._waiting and not self._dropped:
            if self.closed:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        frames = [event.frame(self._bus.epoch) for event in self._waiting]
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class EventBus:
    """Publishes events to whoever listens; costs next to nothing while nobody does."""

    def __init__(self, clock: Clock) -> None:
        self.epoch = os.urandom(4).hex()
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=RING)
        self._number = 0
        self._subscribers: set[Subscription] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.published: dict[str, int] = dict.fromkeys(TYPES, 0)

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._subscribers)

    def publish(self, kind: str, fields: Fields) -> None:
        """Tell everybody. ``kind`` is one of TYPES; ``fields`` are JSON-able and hold no secret.

        Fields that are not cheap to make are given as the function that makes them.
        """
        self.published[kind] += 1
        if kind == "heartbeat":
            event = Event(0, kind, self._clock.now_ms(), fields)
        else:
            self._number += 1
            event = Event(self._number, kind, self._clock.now_ms(), fields)
            self._ring.append(event)
        for subscriber in self._subscribers:
            subscriber.offer(event)

    def subscribe(self, last_id: str = "", types: Iterable[str] = ()) -> Subscription:
        """Listen from now on, or from just after ``last_id`` as far as the ring reaches.

        Events that the ring no longer holds, or that another life of the server published, are
        announced by a ``dropped`` notice (count 0 becomes 1 when the number is not known).
        """
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
        for event in self._ring:
            if event.number > after:
                subscription.offer(event)

    def forget(self, subscription: Subscription) -> None:
        """Called by a subscription that closes."""
        self._subscribers.discard(subscription)

    def close(self) -> None:
        """The server shuts down: every reader's stream ends."""
        if self._timer is not None:
            self._timer.cancel()
        for subscription in list(self._subscribers):
            subscription.close()

    def beat(self, every: float, reason: Callable[[], str]) -> None:
        """Publish a heartbeat every ``every`` seconds until the bus is closed."""
        loop = asyncio.get_running_loop()

        def tick() -> None:
            self.publish("heartbeat", {"reason": reason()})
            self._timer = loop.call_later(every, tick)

        self._timer = loop.call_later(every, tick)
