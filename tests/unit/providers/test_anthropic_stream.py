"""A translated stream: events taken apart by one pattern, against the SSE reader."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.providers.scripted import mutated

from tokenhub.core.errors import FailureClass
from tokenhub.providers.anthropic_stream import AnthropicRelay
from tokenhub.providers.sse import EventReader

RECORDED = sorted((Path(__file__).parents[2] / "wire/anthropic").glob("*.sse"))
NOTED = (
    "started", "complete", "usage", "early", "finish_reason", "content_bytes", "malformed",
    "failure",
)  # fmt: skip


class ByReader(AnthropicRelay):
    """The same relay with the SSE reader for every read."""

    def __init__(self):
        super().__init__(show_usage=True, created=1, model="claude")
        self.whole = EventReader()

    def _payloads(self, data):
        return [event.data for event in self.whole.feed(data)]


def ran(relay, reads):
    pieces = [relay.feed(read) for read in reads]
    return pieces, [repr(getattr(relay, name)) for name in NOTED], relay.finish()


def agree(reads):
    fast = AnthropicRelay(show_usage=True, created=1, model="claude")
    assert ran(fast, reads) == ran(ByReader(), reads)
    return fast


def cut(data, places):
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def delta(text):
    value = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}
    data = json.dumps(value, ensure_ascii=False).encode()
    return b"event: content_block_delta\ndata: " + data + b"\n\n"


CUTS = st.lists(st.integers(min_value=0, max_value=10_000), max_size=8)
MUTATIONS = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=10_000),
        st.sampled_from([b'"', b"\\", b"\n", b"\n\n", b"\r\n", b"\r", b":", b"x", b"\xff", b""]),
        st.integers(min_value=0, max_value=3),
    ),
    max_size=3,
)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@given(places=CUTS, mutations=MUTATIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_stream_in_any_cut_says_the_same(path, places, mutations):
    agree(cut(mutated(path.read_bytes(), mutations), places))


@pytest.mark.parametrize(
    "odd",
    [
        b": comment\n\n",
        b"id: 7\n" + delta("x"),
        b"event: a\nevent: b\ndata: {}\n\n",
        b'data: {"type":\ndata: "ping"}\n\n',
        b"data:" + delta("x").partition(b"data: ")[2],
        b"\n\n",
        b"retry: 5\n\n",
        b"data: [DONE]\n\n",
        b"event: content_block_delta\ndata\n\n",
        b"xdata: {}\n\n",
    ],
)
def test_an_odd_event_among_others_says_the_same(odd):
    relay = agree([delta("a"), delta("b") + odd + delta("c"), odd, delta("d")])
    assert relay.content_bytes >= len("abcd")


@given(st.lists(st.text(max_size=8), min_size=1, max_size=10))
@settings(deadline=None)
def test_words_arrive_as_they_were_said(texts):
    relay = agree([b"".join(map(delta, texts))])
    assert relay.content_bytes == len("".join(texts).encode())


def test_an_event_without_an_end_is_refused():
    relay = AnthropicRelay(show_usage=True, created=1, model="claude")
    relay.feed(b"data: ")
    for _ in range(9):
        relay.feed(b"x" * 1024 * 1024)
    assert relay.failure.kind == FailureClass.GARBAGE


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
def test_an_event_without_an_end_takes_linear_time():
    relay = AnthropicRelay(show_usage=False, created=0, model="m")
    while relay.failure is None:
        assert relay.feed(b"x" * 64) == b""
    assert relay.failure.kind == FailureClass.GARBAGE


START = {
    "type": "message_start",
    "message": {"id": "m", "type": "message", "usage": {"input_tokens": 9, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def ended(**delta):
    return {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}


def said(relay, *events):
    """What a client sees of a stream: deltas, and what its last event is."""
    data = b"".join(
        event if isinstance(event, bytes) else b"data: %b\n\n" % json.dumps(event).encode()
        for event in events
    )
    out = relay.feed(data[: len(data) // 2]) + relay.feed(data[len(data) // 2 :]) + relay.finish()
    *chunks, last = [line[6:] for line in out.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks], last


def new_relay():
    return AnthropicRelay(show_usage=False, created=1, model="claude")


def test_the_words_of_a_refusal_arrive():
    details = {"type": "refusal", "category": "cyber", "explanation": "I will not."}
    end = ended(stop_reason="refusal", stop_details=details)
    deltas, last = said(new_relay(), START, end, STOP)
    assert [delta.get("refusal") for delta in deltas] == [None, "I will not.", None]
    assert last == b"[DONE]"


def test_a_stream_that_stops_without_a_reason_is_not_whole():
    relay = new_relay()
    _, last = said(relay, START, delta("hey"), delta("you" * 99), STOP)
    assert json.loads(last)["error"]["code"] == "upstream_interrupted"
    assert not relay.complete
    empty = new_relay()
    assert empty.feed(b"data: %b\n\n" % json.dumps(START).encode()) == b""
    assert empty.feed(b"data: %b\n\n" % json.dumps(STOP).encode()) == b""
    assert (empty.started, empty.failure.kind) == (False, FailureClass.RESET)


def test_a_prompt_nobody_counted_is_not_free():
    relay = new_relay()
    bare = {"type": "message_start", "message": {"id": "m", "type": "message"}}
    said(relay, bare, delta("hey"), ended(stop_reason="end_turn"), STOP)
    assert (relay.complete, relay.usage, relay.early) == (True, None, None)


def test_members_of_other_block_types_may_be_null_in_a_stream():
    nothing = {"text": None, "thinking": None, "id": None, "name": None, "input": None}
    words = {"type": "text_delta", "text": "hey", "thinking": None, "partial_json": None}
    deltas, last = said(
        new_relay(),
        START,
        {"type": "content_block_start", "index": 0, "content_block": nothing | {"type": "text"}},
        {"type": "content_block_delta", "index": 0, "delta": words},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": nothing | {"type": "tool_use", "name": "f"},
        },
        {"type": "content_block_stop", "index": 1},
        ended(stop_reason="tool_use"),
        STOP,
    )
    calls = [one["tool_calls"][0]["function"] for one in deltas if "tool_calls" in one]
    assert calls == [{"name": "f", "arguments": ""}, {"arguments": "{}"}]
    assert [one["content"] for one in deltas if one.get("content")] == ["hey"]
    assert last == b"[DONE]"
