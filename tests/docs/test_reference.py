"""The reference pages are what the code says, and what the running server does."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from tests.e2e.server import Hub
from tools.make_docs import PAGES, PLACE, url_table

from tokenhub.telemetry.events import TYPES

COMMON = {"type", "timestamp"}
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_not_stale(name):
    assert (PLACE / name).read_text() == PAGES[name](), f"{name} is stale: run `make docs`"


@pytest.mark.parametrize("route", url_table(), ids=lambda route: f"{route.method} {route.path}")
def test_every_route_says_what_it_does(route):
    assert re.fullmatch(
        r".{6,}\.", (route.handler.__doc__ or "").split("\n\n")[0].strip(), re.DOTALL
    )


def test_events_have_exactly_the_members_that_are_written_down(hub):
    """Every type that a test can cause in a second, as the stream shows it."""
    headers = {"Authorization": f"Bearer {hub.admin_token}"}
    hub.ctl("vault", "unlock", "long-enough")
    broken = {"id": "gone", "type": "openai", "base_url": "http://127.0.0.1:9"}
    hub.ok("POST", "/providers", broken)
    for name, weight in (("m1", 9), ("m2", 1)):
        model = {"id": name, "provider_id": "gone", "weight": weight, "input_per_1k": 1}
        hub.ok("POST", "/models", model | {"output_per_1k": 1})
    poor = hub.ok("POST", "/apikeys", {"name": "poor", "monthly_budget_usd": 0.000001})["key"]
    rich = hub.ok("POST", "/apikeys", {"name": "rich"})["key"]
    hub.ok("POST", "/providers", {"id": "here", "type": "demo"})
    hub.ok("POST", "/models", {"id": "demo", "provider_id": "here"})
    assert hub.chat(poor, HELLO | {"model": "m1"}).status == 429
    for _ in range(3):
        assert hub.chat(rich, HELLO | {"model": "m1"}).status >= 500
    assert hub.chat(rich, HELLO | {"model": "demo"}).status == 200
    assert hub.chat(rich, HELLO | {"model": "auto"}).status in {200, 502, 503}
    hub.ok("POST", "/vault/lock", {})
    seen = asyncio.run(replayed(hub, headers))
    for kind, fields in seen:
        documented = set(TYPES[kind][1]) | COMMON
        # `mode` is there when something was decided.
        assert documented - fields <= {"mode"}, (kind, documented - fields)
        assert fields <= documented, (kind, fields - documented)
    expected = set(TYPES) - {"heartbeat", "escalation"}
    assert expected <= {kind for kind, _ in seen}, {kind for kind, _ in seen}


async def replayed(hub: Hub, headers):
    """Type and members of all events the server still holds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    ask = ["GET /admin/v1/events?last_event_id=0-0 HTTP/1.1", "Host: x", *lines, "", ""]
    writer.write("\r\n".join(ask).encode())
    text = b""
    try:
        async with asyncio.timeout(2):
            while True:
                text += await reader.read(65536)
    except TimeoutError:
        pass
    writer.close()
    found = re.findall(rb"\ndata: (\{.*\})\n", text)
    events = [json.loads(one) for one in found]
    return [(one["type"], set(one)) for one in events if one.get("type") in TYPES]


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path, TOKENHUB_HEALTH_PROBE_DISABLED="true").start()
    yield server
    server.stop()
