"""A second provider asked while the first is slow: first content wins, every attempt is booked."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import time

import pytest
from tests.e2e import peers
from tests.e2e.fleet import HELLO, Fleet, text_of, words
from tests.e2e.peers import refuses, says
from tests.e2e.server import Hub


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    hub = Hub(
        tmp_path_factory.mktemp("hub"),
        TOKENHUB_HEDGE_AFTER_MS="150",
        TOKENHUB_MAX_HEDGED_PROVIDERS="2",
        TOKENHUB_HEALTH_PROBE_DISABLED="true",
    ).start()
    yield hub
    books = hub.ok("POST", "/budget/verify")
    log = hub.log.read_text()
    assert hub.stop() == 0
    assert "Traceback" not in log
    assert books["ok"] is True, books


@pytest.fixture
def fleet(server):
    built = Fleet(server)
    built.key = built.new_key(allow_fallback=True, monthly_budget_usd=5)
    yield built
    built.clear()


def attempts(fleet, reply):
    """How each attempt ended, and what it cost, by provider."""
    told = fleet.hub.ok("GET", f"/decisions/{reply.headers['x-request-id']}")
    return {one["provider_id"]: (one["error"], one["cost_usd"]) for one in told["attempts"]}


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_content_wins_and_the_loser_is_cancelled(fleet, stream):
    gone = queue.SimpleQueue()

    def slow(line):
        if line.stream:
            line.head()  # headers are no content
        line.until_closed()
        gone.put(time.monotonic())

    fleet.add("a", slow)
    fleet.add("b", says("Here I am."))
    began = time.monotonic()
    reply = fleet.chat("a", stream=stream)
    took = time.monotonic() - began
    assert (words(reply.body)[0] if stream else text_of(reply)) == "Here I am."
    assert 0.15 <= took < 1
    assert reply.headers["x-tokenhub-model"] == fleet.id("b")
    assert reply.headers["x-tokenhub-attempts"] == "2"
    assert gone.get(timeout=10) - began < 1
    assert reply.headers["x-tokenhub-reason"] == "routed-failover"
    ended = attempts(fleet, reply)
    assert list(ended) == [fleet.id("a"), fleet.id("b")]
    assert ended[fleet.id("b")][0] == ""
    assert ended[fleet.id("a")][0] == "cancelled"
    # The loser may bill the prompt, so the prompt is booked; its output is not.
    assert ended[fleet.id("a")][1] > 0
    assert fleet.health("a")["total_errors"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_fast_answer_starts_nobody_else(fleet, stream):
    fleet.add("a", says("At once."))
    other = fleet.add("b", says("Too late."))
    assert fleet.chat("a", stream=stream).headers["x-tokenhub-attempts"] == "1"
    assert other.calls == []


def test_a_stream_that_has_begun_is_not_hedged(fleet):
    def slow_words(line):
        line.head()
        line.word("One")
        time.sleep(0.5)
        line.word(" two.", "stop")
        line.piece(b"data: [DONE]\n\n")
        line.send(b"0\r\n\r\n")

    fleet.add("a", slow_words)
    other = fleet.add("b", says("Too late."))
    assert words(fleet.chat("a", stream=True).body) == ("One two.", True)
    assert other.calls == []


def test_the_first_may_still_win_after_the_second_has_failed(fleet):
    fleet.add("a", says("Slow and steady.", pause=0.5))
    fleet.add("b", refuses("500 Oh"))
    reply = fleet.chat("a")
    assert text_of(reply) == "Slow and steady."
    assert reply.headers["x-tokenhub-attempts"] == "2"
    assert attempts(fleet, reply)[fleet.id("b")][0] == "server"


def test_the_second_goes_on_when_the_first_fails(fleet):
    def late_failure(line):
        time.sleep(0.3)
        refuses("500 Oh")(line)

    fleet.add("a", late_failure)
    fleet.add("b", says("Here I am.", pause=0.4))
    assert text_of(fleet.chat("a")) == "Here I am."


def test_a_final_refusal_of_one_ends_them_all(fleet):
    def late_refusal(line):
        time.sleep(0.3)
        refuses("400 Bad Request", "Filtered.", code="content_filter")(line)

    fleet.add("a", late_refusal)
    other = fleet.add("b", says("Round the filter.", pause=1.0))
    reply = fleet.chat("a")
    assert reply.status == 400
    assert reply.json()["error"]["code"] == "content_filter"
    assert len(other.calls) == 1


def test_no_money_for_a_second_attempt_leaves_the_first_alone(fleet):
    fleet.add("a", says("Slow and steady.", pause=0.5))
    dear = fleet.add("b", says("Too dear."), input_per_1k=100, output_per_1k=100)
    poor = fleet.new_key(allow_fallback=True, monthly_budget_usd=0.01)
    assert text_of(fleet.chat("a", poor, max_tokens=100)) == "Slow and steady."
    assert dear.calls == []


def test_a_named_model_is_not_hedged_without_permission(fleet):
    fleet.add("a", says("Slow and steady.", pause=0.4))
    other = fleet.add("b", says("Somebody else."))
    assert text_of(fleet.chat("a", fleet.new_key())) == "Slow and steady."
    assert other.calls == []


def test_never_more_at_once_than_configured_and_all_may_fail(fleet):
    hanging = [fleet.add(name, peers.hangs, first_token_ms=500) for name in "abc"]
    began = time.monotonic()
    reply = fleet.chat("a", stream=True)
    assert reply.status == 504
    assert len(reply.json()["error"]["attempts"]) == 3
    assert reply.headers["x-tokenhub-attempts"] == "3"
    assert [len(peer.calls) for peer in hanging] == [1, 1, 1]
    starts = sorted(peer.calls[0] - began for peer in hanging)
    assert starts[2] - starts[0] > 0.4  # the third waited for one of the first two


def test_the_clients_leaving_ends_all_attempts(fleet):
    gone = []

    def slow(line):
        line.until_closed()
        gone.append(time.monotonic())

    both = [fleet.add("a", slow), fleet.add("b", slow)]
    connection = http.client.HTTPConnection("127.0.0.1", fleet.hub.port, timeout=10)
    body = json.dumps({"model": fleet.id("a"), "messages": HELLO})
    headers = {"Authorization": f"Bearer {fleet.key}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    while not all(peer.calls for peer in both):
        time.sleep(0.01)
    left = time.monotonic()
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    while len(gone) < 2:
        assert time.monotonic() - left < 5
        time.sleep(0.01)
    assert max(gone) - left < 0.5
