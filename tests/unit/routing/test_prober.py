from __future__ import annotations

import asyncio

import pytest
from tests.unit.routing.world import ManualClock

from tokenhub.core.catalog import Catalog, Provider
from tokenhub.core.errors import FailureClass, ProviderError, TransportError
from tokenhub.routing.health import Health
from tokenhub.routing.prober import Prober


class World:
    def __init__(self):
        self.clock = ManualClock()
        self.health = Health(self.clock)
        self.providers = {}
        self.asked = asyncio.Event()
        self.told = asyncio.Event()
        self.answer = None
        self.prober = Prober(
            self,
            self.clock,
            lambda: Catalog(version=1, providers=self.providers, models={}),
            self.probe,
            timeout_s=0.05,
        )

    def probed(self, provider_id, error):
        self.health.probed(provider_id, error)
        self.told.set()

    def tick(self):
        self.health.tick()

    def add(self, name, **fields):
        fields.setdefault("base_url", "http://127.0.0.1:1")
        self.providers = self.providers | {name: Provider(id=name, type="openai", **fields)}

    async def probe(self, provider):
        self.asked.set()
        if callable(self.answer):
            return await self.answer()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def row(self, name):
        return self.health.rows([name])[0]


@pytest.fixture
def world():
    return World()


def names(providers):
    return [one.id for one in providers]


def test_providers_are_due_when_they_appear_and_every_30_seconds(world):
    world.add("p")
    assert names(world.prober.due()) == ["p"]
    assert world.prober.due() == []
    world.clock.advance(29)
    world.add("q")
    assert names(world.prober.due()) == ["q"]
    world.clock.advance(1)
    assert names(world.prober.due()) == ["p"]


def test_what_cannot_be_asked_is_not(world):
    world.add("off", enabled=False)
    world.add("demo", base_url="")
    assert world.prober.due() == []


def test_a_provider_that_comes_back_is_due_again(world):
    world.add("p")
    world.prober.due()
    world.providers = {}
    world.prober.due()
    world.add("p")
    assert names(world.prober.due()) == ["p"]


async def probed_once(world):
    world.add("p")
    task = asyncio.create_task(world.prober.run())
    await world.told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, ""),
        ("status 500", "status 500"),
        (ProviderError(FailureClass.SERVER, "it broke"), "it broke"),
        (TransportError(FailureClass.CONNECT, "refused", sent=False), "refused"),
    ],
)
async def test_what_a_probe_found_is_told(world, answer, error):
    world.answer = answer
    await probed_once(world)
    assert world.row("p")["last_probe_error"] == error
    assert world.row("p")["probe_errors"] == bool(error)
    assert world.row("p")["total_requests"] == 0


async def test_a_silent_provider_is_given_up(world):
    world.answer = lambda: asyncio.sleep(60)
    await probed_once(world)
    assert "within 0.05 s" in world.row("p")["last_probe_error"]


async def test_the_answer_of_a_deleted_provider_is_dropped(world):
    async def leave():
        world.providers = {}
        return "too late"

    world.answer = leave
    world.add("p")
    task = asyncio.create_task(world.prober.run())
    await world.asked.wait()
    await asyncio.gather(*world.prober._running.values())
    task.cancel()
    assert world.row("p")["last_probe_at"] is None
