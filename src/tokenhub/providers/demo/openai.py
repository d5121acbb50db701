"""The demo provider in OpenAI's dialect: ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.providers.demo.answers import IMAGE_TOKENS, Prompt, count
from tokenhub.providers.demo.script import BadScript
from tokenhub.providers.openai_writer import usage_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenhub.core.chat import Usage
    from tokenhub.providers.demo.answers import Answer, Call

_CODES = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    404: ("invalid_request_error", "model_not_found"),
    413: ("invalid_request_error", "context_length_exceeded"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class OpenAIDialect:
    """Reads a chat request and writes its answer, whole or event by event."""

    def read(self, body: dict[str, Any], headers: dict[bytes, bytes]) -> Prompt:
        """The request in no dialect.

        Raises:
            BadScript: it is no chat request.
        """
        del headers
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadScript("`messages` must be a list with at least one message.")
        tools = [_tool(item) for item in body.get("tools") or []]
        last = messages[-1] if isinstance(messages[-1], dict) else {}
        options = body.get("stream_options")
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        return Prompt(
            model=str(body.get("model", "")),
            text=_last_text(messages),
            result=text_of(last.get("content")) if last.get("role") == "tool" else None,
            tokens=sum(_size(message) for message in messages) + tools_size(body.get("tools")),
            tools=tools,
            choice=_choice(body.get("tool_choice")),
            parallel=body.get("parallel_tool_calls") is not False,
            schema=_schema(body.get("response_format")),
            max_tokens=limit if isinstance(limit, int) else None,
            wish=body.get("demo"),
            stream=body.get("stream") is True,
            show_usage=isinstance(options, dict) and options.get("include_usage") is True,
        )

    def whole(
        self, prompt: Prompt, answer: Answer, usage: Usage | None, number: int, created: int
    ) -> bytes:
        """The answer as one ``chat.completion``."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.finish == "content_filter":
            message["refusal"] = "This demo refuses, as it was asked to."
        if answer.reasoning:
            message["reasoning_content"] = "".join(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = [_call(call, call.arguments) for call in answer.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        body = _frame(prompt, number, created, "chat.completion") | {"choices": [choice]}
        if usage is not None:
            body["usage"] = usage_object(usage)
        return msgspec.json.encode(body)

    def events(
        self, prompt: Prompt, answer: Answer, usage: Usage | None, number: int, created: int
    ) -> Iterator[tuple[bytes, int]]:
        """The stream without its end: each event with the tokens it brings."""
        frame = _frame(prompt, number, created, "chat.completion.chunk")
        yield _chunk(frame, {"role": "assistant", "content": ""}), 0
        for token in answer.reasoning:
            yield _chunk(frame, {"reasoning_content": token}), 1
        for token in answer.tokens:
            yield _chunk(frame, {"content": token}), 1
        for index, call in enumerate(answer.calls):
            head = _call(call, "") | {"index": index}
            yield _chunk(frame, {"tool_calls": [head]}), 1
            for piece in pieces(call.arguments):
                part = {"index": index, "function": {"arguments": piece}}
                yield _chunk(frame, {"tool_calls": [part]}), count(piece)
        yield _chunk(frame, {}, answer.finish), 0
        if usage is not None and prompt.show_usage:
            yield _data(frame | {"choices": [], "usage": usage_object(usage)}), 0

    def end(self) -> bytes:
        """What closes a stream."""
        return b"data: [DONE]\n\n"

    def broken_event(self) -> bytes:
        """An event that is not JSON."""
        return b'data: {"choices":[{"index":0,"delta":{"content":"bro\n\n'

    def error(self, status: int, message: str) -> bytes:
        """An error body."""
        kind, code = _CODES.get(status, ("server_error", None))
        return msgspec.json.encode({"error": error_object(message, kind, code)})

    def error_event(self, message: str) -> bytes:
        """An error inside a stream."""
        return _data({"error": error_object(message, "server_error", "demo_error")})


def error_object(message: str, kind: str, code: str | None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"message": message, "type": kind, "param": None, "code": code}


def text_of(content: Any) -> str:
    """The text in a message's content, whichever form it has."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(
        str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part
    )


def content_size(content: Any) -> int:
    """Tokens of a message's content."""
    parts = content if isinstance(content, list) else []
    images = sum(isinstance(part, dict) and "image" in str(part.get("type")) for part in parts)
    return count(text_of(content)) + images * IMAGE_TOKENS


def tools_size(tools: Any) -> int:
    """Tokens of the offered tools: the words of their JSON, written with spaces."""
    if not tools:
        return 0
    return count(msgspec.json.format(msgspec.json.encode(tools), indent=1).decode())


def pieces(text: str) -> list[str]:
    """A text cut after each white space run, as a stream brings it."""
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + words[-1:]


def _size(message: Any) -> int:
    if not isinstance(message, dict):
        return 1
    calls = message.get("tool_calls")
    return 1 + content_size(message.get("content")) + tools_size(calls)


def _last_text(messages: list[Any]) -> str:
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def _tool(item: Any) -> tuple[str, Any]:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadScript("`tools` must be a list of functions with a name.")
    return function["name"], function.get("parameters") or {}


def _choice(value: Any) -> str:
    if isinstance(value, dict):
        function = value.get("function")
        return str(function.get("name")) if isinstance(function, dict) else "auto"
    return value if isinstance(value, str) else "auto"


def _schema(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("type") == "text":
        return None
    holder = value.get("json_schema")
    return (holder.get("schema") if isinstance(holder, dict) else None) or {}


def _frame(prompt: Prompt, number: int, created: int, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-demo-{number}",
        "object": kind,
        "created": created,
        "model": prompt.model,
    }


def _call(call: Call, arguments: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _chunk(frame: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _data(frame | {"choices": [choice]})


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
