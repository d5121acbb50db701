from __future__ import annotations

import itertools
import json

import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tokenhub.core.catalog import Model, Provider
from tokenhub.core.chat import parse_chat
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.providers import adapters
from tokenhub.providers.adapter import Target
from tokenhub.providers.sse import EventReader

ADAPTER = adapters(SystemClock())["anthropic"]
TARGET = Target(Model(id="m", provider_id="a"), Provider(id="a", type="anthropic"))
CHAT = parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
USAGE = {"input_tokens": 10, "output_tokens": 5}


def message(content, stop="end_turn", **more):
    value = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": USAGE,
    } | more
    Message.model_validate(value)
    return value


def replied(value):
    reply = ADAPTER.reply(CHAT, TARGET, json.dumps(value).encode())
    return reply, ChatCompletion.model_validate(json.loads(reply.body), strict=True)


def failed(body):
    with pytest.raises(ProviderError) as caught:
        ADAPTER.reply(CHAT, TARGET, body)
    return caught.value


def test_text():
    reply, answer = replied(message([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]))
    assert answer.choices[0].message.content == "ab"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.id, answer.model) == ("msg_1", "claude")
    assert answer.usage.total_tokens == 15
    assert reply.usage.prompt == 10
    assert reply.content_bytes == 2


def test_tool_use_keeps_the_json_as_it_was_written():
    body = json.dumps(message([], "tool_use")).encode()
    block = b'[{"type":"tool_use","id":"toolu_1","name":"f","input":{"a": 1.0, "b":"\\u00e9"}}]'
    body = body.replace(b'"content": []', b'"content": ' + block)
    reply = ADAPTER.reply(CHAT, TARGET, body)
    answer = ChatCompletion.model_validate(json.loads(reply.body), strict=True)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("toolu_1", "f")
    assert call.function.arguments == '{"a": 1.0, "b":"\\u00e9"}'
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason == reply.finish_reason == "tool_calls"


def test_thinking_becomes_reasoning_and_unknown_blocks_are_skipped():
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "42"},
    ]
    _, answer = replied(message(blocks))
    assert answer.choices[0].message.model_extra["reasoning_content"] == "hm"
    assert answer.choices[0].message.content == "42"


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
    ],
)
def test_stop_reasons(stop, finish):
    _, answer = replied(message([{"type": "text", "text": "a"}], stop))
    assert answer.choices[0].finish_reason == finish


def test_a_refusal_carries_its_explanation():
    details = {"type": "refusal", "category": "bio", "explanation": "Not this."}
    _, answer = replied(message([], "refusal", stop_details=details))
    assert answer.choices[0].message.refusal == "Not this."


def test_usage_by_kind():
    usage = USAGE | {
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
        "output_tokens_details": {"thinking_tokens": 3},
        "service_tier": "priority",
    }
    reply, answer = replied(message([], usage=usage))
    assert answer.usage.prompt_tokens == 160
    assert answer.usage.prompt_tokens_details.cached_tokens == 100
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    assert (reply.usage.cached_write, reply.usage.cached_write_1h) == (50, 30)
    assert reply.usage.tier == "priority"


def test_without_usage_the_size_is_there_to_count():
    value = message([{"type": "text", "text": "é"}])
    del value["usage"]
    reply, answer = replied(value)
    assert reply.usage is None
    assert answer.usage is None
    assert reply.content_bytes == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"type":"message"}',
     b'{"type":"message","content":"text"}', b'{"type":"message","content":[1]}',
     b'{"type":"completion","content":[]}', b'{"a":' * 5000],
)  # fmt: skip
def test_garbage_is_called_garbage(body):
    assert failed(body).kind == FailureClass.GARBAGE


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"x"', b"\xff\xfe"])
def test_what_no_api_says_is_from_somewhere_else(body):
    assert failed(body).kind == FailureClass.MISDIRECTED


def test_an_error_in_a_good_answer_is_an_error():
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    assert failed(body).kind == FailureClass.OVERLOADED


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
inputs = st.dictionaries(words, words | st.integers(-(2**53), 2**53) | st.booleans(), max_size=3)
tool_uses = st.builds(
    lambda number, value: {"type": "tool_use", "id": f"t{number}", "name": "f", "input": value},
    st.integers(0, 99),
    inputs,
)
contents = st.builds(
    lambda text, uses: ([{"type": "text", "text": text}] if text else []) + uses,
    st.none() | words,
    st.lists(tool_uses, max_size=3),
)


@given(contents.filter(bool))
@settings(max_examples=150, deadline=None)
def test_an_answer_sent_back_as_history_is_the_same_turn(content):
    _, answer = replied(message(content))
    said = json.loads(answer.choices[0].message.model_dump_json(exclude_none=True))
    history = {"model": "m", "messages": [{"role": "user", "content": "x"}, said]}
    chat = parse_chat(json.dumps(history).encode())
    request = ADAPTER.request(chat, TARGET, None, max_tokens=None)
    assert json.loads(request.body)["messages"][1] == {"role": "assistant", "content": content}


def event(kind, **members):
    body = json.dumps({"type": kind, **members}, ensure_ascii=False)
    return f"event: {kind}\ndata: {body}\n\n".encode()


def split(text, places):
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def streamed(value, places):
    """The message as the API would stream it, its texts cut at ``places``."""
    yield event("message_start", message=value | {"content": [], "stop_reason": None})
    for index, block in enumerate(value["content"]):
        if block["type"] == "text":
            start, kind, member, whole = {"text": ""}, "text_delta", "text", block["text"]
        else:
            start, kind, member = {"input": {}}, "input_json_delta", "partial_json"
            whole = json.dumps(block["input"])
        yield event("content_block_start", index=index, content_block=block | start)
        for piece in split(whole, places):
            yield event("content_block_delta", index=index, delta={"type": kind, member: piece})
        yield event("content_block_stop", index=index)
    yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5})
    yield event("message_stop")


@given(contents, st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=150, deadline=None)
def test_streamed_or_whole_it_is_the_same_answer(content, places):
    value = message(content)
    _, answer = replied(value)
    relay = ADAPTER.relay(CHAT, TARGET)
    out = b"".join(relay.feed(piece) for piece in streamed(value, places)) + relay.finish()
    text, calls = "", {}
    for sent in EventReader().feed(out)[:-1]:
        chunk = ChatCompletionChunk.model_validate(json.loads(sent.data), strict=True)
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for call in delta.tool_calls or []:
            calls.setdefault(call.index, [call.id, ""])[1] += call.function.arguments
    whole = answer.choices[0].message
    assert text == (whole.content or "")
    expected = [[c.id, json.loads(c.function.arguments)] for c in whole.tool_calls or []]
    assert [[identifier, json.loads(words)] for identifier, words in calls.values()] == expected
    assert relay.usage.total == answer.usage.total_tokens


def test_members_of_other_block_types_may_be_null():
    nothing = {"text": None, "thinking": None, "id": None, "name": None, "input": None}
    blocks = [
        nothing | {"type": "text", "text": "hey"},
        nothing | {"type": "tool_use", "id": "toolu_1", "name": "f"},
    ]
    body = {"id": "m", "type": "message", "model": "c", "content": blocks, "usage": USAGE}
    found = ADAPTER.reply(CHAT, TARGET, json.dumps(body | {"stop_reason": "tool_use"}).encode())
    [choice] = ChatCompletion.model_validate_json(found.body).choices
    assert choice.message.content == "hey"
    [call] = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("toolu_1", "f", "{}")


def test_a_usage_that_says_nothing_makes_no_answer_free():
    body = message([{"type": "text", "text": "hey"}]) | {"usage": {}}
    found = ADAPTER.reply(CHAT, TARGET, json.dumps(body).encode())
    assert (found.usage, found.content_bytes) == (None, 3)
