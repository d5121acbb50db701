"""The demo provider in Anthropic's dialect: ``POST /v1/messages``.

Refuses what the real API refuses in the two versions of the protocol it knows, so that a
translation that would fail there fails here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.providers.demo.answers import Prompt, count
from tokenhub.providers.demo.openai import content_size, pieces, text_of, tools_size
from tokenhub.providers.demo.script import BadScript

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenhub.core.chat import Usage
    from tokenhub.providers.demo.answers import Answer

VERSIONS = (b"2023-06-01", b"2026-10-21")
_SAMPLING = ("temperature", "top_p", "top_k")
_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class AnthropicDialect:
    """Reads a Messages request and writes its answer, whole or event by event."""

    def read(self, body: dict[str, Any], headers: dict[bytes, bytes]) -> Prompt:
        """The request in no dialect.

        Raises:
            BadScript: the Messages API would refuse it.
        """
        version = headers.get(b"anthropic-version", b"")
        if version not in VERSIONS:
            raise BadScript("anthropic-version: header is required and must be a known version")
        for name in _SAMPLING:
            if version == VERSIONS[1] and name in body:
                raise BadScript(f"{name}: Extra inputs are not permitted")
        limit = body.get("max_tokens")
        if not isinstance(limit, int) or limit < 1:
            raise BadScript("max_tokens: Field required")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadScript("messages: at least one message is required")
        choice = body.get("tool_choice") or {}
        system = body.get("system")
        return Prompt(
            model=str(body.get("model", "")),
            text=_last_text(messages),
            result=_result(messages[-1]),
            tokens=sum(_size(message) for message in messages)
            + (1 + content_size(system) if system else 0)
            + tools_size(body.get("tools")),
            tools=[(str(tool["name"]), tool["input_schema"]) for tool in body.get("tools") or []],
            choice=_choice(choice),
            parallel=choice.get("disable_parallel_tool_use") is not True,
            schema=_schema(body.get("output_config")),
            max_tokens=limit,
            stream=body.get("stream") is True,
        )

    def whole(
        self, prompt: Prompt, answer: Answer, usage: Usage | None, number: int, created: int
    ) -> bytes:
        """The answer as one ``message``."""
        del created
        message = _message(prompt, number) | {
            "content": _blocks(answer),
            "stop_reason": _STOPS[answer.finish],
            "stop_sequence": None,
        }
        if usage is not None:
            message["usage"] = _usage(usage, usage.completion)
        return msgspec.json.encode(message)

    def events(
        self, prompt: Prompt, answer: Answer, usage: Usage | None, number: int, created: int
    ) -> Iterator[tuple[bytes, int]]:
        """The stream without its end: each event with the tokens it brings."""
        del created
        start = _message(prompt, number) | {"stop_reason": None, "stop_sequence": None}
        if usage is not None:
            start["usage"] = _usage(usage, 0)
        yield _event("message_start", {"message": start | {"content": []}}), 0
        yield _event("ping", {}), 0
        for index, (block, deltas) in enumerate(_block_deltas(answer)):
            yield _event("content_block_start", {"index": index, "content_block": block}), 0
            for delta, tokens in deltas:
                yield _event("content_block_delta", {"index": index, "delta": delta}), tokens
            yield _event("content_block_stop", {"index": index}), 0
        end: dict[str, Any] = {
            "delta": {"stop_reason": _STOPS[answer.finish], "stop_sequence": None}
        }
        if usage is not None:
            end["usage"] = {"output_tokens": usage.completion}
            if usage.reasoning:
                end["usage"]["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
        yield _event("message_delta", end), 0

    def end(self) -> bytes:
        """What closes a stream."""
        return _event("message_stop", {})

    def broken_event(self) -> bytes:
        """An event that is not JSON."""
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","ind\n\n'

    def error(self, status: int, message: str) -> bytes:
        """An error body."""
        kind = _TYPES.get(status, "api_error")
        if status == 413:
            message = f"prompt is too long: {message}"
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})

    def error_event(self, message: str) -> bytes:
        """An error inside a stream."""
        return _event("error", {"error": {"type": "overloaded_error", "message": message}})


def _usage(usage: Usage, output: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached_read - usage.cached_write,
        "cache_read_input_tokens": usage.cached_read,
        "cache_creation_input_tokens": usage.cached_write,
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning if output else 0},
    }


def _message(prompt: Prompt, number: int) -> dict[str, Any]:
    return {
        "id": f"msg_demo_{number}",
        "type": "message",
        "role": "assistant",
        "model": prompt.model,
    }


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        thinking = "".join(answer.reasoning)
        blocks.append({"type": "thinking", "thinking": thinking, "signature": "demo"})
    if answer.tokens:
        blocks.append({"type": "text", "text": answer.text})
    blocks += [
        {
            "type": "tool_use",
            "id": call.id,
            "name": call.name,
            "input": msgspec.json.decode(call.arguments),
        }
        for call in answer.calls
    ]
    return blocks


_Deltas = list[tuple[dict[str, Any], int]]


def _block_deltas(answer: Answer) -> Iterator[tuple[dict[str, Any], _Deltas]]:
    if answer.reasoning:
        deltas: _Deltas = [
            ({"type": "thinking_delta", "thinking": token}, 1) for token in answer.reasoning
        ]
        signature = {"type": "signature_delta", "signature": "demo"}
        yield {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, (signature, 0)]
    if answer.tokens:
        yield (
            {"type": "text", "text": ""},
            [({"type": "text_delta", "text": token}, 1) for token in answer.tokens],
        )
    for call in answer.calls:
        parts = ["", *pieces(call.arguments)]
        yield (
            {"type": "tool_use", "id": call.id, "name": call.name, "input": {}},
            [
                ({"type": "input_json_delta", "partial_json": part}, count(part) if part else 1)
                for part in parts
            ],
        )


def _result(message: Any) -> str | None:
    content = message.get("content") if isinstance(message, dict) else None
    for block in content if isinstance(content, list) else []:
        if isinstance(block, dict) and block.get("type") == "tool_result":
            return text_of(block.get("content"))
    return None


def _last_text(messages: list[Any]) -> str:
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def _size(message: Any) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    inner = sum(content_size(block.get("content")) for block in blocks if isinstance(block, dict))
    calls = [block for block in blocks if isinstance(block, dict) and "input" in block]
    return 1 + content_size(content) + inner + tools_size(calls)


def _choice(choice: dict[str, Any]) -> str:
    kind = choice.get("type", "auto")
    if kind == "tool":
        return str(choice.get("name"))
    return "required" if kind == "any" else str(kind)


def _schema(config: Any) -> Any:
    wanted = config.get("format") if isinstance(config, dict) else None
    return wanted.get("schema", {}) if isinstance(wanted, dict) else None


def _event(kind: str, value: dict[str, Any]) -> bytes:
    body = msgspec.json.encode({"type": kind} | value)
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), body)
