"""Every stream of a provider, in any cut, against the official SDKs' own types."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from pydantic import TypeAdapter

from tokenhub.core.errors import FailureClass
from tokenhub.providers.adapter import DONE
from tokenhub.providers.anthropic_stream import AnthropicRelay
from tokenhub.providers.openai_stream import OpenAIRelay
from tokenhub.providers.sse import EventReader

HERE = Path(__file__).parent
OPENAI_TEXT = "Hello wörld 🌍\n\ndata: not an event"
CLAUDE_TEXT = 'Hello wörld 🌍\n"quoted"'

# file: (text, reasoning, tool calls, finish reason, malformed)
WHOLE = {
    "openai/text": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/crlf_comments": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/comments": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/azure": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/malformed": (OPENAI_TEXT, "", [], "stop", 3),
    "openai/no_done": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/no_blank_line": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/continuous_usage": (OPENAI_TEXT, "", [], "stop", 0),
    "openai/reasoning": ("42", "hmm so", [], "length", 0),
    "openai/tools": (
        "",
        "",
        [("call_a", "get_weather", '{"city": "Oslo"}'), ("call_b", "get_time", "{}")],
        "tool_calls",
        0,
    ),
    "anthropic/text": (CLAUDE_TEXT, "", [], "stop", 0),
    "anthropic/crlf": (CLAUDE_TEXT, "", [], "stop", 0),
    "anthropic/cached": (CLAUDE_TEXT, "", [], "stop", 0),
    "anthropic/max_tokens": (CLAUDE_TEXT, "", [], "length", 0),
    "anthropic/unknown_event": (CLAUDE_TEXT, "", [], "stop", 0),
    "anthropic/malformed": (CLAUDE_TEXT, "", [], "stop", 2),
    "anthropic/refusal": ("", "", [], "content_filter", 0),
    "anthropic/thinking": ("12231", "27 * 453 = 12231", [], "stop", 0),
    "anthropic/tools": (
        "Let me look.",
        "",
        [
            ("toolu_01", "get_weather", '{"city": "San Francisco"}'),
            ("toolu_02", "get_time", "{}"),
        ],
        "tool_calls",
        0,
    ),
}
# file: (kind of failure, text the client got before it)
BROKEN = {
    "openai/cut": (FailureClass.RESET, OPENAI_TEXT),
    "openai/cut_in_event": (FailureClass.RESET, OPENAI_TEXT),
    "openai/error_midway": (FailureClass.SERVER, OPENAI_TEXT),
    "openai/vllm_error": (FailureClass.SERVER, OPENAI_TEXT),
    "anthropic/cut": (FailureClass.RESET, CLAUDE_TEXT),
    "anthropic/cut_after_stop_reason": (FailureClass.RESET, CLAUDE_TEXT),
    "anthropic/error_midway": (FailureClass.OVERLOADED, CLAUDE_TEXT),
}
NEVER_STARTED = {
    "openai/error_first": FailureClass.RATE_LIMITED,
    "anthropic/error_first": FailureClass.OVERLOADED,
}


def stream(name):
    return (HERE / f"{name}.sse").read_bytes()


def relay_for(name, *, show_usage=False):
    if name.startswith("openai"):
        return OpenAIRelay(show_usage=show_usage)
    return AnthropicRelay(show_usage=show_usage, created=1_795_000_000, model="claude")


def run(relay, reads):
    """Every piece the client would be given, the end included."""
    return [relay.feed(read) for read in reads] + [relay.finish()]


def cut(data, places):
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def payloads(out):
    return [event.data for event in EventReader().feed(out)]


def chunks(out):
    """The stream as the SDK reads it, checked strictly."""
    found = [json.loads(data) for data in payloads(out) if data != b"[DONE]"]
    return [ChatCompletionChunk.model_validate(value, strict=True) for value in found]


def told(out):
    """(text, reasoning, tool calls, finish reason) of a stream."""
    text, reasoning, finish, calls = "", "", None, {}
    for chunk in chunks(out):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, [call.id, call.function.name, ""])
                known[2] += call.function.arguments or ""
    return text, reasoning, [tuple(calls[index]) for index in sorted(calls)], finish


def test_every_recording_has_its_expectation():
    names = {str(path.relative_to(HERE).with_suffix("")) for path in HERE.rglob("*.sse")}
    assert names == WHOLE.keys() | BROKEN.keys() | NEVER_STARTED.keys()


def test_anthropic_recordings_are_what_its_sdk_reads():
    events = TypeAdapter(RawMessageStreamEvent)
    read = 0
    for name in ("text", "cached", "tools", "thinking", "max_tokens", "refusal"):
        for event in EventReader().feed(stream(f"anthropic/{name}")):
            if event.event != b"ping":
                events.validate_json(event.data)
                read += 1
    assert read > 40


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_stream(name):
    relay = relay_for(name)
    out = b"".join(run(relay, [stream(name)]))
    text, reasoning, calls, finish, malformed = WHOLE[name]
    assert told(out) == (text, reasoning, calls, finish)
    assert out.endswith(DONE)
    assert out.count(DONE) == 1
    assert relay.complete
    assert relay.started
    assert relay.failure is None
    assert relay.malformed == malformed
    assert relay.finish_reason == finish
    generated = text + reasoning + "".join(name + arguments for _, name, arguments in calls)
    assert relay.content_bytes == len(generated.encode())


@pytest.mark.parametrize("name", WHOLE)
def test_done_is_the_last_thing_and_comes_from_finish_alone(name):
    relay = relay_for(name)
    *fed, last = run(relay, cut(stream(name), range(0, 100_000, 97)))
    assert not any(b"[DONE]" in piece for piece in fed)
    assert last.endswith(DONE)


@pytest.mark.parametrize("name", WHOLE)
def test_the_usage_chunk_is_the_clients_only_when_asked_for(name):
    silent, asked = relay_for(name), relay_for(name, show_usage=True)
    without = chunks(b"".join(run(silent, [stream(name)])))
    wanted = chunks(b"".join(run(asked, [stream(name)])))
    assert [chunk for chunk in without if not chunk.choices and chunk.usage] == []
    assert wanted[-1].choices == []
    assert wanted[-1].usage.prompt_tokens == asked.usage.prompt
    assert wanted[-1].usage.completion_tokens == asked.usage.completion
    assert silent.usage == asked.usage
    assert len(wanted) == len(without) + 1


def pieces_are_whole(pieces):
    return all(not piece or piece.endswith(b"\n\n") for piece in pieces)


@pytest.mark.parametrize("name", [*WHOLE, *BROKEN])
@given(places=st.lists(st.integers(min_value=0, max_value=10_000), max_size=40))
@settings(max_examples=30, deadline=None)
def test_any_cut_into_reads_gives_the_same_bytes(name, places):
    data = stream(name)
    # The first content goes out before the failure comes: two reads are the fewest that say so.
    one, other = relay_for(name), relay_for(name)
    early = places if name in WHOLE else [*places, len(data) * 8 // 10]
    whole = b"".join(run(one, cut(data, [] if name in WHOLE else [len(data) * 8 // 10])))
    pieces = run(other, cut(data, early))
    assert b"".join(pieces) == whole
    assert pieces_are_whole(pieces)
    for field in ("started", "complete", "usage", "finish_reason", "content_bytes", "malformed"):
        assert getattr(one, field) == getattr(other, field), field


@pytest.mark.parametrize("name", WHOLE)
def test_one_byte_at_a_time(name):
    data = stream(name)
    pieces = run(relay_for(name), [data[i : i + 1] for i in range(len(data))])
    assert b"".join(pieces) == b"".join(run(relay_for(name), [data]))
    assert pieces_are_whole(pieces)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_ends_with_an_error_and_no_done(name):
    kind, text = BROKEN[name]
    relay = relay_for(name)
    data = stream(name)
    out = b"".join(run(relay, cut(data, [len(data) * 8 // 10])))
    *events, last = [json.loads(payload) for payload in payloads(out)]
    assert b"[DONE]" not in out
    assert last["error"]["type"] == "upstream_error"
    if kind == FailureClass.RESET:
        assert last["error"]["code"] == "upstream_interrupted"
    assert relay.failure.kind == kind
    assert not relay.complete
    said = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
    assert said == text
    assert relay.interrupted("again") == b""


@pytest.mark.parametrize("name", NEVER_STARTED)
def test_an_error_before_any_content_leaves_room_for_another_provider(name):
    for reads in ([stream(name)], cut(stream(name), range(0, 10_000, 7))):
        relay = relay_for(name)
        assert b"".join(run(relay, reads)) == b""
        assert not relay.started
        assert relay.failure.kind == NEVER_STARTED[name]


@pytest.mark.parametrize("name", ["openai/error_midway", "anthropic/error_midway"])
def test_content_and_error_in_one_first_read_leave_room_too(name):
    relay = relay_for(name)
    assert b"".join(run(relay, [stream(name)])) == b""
    assert not relay.started
    assert relay.failure is not None


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@given(noise=st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_noise_is_never_relayed_as_an_answer(dialect, noise):
    relay = relay_for(dialect)
    out = b"".join(run(relay, [noise]))
    assert DONE not in out
    assert relay.failure is not None


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_an_interruption_is_told_once(dialect):
    name = f"{dialect}/text"
    relay = relay_for(name)
    relay.feed(stream(name)[: len(stream(name)) * 6 // 10])
    assert relay.started
    event = relay.interrupted("the connection broke")
    error = {
        "message": "The connection broke.",
        "type": "upstream_error",
        "code": "upstream_interrupted",
    }
    assert json.loads(payloads(event)[0]) == {"error": error}
    assert relay.feed(stream(name)) == b""
    assert relay.finish() == b""
    assert relay.interrupted("again") == b""


@pytest.mark.parametrize("name", ["anthropic/text", "openai/text"])
def test_after_the_protocols_end_nothing_counts(name):
    relay = relay_for(name)
    first = relay.feed(stream(name))
    assert relay.complete
    assert relay.feed(stream(name)) == b""
    assert relay.interrupted("late") == b""
    assert relay.finish() == DONE
    assert first


@pytest.mark.parametrize("name", ["openai/tools", "anthropic/tools"])
def test_only_a_calls_first_piece_names_it(name):
    out = b"".join(run(relay_for(name), [stream(name)]))
    deltas = [choice.delta for chunk in chunks(out) for choice in chunk.choices]
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    named = [(call.index, call.id, call.type) for call in pieces]
    calls = WHOLE[name][2]
    assert [entry for entry in named if entry[1] is not None] == [
        (index, call[0], "function") for index, call in enumerate(calls)
    ]
    assert all(entry[2] is None for entry in named if entry[1] is None)


def test_usage_counts_the_cached_tokens_in():
    relay = relay_for("anthropic/cached")
    run(relay, [stream("anthropic/cached")])
    assert relay.usage.prompt == 175
    assert (relay.usage.cached_read, relay.usage.cached_write) == (100, 50)
    assert relay.usage.cached_write_1h == 30
    assert relay.usage.completion == 15


def test_the_prompts_tokens_are_known_when_the_stream_is_cut():
    relay = relay_for("anthropic/cut")
    run(relay, [stream("anthropic/cut")])
    assert relay.usage is None
    assert (relay.early.prompt, relay.early.completion) == (25, 0)
    assert relay.content_bytes == len(CLAUDE_TEXT.encode())


# What comes instead of a stream: the kind of failure.
NO_STREAM = {
    b"<!doctype html>\n<html>\n\n<p>data: x</p></html>": FailureClass.MISDIRECTED,
    b"<html>\r\n\r\n</html>\r\n": FailureClass.MISDIRECTED,
    b"\n <html></html>": FailureClass.MISDIRECTED,
    b'{"error":{"message":"busy","type":"rate_limit_error"}}': FailureClass.RATE_LIMITED,
    b'{"object":"chat.completion","choices":[]}': FailureClass.GARBAGE,
    b'{"type":"message","content":[]}\n': FailureClass.GARBAGE,
    b'\r\n{"error":\r\n\r\n{"message":"busy","type":"rate_limit"}}': FailureClass.RATE_LIMITED,
    b'{"a":1}\n\ndata: {"choices":[]}\n\n': FailureClass.GARBAGE,
    b"\r\n\r\n<html>": FailureClass.MISDIRECTED,
    b'[{"error":{"message":"busy"}}]': FailureClass.MISDIRECTED,
    b"\n\n": FailureClass.GARBAGE,
    b"": FailureClass.GARBAGE,
    b": a comment\n\n": FailureClass.GARBAGE,
}


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@given(data=st.sampled_from(list(NO_STREAM)), places=st.lists(st.integers(0, 99), max_size=4))
def test_what_is_no_stream_at_all_is_called_what_it_is(dialect, data, places):
    relay = relay_for(dialect)
    assert b"".join(run(relay, cut(data, places))) == b""
    assert relay.failure.kind == NO_STREAM[data]


def test_an_endless_event_is_refused():
    relay = OpenAIRelay(show_usage=False)
    relay.feed(b"data: ")
    for _ in range(9):
        relay.feed(b"x" * 1024 * 1024)
    assert relay.failure.kind == FailureClass.GARBAGE
