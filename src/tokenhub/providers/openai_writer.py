"""Answers in OpenAI's dialect, written from the neutral parts another dialect was read into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.conversation import ToolCall

if TYPE_CHECKING:
    from tokenhub.core.chat import Usage
    from tokenhub.core.conversation import CallDelta, Delta

_encode = msgspec.json.encode


class ChunkWriter:
    """Writes one stream's chunks; all carry the same id, time and model."""

    def __init__(self, identifier: str, model: str, created: int) -> None:
        head = {
            "id": identifier,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['

        self._text = self._head + b'{"index":0,"delta":{"content":'

    def role(self) -> bytes:
        """The chunk that opens the assistant's turn."""
        return self._choice(b'{"role":"assistant","content":""}')

    def text(self, text: str) -> bytes:
        """A piece of the answer in words: what nearly all chunks are."""
        return self._text + _encode(text) + b'},"finish_reason":null}]}\n\n'

    def delta(self, delta: Delta) -> bytes:
        """A piece of the answer."""
        if delta.text:
            return self.text(delta.text)
        if delta.reasoning:
            return self._choice(b'{"reasoning_content":' + _encode(delta.reasoning) + b"}")
        if delta.refusal:
            return self._choice(b'{"refusal":' + _encode(delta.refusal) + b"}")
        assert delta.call is not None
        return self._choice(b'{"tool_calls":[' + _encode(_call(delta.call)) + b"]}")

    def finish(self, reason: str) -> bytes:
        """The chunk that says why the answer ended."""
        return self._choice(b"{}", _encode(reason))

    def usage(self, usage: Usage) -> bytes:
        """The extra chunk with the usage, for a client that asked for it."""
        return self._head + b'],"usage":' + _encode(usage_object(usage)) + b"}\n\n"

    def _choice(self, delta: bytes, finish: bytes = b"null") -> bytes:
        choice = b'{"index":0,"delta":' + delta + b',"finish_reason":' + finish + b"}"
        return self._head + choice + b"]}\n\n"


class Spoken(msgspec.Struct, kw_only=True):
    """What an assistant said in a whole answer; ``text`` None when it said nothing in words."""

    text: str | None
    reasoning: str = ""
    refusal: str | None = None
    calls: list[ToolCall] = []
    finish: str = "stop"


def completion(
    spoken: Spoken, *, identifier: str, model: str, created: int, usage: Usage | None
) -> bytes:
    """A whole ``chat.completion``."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": spoken.text,
        "refusal": spoken.refusal,
    }
    if spoken.reasoning:
        message["reasoning_content"] = spoken.reasoning
    if spoken.calls:
        message["tool_calls"] = spoken.calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": spoken.finish}
    body: dict[str, Any] = {
        "id": identifier,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
    }
    if usage is not None:
        body["usage"] = usage_object(usage)
    return _encode(body)


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_read,
            "cache_write_tokens": usage.cached_write,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _call(call: CallDelta) -> dict[str, Any]:
    function: dict[str, str] = {"arguments": call.arguments}
    if not (call.id or call.name):
        return {"index": call.index, "function": function}
    function = {"name": call.name} | function
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
