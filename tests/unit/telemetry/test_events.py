from __future__ import annotations

import asyncio
import json

import pytest

from tokenhub.telemetry import events as module
from tokenhub.telemetry.events import BACKLOG, GATHER_MOST, RING, EventBus


@pytest.fixture
def bus(clock):
    return EventBus(clock)


def frames(data):
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


async def test_an_event_reaches_every_subscriber_with_id_type_and_time(bus):
    one, two = bus.subscribe(), bus.subscribe()
    bus.publish("config", {"reason": "x"})
    [(event_id, kind, data)] = frames(await one.take())
    assert frames(await two.take()) == [(event_id, kind, data)]
    assert event_id == f"{bus.epoch}-1"
    assert data == {"type": "config", "timestamp": "2023-11-14T22:13:20.000Z", "reason": "x"}


async def test_hostile_text_stays_inside_its_line(bus):
    reader = bus.subscribe()
    bus.publish("config", {"reason": "a\r\n\r\nevent: forged\ndata: {}\n\n\x00\u2028"})
    [(_, kind, data)] = frames(await reader.take())
    assert kind == "config"
    assert data["reason"].startswith("a\r\n\r\nevent: forged")


async def test_resume_gives_each_event_exactly_once(bus):
    for number in range(10):
        bus.publish("config", {"n": number})
    reader = bus.subscribe(f"{bus.epoch}-4")
    bus.publish("config", {"n": 10})
    assert [data["n"] for _, _, data in frames(await reader.take())] == [4, 5, 6, 7, 8, 9, 10]


async def test_what_the_ring_no_longer_holds_is_told(bus):
    for number in range(RING + 5):
        bus.publish("config", {"n": number})
    reader = bus.subscribe(f"{bus.epoch}-2")
    [first, *_] = frames(await reader.take())
    assert first[1] == "dropped"
    assert first[2]["count"] >= 3


async def test_the_ring_does_not_grow_with_what_was_told(bus):
    for number in range(5 * RING):
        bus.publish("config", {"n": number})
        assert len(bus._ring) <= RING + RING // 8
    for _ in range(5 * RING):
        bus.tell(("config", "vault"), lambda: ({"n": 1}, {"n": 2}), ())
    assert len(bus._ring) <= RING // 2 + RING // 8


async def test_an_event_without_members_is_still_json(bus):
    reader = bus.subscribe()
    for fields in ({}, {"reason": "x"}, {}):
        bus.publish("config", fields)
    assert [len(data) for _, _, data in frames(await reader.take())] == [2, 3, 2]


async def test_an_id_of_another_life_replays_the_ring_and_says_so(bus):
    bus.publish("config", {"n": 1})
    [notice, event] = frames(await bus.subscribe("00000000-7").take())
    assert (notice[1], event[2]["n"]) == ("dropped", 1)


async def test_a_slow_reader_loses_the_oldest_and_is_told(bus):
    reader = bus.subscribe()
    for number in range(BACKLOG + 7):
        bus.publish("config", {"n": number})
    [notice, *events] = frames(await reader.take())
    assert notice[2] == {"type": "dropped", "count": 7}
    assert [data["n"] for _, _, data in events] == list(range(7, BACKLOG + 7))


async def test_types_narrow_but_heartbeats_come(bus):
    reader = bus.subscribe(types=["vault"])
    bus.publish("config", {})
    bus.publish("vault", {"new_state": "locked"})
    bus.publish("heartbeat", {"reason": "x"})
    assert [kind for _, kind, _ in frames(await reader.take())] == ["vault", "heartbeat"]


async def test_heartbeats_have_no_id_and_take_no_place_in_the_ring(bus):
    bus.publish("config", {"n": 1})
    for _ in range(RING + 1):
        bus.publish("heartbeat", {"reason": "x"})
    got = frames(await bus.subscribe("00000000-0").take())
    assert [kind for _, kind, _ in got] == ["dropped", "config"]


async def test_a_waiting_reader_wakes_and_ends_at_shutdown(bus):
    reader = bus.subscribe()
    waiting = asyncio.ensure_future(reader.take())
    await asyncio.sleep(0)
    bus.publish("config", {})
    assert await waiting
    waiting = asyncio.ensure_future(reader.take())
    await asyncio.sleep(0)
    bus.close()
    assert await waiting is None
    assert bus.subscribers == 0


async def test_readers_are_woken_together_and_late_ones_get_nothing_old(bus, monkeypatch):
    monkeypatch.setattr(module, "GATHER_S", 60.0)
    early = bus.subscribe()
    waiting = asyncio.ensure_future(early.take())
    await asyncio.sleep(0)
    bus.publish("config", {"n": 0})
    await asyncio.sleep(0)
    assert not waiting.done()
    late = bus.subscribe()
    for number in range(1, GATHER_MOST):
        bus.publish("config", {"n": number})
    bus.close()
    assert len(frames(await waiting)) == GATHER_MOST
    assert [data["n"] for _, _, data in frames(await late.take())] == list(range(1, GATHER_MOST))


async def test_so_many_events_wake_without_waiting_for_the_clock(bus, monkeypatch):
    monkeypatch.setattr(module, "GATHER_S", 60.0)
    waiting = asyncio.ensure_future(bus.subscribe().take())
    await asyncio.sleep(0)
    for number in range(GATHER_MOST):
        bus.publish("config", {"n": number})
    assert len(frames(await waiting)) == GATHER_MOST


async def test_what_is_told_is_made_once_for_all_who_listen_and_never_for_nobody(bus):
    made = []

    def make(*facts):
        made.append(facts)
        return {"reason": "x"}, {"reason": "y"}

    def tell():
        bus.tell(("config", "vault"), make, (1, "a"))

    tell()
    bus.hand_out()
    narrow = bus.subscribe(types=["budget"])
    tell()
    bus.hand_out()
    assert made == []
    one, two, some = bus.subscribe(), bus.subscribe(), bus.subscribe(types=["vault"])
    tell()
    assert await one.take() == await two.take()
    assert [data["reason"] for _, _, data in frames(await some.take())] == ["y"]
    assert made == [(1, "a")]
    bus.publish("budget", {"reason": "z"})
    assert [event for event, _, _ in frames(await narrow.take())] == [f"{bus.epoch}-7"]


async def test_resume_between_two_events_of_one_moment_and_past_those_that_are_gone(bus):
    for _ in range(RING):
        bus.tell(("config", "vault"), lambda: ({"n": 1}, {"n": 2}), ())
    last = 2 * RING
    got = frames(await bus.subscribe(f"{bus.epoch}-{last - 1}").take())
    assert [(event, kind) for event, kind, _ in got] == [(f"{bus.epoch}-{last}", "vault")]
    assert await_free(bus.subscribe(f"{bus.epoch}-{last - RING}")) == RING - BACKLOG
    assert await_free(bus.subscribe(f"{bus.epoch}-{last - RING - 1}")) == RING - BACKLOG + 1


def await_free(reader):
    """How many events a reader is told to have missed."""
    try:
        reader.take().send(None)
    except StopIteration as taken:
        return frames(taken.value)[0][2]["count"]
    raise AssertionError
