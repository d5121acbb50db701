"""What the server writes to stdout: the six lines for people, JSON for programs, no secret."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.e2e.server import BIN, Hub
from tests.unit.tokenhubctl.terminal import Terminal

HELLO = {"messages": [{"role": "user", "content": "a prompt nobody may log"}]}
SIX = ["TokenHub", "data", "admin token", "vault", "providers", "try it"]


def split(hub):
    """The plain lines, and the JSON ones decoded."""
    lines = hub.log.read_text().splitlines()
    plain = [line for line in lines if not line.startswith("{")]
    return plain, [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize(("level", "requests"), [("info", 0), ("debug", 2)])
def test_requests_have_a_line_at_debug_only(tmp_path, level, requests):
    hub = Hub(tmp_path, TOKENHUB_LOG_LEVEL=level).start()
    good = hub.chat(hub.demo_key, HELLO | {"model": "demo"})
    hub.chat(hub.demo_key, HELLO | {"model": "nope"})
    hub.stop()
    plain, lines = split(hub)
    assert [line.split("  ")[0].rsplit(" ", 1)[0] for line in plain[:1]] == ["TokenHub"]
    assert [start for start, line in zip(SIX, plain, strict=True) if line.startswith(start)] == SIX
    told = [line for line in lines if line["msg"] == "request"]
    assert len(told) == requests
    if told:
        first, second = told
        assert first["request_id"] == good.headers["x-request-id"]
        assert (first["model"], first["provider"], first["status"]) == ("demo", "demo", 200)
        assert (second["status"], second["error_class"]) == (404, "model_not_found")
    said = hub.log.read_text()
    assert "nobody may log" not in said
    assert hub.demo_key not in said


def test_a_change_of_state_has_a_line(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_HEALTH_PROBE_DISABLED="true").start()
    hub.ctl("vault", "unlock", "long-enough")
    hub.ctl("vault", "lock")
    hub.ok("POST", "/providers", {"id": "up", "type": "vllm", "base_url": "http://127.0.0.1:9"})
    hub.ok("POST", "/models", {"id": "m", "provider_id": "up"})
    key = hub.ok("POST", "/apikeys", {"name": "k"})["key"]
    for _ in range(6):
        hub.chat(key, HELLO | {"model": "m"})
    refused = {"Authorization": "Bearer sk-not-the-token-123456"}
    assert hub.request("GET", "/admin/v1/info", headers=refused).status == 401
    hub.stop()
    _, lines = split(hub)
    told = {line["msg"]: line for line in lines}
    assert {"vault unlocked", "vault locked", "provider health", "admin login refused"} <= set(told)
    health = [line for line in lines if line["msg"] == "provider health"]
    assert (health[-1]["provider"], health[-1]["to"], health[-1]["level"]) == ("up", "down", "warn")
    assert told["admin login refused"]["address"] == "127.0.0.1"
    assert "sk-not-the-token" not in hub.log.read_text()


def test_on_a_terminal_the_log_is_for_a_person(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_NONSENSE="1")
    screen = Terminal([str(BIN / "tokenhub")], hub.env | {"TERM": "xterm"})
    said = screen.until("try it")
    assert "TOKENHUB_NONSENSE is not a setting of this server" in said
    assert "{" not in said.partition("TokenHub ")[0]
    screen.type("\x03")
    assert screen.end() == 0
    assert "vault locked" not in screen.seen, "it was never open"


def test_a_log_that_nobody_takes_holds_up_nobody(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_LOG_LEVEL="debug")
    hub.log.touch()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as pipe:
        os.set_blocking(writing, False)
        while pipe.raw.write(b"x" * 4096):
            pass
        os.set_blocking(writing, True)
        hub.process = subprocess.Popen([BIN / "tokenhub"], env=hub.env, stdout=pipe)
        hub.wait_alive()
        for _ in range(5):
            assert hub.chat(hub.demo_key, HELLO | {"model": "demo"}, timeout=10).status == 200
        assert hub.stop() == 0
