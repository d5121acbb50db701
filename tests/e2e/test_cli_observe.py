"""Observing by the command line, against a real server with real traffic."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from tests.e2e.server import BIN, Hub

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server that has answered a few requests."""
    hub = Hub(tmp_path_factory.mktemp("home")).start()
    for body in ({"model": "demo"}, {"model": "auto"}, {"model": "demo", "stream": True}):
        assert hub.chat(hub.demo_key, HELLO | body).status == 200
    assert hub.chat(hub.demo_key, HELLO | {"model": "nope"}).status == 404
    hub.ok("PUT", "/routing-config", {"default_mode": "normal"})
    yield hub
    hub.stop()


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("logs -o wide", {"TIME", "MODEL", "PROVIDER", "LATENCY", "COST", "KEY", "REQUEST ID"}),
        ("apikey list", {"ID", "NAME", "PREFIX", "SCOPES", "CREATED", "SPENT", "RESERVED"}),
        ("audit -o wide", {"TIME", "ACTION", "RESOURCE", "REQUEST ID", "ACTOR", "ADDRESS"}),
        ("health -o wide", {"PROVIDER", "STATE", "AVG LATENCY", "LAST SUCCESS", "REQUESTS"}),
        ("model list -o wide", {"MODEL", "PROVIDER", "WEIGHT", "IN $/1K", "SOURCE"}),
        ("spend --by model", {"MODEL", "REQUESTS", "IN", "OUT", "SPENT"}),
        ("budget show", {"KEY", "NAME", "PERIOD", "SPENT", "RESERVED"}),
    ],
)
def test_no_column_is_blank_because_a_name_differs(busy, line, columns):
    first, *rows = busy.ctl(*line.split()).stdout.splitlines()
    assert rows
    starts = {name: first.index(name) for name in columns}
    for name, start in starts.items():
        values = {row[start:].split("  ")[0].strip() for row in rows}
        assert values - {"-", "", "unknown"}, (name, values)


def test_one_request_is_found_everywhere_by_its_id(busy):
    request_id = busy.ctl("logs", "--status", "200", "--limit", "1", "-o", "name").stdout.strip()
    shown = json.loads(busy.ctl("logs", "show", request_id, "-o", "json").stdout)
    assert (shown["request_id"], shown["model_id"]) == (request_id, "demo")
    explained = json.loads(busy.ctl("explain", request_id).stdout)
    assert explained["decision"]["model_id"] == "demo"
    assert json.loads(busy.ctl("replay", request_id).stdout)["same"] is True
    assert busy.ctl("explain", "nope").returncode == 3


def test_checks_and_the_doctor_are_content(busy):
    for line in ("audit verify", "budget verify", "doctor"):
        ran = busy.ctl(*line.split())
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def ctrl_c():
    """Programs started here take Ctrl-C, even when the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_events_survive_a_restart_of_the_server_and_say_so(tmp_path, ctrl_c):
    hub = Hub(tmp_path).start()
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "TOKENHUB_URL": hub.url}
    program = subprocess.Popen(
        [BIN / "tokenhubctl", "events", "-o", "json", "--type", "route_success"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stderr is not None
    try:
        assert "Streaming events" in program.stderr.readline()
        assert json.loads(chat_until_seen(hub, program))["type"] == "route_success"
        hub.stop()
        assert "reconnecting" in program.stderr.readline()
        hub.start()
        assert json.loads(chat_until_seen(hub, program))["model_id"] == "demo"
        program.send_signal(signal.SIGINT)
        assert program.wait(10) == 130
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
        program.stderr.close()
        hub.stop()


def chat_until_seen(hub, program) -> str:
    """Chat until the stream, which may still be connecting, shows a request; its line."""
    import select

    for _ in range(100):
        assert hub.chat(hub.demo_key, HELLO | {"model": "demo"}).status == 200
        if select.select([program.stdout], [], [], 0.3)[0]:
            return program.stdout.readline()
    raise AssertionError("no event arrived")
