from __future__ import annotations

import itertools
import json

import pytest
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tokenhub.core.catalog import Model, Provider
from tokenhub.core.chat import parse_chat
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import InvalidRequest
from tokenhub.providers import adapters
from tokenhub.providers.adapter import Target
from tokenhub.providers.anthropic_request import SAMPLING
from tokenhub.providers.anthropic_turns import tool_id

ADAPTER = adapters(SystemClock())["anthropic"]
NEW = "2026-10-21"
USER = {"role": "user", "content": "hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
_whole = TypeAdapter(MessageCreateParamsNonStreaming)
_streamed = TypeAdapter(MessageCreateParamsStreaming)


KEY = b"sk-ant-1"


def headers(request):
    return dict(request.headers())


def target(version="", **model):
    provider = Provider(
        id="a", type="anthropic", base_url="https://api.anthropic.com", api_version=version
    )
    return Target(Model(id="m", provider_id="a", upstream_name="claude", **model), provider)


def sent(chat, *, version="", cap=None, **model):
    """The upstream request for a body, its JSON checked against the SDK's parameter types."""
    body = {"model": "m", "messages": [USER]} | chat
    parsed = parse_chat(json.dumps(body).encode())
    request = ADAPTER.request(parsed, target(version, **model), KEY, max_tokens=cap)
    value = json.loads(request.body)
    known = _streamed if body.get("stream") else _whole
    # The SDK speaks the new version only, which has no sampling members.
    rest = {name: item for name, item in value.items() if version or name not in SAMPLING}
    # Unknown members vanish in validation, so equality says that there are none.
    assert deep(known.validate_python(rest)) == rest
    return value


def deep(value):
    if isinstance(value, dict):
        return {name: deep(item) for name, item in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    return [deep(item) for item in value]


def refusal(chat):
    with pytest.raises(InvalidRequest) as caught:
        sent(chat)
    return caught.value


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def text(words):
    return {"type": "text", "text": words}


def call(identifier, name, arguments):
    function = {"name": name, "arguments": arguments}
    return {"id": identifier, "type": "function", "function": function}


def test_the_least_request():
    assert sent({}) == {"model": "claude", "max_tokens": 4096, "messages": [user(text("hi"))]}


def test_system_and_developer_messages_go_to_system_in_order():
    chat = [
        {"role": "system", "content": "One."},
        USER,
        {"role": "developer", "content": [text("Two."), text("Three.")]},
    ]
    body = sent({"messages": chat})
    assert body["system"] == [text("One."), text("Two."), text("Three.")]
    assert body["messages"] == [user(text("hi"))]
    assert sent({"messages": [chat[0], USER]})["system"] == "One."


def test_images_by_data_and_by_address():
    parts = [
        text("look"),
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]
    body = sent({"messages": [{"role": "user", "content": parts}]})
    assert body["messages"][0]["content"][1:] == [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
        },
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    ]


@pytest.mark.parametrize(
    "url", ["http://example.com/a.png", "file:///etc/passwd", "data:image/tiff;base64,AA", ""]
)
def test_other_images_are_refused(url):
    part = {"type": "image_url", "image_url": {"url": url}}
    error = refusal({"messages": [{"role": "user", "content": [part]}]})
    assert error.param == "messages[0].content"


def test_tool_calls_and_results_become_blocks_in_alternating_turns():
    body = sent(
        {
            "tools": [WEATHER],
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": "Let me see.",
                    "tool_calls": [
                        call("c1", "weather", '{"city":"Oslo"}'),
                        call("c2", "weather", ""),
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                {"role": "tool", "tool_call_id": "c2", "content": [text("no"), text("city")]},
                {"role": "user", "content": "thanks"},
            ],
        }
    )
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                text("Let me see."),
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "c2", "name": "weather", "input": {}},
            ],
        },
        user(
            {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "c2", "content": [text("no"), text("city")]},
            text("thanks"),
        ),
    ]
    function = WEATHER["function"]
    assert body["tools"] == [
        {
            "name": "weather",
            "description": function["description"],
            "input_schema": function["parameters"],
            "strict": True,
        }
    ]


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "null", "NaN"])
def test_arguments_that_are_no_object_are_refused(arguments):
    message = {"role": "assistant", "tool_calls": [call("c", "f", arguments)]}
    error = refusal({"messages": [USER, message]})
    assert error.param == "messages[1].tool_calls[0].function.arguments"


def test_a_tool_result_needs_its_call():
    assert refusal({"messages": [{"role": "tool", "content": "x"}]}).param == (
        "messages[0].tool_call_id"
    )


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("none", None, {"type": "none"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, True, None),
        (
            {"type": "function", "function": {"name": "weather"}},
            None,
            {"type": "tool", "name": "weather"},
        ),
    ],
)
def test_tool_choice(choice, parallel, expected):
    body = sent({"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": parallel})
    assert body.get("tool_choice") == expected


def test_without_tools_there_is_no_choice():
    assert "tool_choice" not in sent({"tool_choice": "auto", "parallel_tool_calls": False})


def test_a_tool_without_parameters_takes_an_empty_object():
    body = sent({"tools": [{"type": "function", "function": {"name": "now"}}]})
    assert body["tools"] == [{"name": "now", "input_schema": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize(
    ("chat", "cap", "model", "expected"),
    [
        ({}, None, {}, 4096),
        ({}, None, {"max_output_tokens": 64_000}, 64_000),
        ({}, 100, {"max_output_tokens": 64_000}, 100),
        ({"max_tokens": 50}, None, {}, 50),
        ({"max_tokens": 50}, 100, {}, 50),
        ({"max_completion_tokens": 500}, 100, {}, 100),
        ({"max_tokens": 9000}, None, {"max_output_tokens": 8000}, 9000),
    ],
)
def test_max_tokens(chat, cap, model, expected):
    assert sent(chat, cap=cap, **model)["max_tokens"] == expected


@pytest.mark.parametrize(("given_", "expected"), [(0, 0), (0.3, 0.3), (1, 1), (1.7, 1), (-1, 0)])
def test_temperature_is_clipped(given_, expected):
    assert sent({"temperature": given_})["temperature"] == expected


def test_sampling_members_are_dropped_for_the_new_version_and_named():
    chat = {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 1, "user": "u"}
    new = sent(chat, version=NEW)
    assert not {"temperature", "top_p", "top_k", "seed"} & new.keys()
    old = sent(chat)
    assert (old["temperature"], old["top_p"], old["top_k"]) == (0, 0.5, 3)
    body = parse_chat(json.dumps({"messages": [USER]} | chat).encode())
    name = b"x-tokenhub-dropped-params"
    assert ADAPTER.notes(body, target(NEW)) == [(name, b"seed, temperature, top_p, top_k")]
    assert ADAPTER.notes(body, target()) == [(name, b"seed")]
    assert ADAPTER.notes(parse_chat(b'{"messages":[{"role":"user"}]}'), target(NEW)) == []


@pytest.mark.parametrize(
    ("chat", "named"),
    [
        ({"temperature": 1.7}, b"temperature"),
        ({"temperature": -1}, b"temperature"),
        ({"stop": "\n\n"}, b"stop"),
        ({"stop": ["a", ""], "temperature": 2}, b"temperature, stop"),
        ({"stop": ["a", "b"], "temperature": 1}, None),
        ({"stop": None, "temperature": None}, None),
        ({"stop": []}, None),
    ],
)
def test_what_is_clipped_or_left_out_in_part_is_named(chat, named):
    body = parse_chat(json.dumps({"messages": [USER]} | chat).encode())
    expected = [] if named is None else [(b"x-tokenhub-dropped-params", named)]
    assert ADAPTER.notes(body, target()) == expected


def test_a_hostile_member_name_does_not_reach_a_header():
    body = {"messages": [USER], "x\r\nset-cookie: a": 1, "å": 1, "y" * 99: 1, "fine-1": 1}
    notes = ADAPTER.notes(parse_chat(json.dumps(body).encode()), target())
    assert notes == [(b"x-tokenhub-dropped-params", b"fine-1")]


def test_keys_and_versions_in_headers():
    chat = parse_chat(json.dumps({"messages": [USER], "stream": True}).encode())
    old = headers(ADAPTER.request(chat, target(), KEY, max_tokens=None))
    new = headers(ADAPTER.request(chat, target(NEW), KEY, max_tokens=None))
    bare = headers(ADAPTER.request(chat, target(), None, max_tokens=None))
    assert old[b"anthropic-version"] == b"2023-06-01"
    assert old[b"x-api-key"] == b"sk-ant-1"
    assert b"authorization" not in old
    assert new[b"anthropic-version"] == NEW.encode()
    assert new[b"authorization"] == b"Bearer sk-ant-1"
    assert b"x-api-key" not in new
    assert old[b"accept"] == b"text/event-stream"
    assert not {b"x-api-key", b"authorization"} & bare.keys()
    assert ADAPTER.request(chat, target(), KEY, max_tokens=None).heading.target == b"/v1/messages"


def test_stop_user_stream_effort_and_schema():
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    body = sent(
        {
            "stop": ["a", " ", "b"],
            "user": "u-1",
            "stream": True,
            "reasoning_effort": "minimal",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema, "strict": True},
            },
        }
    )
    assert body["stop_sequences"] == ["a", "b"]
    assert body["metadata"] == {"user_id": "u-1"}
    assert body["stream"] is True
    assert body["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": schema},
    }
    assert sent({"reasoning_effort": "none"})["thinking"] == {"type": "disabled"}
    assert sent({"stop": "x"})["stop_sequences"] == ["x"]


def test_thinking_and_cache_marks_of_clients_that_know_the_api_pass():
    thinking = {"type": "enabled", "budget_tokens": 2048}
    part = text("long") | {"cache_control": {"type": "ephemeral"}}
    body = sent({"thinking": thinking, "messages": [{"role": "user", "content": [part]}]})
    assert body["thinking"] == thinking
    assert body["messages"][0]["content"] == [part]


@pytest.mark.parametrize(
    ("chat", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {
                "messages": [
                    user({"type": "input_audio", "input_audio": {"data": "", "format": ""}})
                ]
            },
            "messages[0].content",
        ),
        ({"messages": [user({"type": "file", "file": {"file_id": "x"}})]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": "only"}]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [user({"type": "hologram"})]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [1]}, "stop[0]"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(chat, param):
    error = refusal(chat)
    assert error.param == param
    assert f"`{param}`" in error.message or param == "messages"


@pytest.mark.parametrize("quiet", [{"n": 1}, {"logprobs": False}, {"modalities": ["text"]},
                                   {"audio": None}, {"top_logprobs": 0}])  # fmt: skip
def test_the_same_members_at_rest_are_no_obstacle(quiet):
    sent(quiet)


def test_deep_nesting_is_refused_not_crashed_on():
    deep_schema = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    body = b'{"messages":[{"role":"user","content":"x"}],"thinking":' + deep_schema + b"}"
    with pytest.raises(InvalidRequest):
        ADAPTER.request(parse_chat(body), target(), KEY, max_tokens=None)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ids = st.text(min_size=1, max_size=12).filter(str.isprintable)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
calls = st.builds(
    lambda identifier, arguments: call(identifier, "f", json.dumps(arguments)),
    ids,
    st.dictionaries(words, json_values, max_size=3),
)
messages = st.one_of(
    st.builds(lambda t: {"role": "user", "content": t}, words),
    st.builds(lambda t: {"role": "user", "content": [text(w) for w in t]}, st.lists(words)),
    st.builds(lambda t: {"role": "system", "content": t}, words),
    st.builds(
        lambda t, c: {"role": "assistant", "content": t, "tool_calls": c or None},
        st.none() | words,
        st.lists(calls, max_size=2),
    ),
    st.builds(lambda i, t: {"role": "tool", "tool_call_id": i, "content": t}, ids, words),
)


def said(message):
    """What a message of the client says, in order, in no dialect."""
    role = {"system": "system", "assistant": "assistant"}.get(message["role"], "user")
    content = message.get("content")
    if message["role"] == "tool":
        return [(role, "result", tool_id(message["tool_call_id"]), content)]
    parts = [text(content)] if isinstance(content, str) else content or []
    spoken = [(role, "text", part["text"]) for part in parts]
    for item in message.get("tool_calls") or []:
        arguments = json.loads(item["function"]["arguments"])
        spoken.append((role, "call", tool_id(item["id"]), arguments))
    return spoken


def heard(body):
    """The same of a Messages request."""
    system = body.get("system", [])
    blocks = [text(system)] if isinstance(system, str) else system
    found = [("system", "text", block["text"]) for block in blocks]
    for turn in body["messages"]:
        for block in turn["content"]:
            match block["type"]:
                case "text":
                    found.append((turn["role"], "text", block["text"]))
                case "tool_use":
                    found.append((turn["role"], "call", block["id"], block["input"]))
                case "tool_result":
                    found.append(("user", "result", block["tool_use_id"], block["content"]))
    return found


@given(st.lists(messages, max_size=8))
@settings(max_examples=150, deadline=None)
def test_nothing_said_is_lost_or_reordered(history):
    body = sent({"messages": [*history, USER]})
    spoken = [item for message in [*history, USER] for item in said(message)]
    systems = [item for item in spoken if item[0] == "system"]
    assert heard(body) == systems + [item for item in spoken if item[0] != "system"]
    roles = [turn["role"] for turn in body["messages"]]
    assert all(a != b for a, b in itertools.pairwise(roles))


@given(st.text(min_size=1), st.text(min_size=1))
def test_tool_ids_keep_to_the_allowed_letters_and_stay_apart(one, other):
    assert set(tool_id(one)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    )
    assert tool_id(one) == tool_id(one)
    assert (tool_id(one) == tool_id(other)) == (one == other)
