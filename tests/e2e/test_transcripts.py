from __future__ import annotations

import pytest
from tests.e2e.server import Hub

ASK = {"model": "demo", "messages": [{"role": "user", "content": "a purple elephant"}]}


@pytest.fixture
def keeping(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_LOG_CONTENT="true").start()
    yield hub
    hub.stop()


def content(hub, reply):
    return hub.ok("GET", f"/logs/{reply.headers['x-request-id']}").get("content")


def test_both_sides_are_kept_word_for_word_where_it_is_on(keeping):
    whole = keeping.chat(keeping.demo_key, ASK)
    kept = content(keeping, whole)
    assert "a purple elephant" in kept["request"]
    assert kept["answer"] == whole.body.decode()
    streamed = keeping.chat(keeping.demo_key, ASK | {"stream": True})
    kept = content(keeping, streamed)
    assert kept["answer"] == streamed.body.decode()
    assert kept["cut"] is False
    shown = keeping.ctl("logs", "show", streamed.headers["x-request-id"])
    assert "a purple elephant" in shown.stdout


def test_a_long_text_is_cut_and_marked(keeping):
    long = {"role": "user", "content": "x" * 300_000}
    reply = keeping.chat(keeping.demo_key, ASK | {"model": "demo", "messages": [long]})
    kept = content(keeping, reply)
    assert kept["cut"] is True
    assert len(kept["request"]) <= 256 * 1024


def test_nothing_is_kept_where_it_is_off(hub):
    reply = hub.chat(hub.demo_key, ASK)
    assert content(hub, reply) is None
    hub.stop()
    for file in hub.data.iterdir():
        assert b"purple elephant" not in file.read_bytes()
