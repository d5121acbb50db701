"""The Anthropic wire format end to end: OpenAI's SDK in front, an Anthropic server behind."""

from __future__ import annotations

import json

import openai
import pytest

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture
def client(hub, upstream):
    hub.ok("POST", "/vault/unlock", {"admin_password": "correct horse"})
    hub.ok(
        "POST",
        "/providers",
        {"id": "a", "type": "anthropic", "base_url": upstream, "api_key": "sk-ant-canary"},
    )
    model = {"id": "claude", "provider_id": "a", "upstream_name": "demo"}
    hub.ok("POST", "/models", model | {"input_per_1k": 0.003, "output_per_1k": 0.015})
    key = hub.ok("POST", "/apikeys", {"name": "app"})["key"]
    return openai.OpenAI(base_url=f"{hub.url}/v1", api_key=key, max_retries=0)


def test_text_whole_and_streamed(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="claude", messages=messages, max_tokens=200)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.prompt_tokens > 0
    chunks = list(
        client.chat.completions.create(
            model="claude",
            messages=messages,
            max_tokens=200,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_tool_round_trip(client):
    messages = [{"role": "user", "content": "What is the weather in Lyon?"}]
    first = client.chat.completions.create(
        model="claude", messages=messages, tools=TOOLS, tool_choice="required", max_tokens=200
    )
    assert first.choices[0].finish_reason == "tool_calls"
    [call] = first.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    second = client.chat.completions.create(
        model="claude", messages=messages, tools=TOOLS, max_tokens=200
    )
    assert second.choices[0].message.content


def test_streamed_tool_calls_have_whole_arguments(client):
    stream = client.chat.completions.create(
        model="claude",
        messages=[{"role": "user", "content": "What is the weather in Lyon?"}],
        tools=TOOLS,
        tool_choice="required",
        max_tokens=200,
        stream=True,
    )
    arguments = ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments += call.function.arguments or ""
    assert "city" in json.loads(arguments)


def test_the_new_version_drops_sampling_parameters_and_says_so(hub, client):
    hub.ok("PATCH", "/providers/a", {"api_version": "2026-10-21"})
    raw = client.chat.completions.with_raw_response.create(
        model="claude",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=100,
        temperature=0,
    )
    assert raw.headers["x-tokenhub-dropped-params"] == "temperature"


def test_what_cannot_be_expressed_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="claude", messages=[{"role": "user", "content": "Hello"}], n=2
        )
    assert caught.value.body["param"] == "n"
