"""Messages of an OpenAI chat → system prompt and alternating turns of Anthropic's API."""

from __future__ import annotations

import re
import zlib
from typing import Any

import msgspec

from tokenhub.core.conversation import ImagePart, Message, Part, RefusalPart, TextPart, ToolCall
from tokenhub.core.errors import InvalidRequest

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]")
_json = msgspec.json.Decoder()

Block = dict[str, Any]


def system_of(messages: list[Message]) -> str | list[Block]:
    """System and developer messages, wherever they stand, in their order."""
    blocks: list[Block] = []
    for number, message in enumerate(messages):
        if message.role in {"system", "developer"}:
            blocks += [_text_block(part, f"messages[{number}].content") for part in message.parts()]
    if len(blocks) == 1 and "cache_control" not in blocks[0]:
        text: str = blocks[0]["text"]
        return text
    return blocks


def turns_of(messages: list[Message]) -> list[Block]:
    """The other messages as alternating turns of user and assistant."""
    turns: list[Block] = []
    for number, message in enumerate(messages):
        if message.role in {"system", "developer"}:
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message, f"messages[{number}]")
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise InvalidRequest(
            "`messages` holds nothing but system messages or empty ones;"
            " this model's provider (Anthropic) needs at least one user message.",
            param="messages",
        )
    return turns


def _blocks(message: Message, path: str) -> list[Block]:
    if message.role == "tool":
        return [_tool_result(message, path)]
    if message.role == "assistant":
        return _assistant(message, path)
    return [_content_block(part, f"{path}.content") for part in message.parts()]


def _assistant(message: Message, path: str) -> list[Block]:
    blocks = [_text_block(part, f"{path}.content") for part in message.parts()]
    if message.refusal:
        blocks.append({"type": "text", "text": message.refusal})
    for number, call in enumerate(message.tool_calls or []):
        where = f"{path}.tool_calls[{number}].function.arguments"
        blocks.append(
            {
                "type": "tool_use",
                "id": tool_id(call.id),
                "name": call.function.name,
                "input": _input(call, where),
            }
        )
    return blocks


def _input(call: ToolCall, path: str) -> dict[str, Any]:
    if not call.function.arguments.strip():
        return {}
    try:
        value = _json.decode(call.function.arguments)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{path}` must be a JSON object written as text.", param=path)
    return value


def _tool_result(message: Message, path: str) -> Block:
    if not message.tool_call_id:
        where = f"{path}.tool_call_id"
        raise InvalidRequest(
            f"`{where}` is missing.", param=where, code="missing_required_parameter"
        )
    block: Block = {"type": "tool_result", "tool_use_id": tool_id(message.tool_call_id)}
    if isinstance(message.content, str):
        block["content"] = message.content
    elif parts := message.parts():
        block["content"] = [_content_block(part, f"{path}.content") for part in parts]
    return block


def tool_id(identifier: str) -> str:
    """A tool call's id in the letters the API allows; the same for a call and its result."""
    if identifier and not _FOREIGN.search(identifier):
        return identifier
    # The checksum keeps ids apart that differ only in what is replaced.
    return f"{_FOREIGN.sub('_', identifier)}_{zlib.crc32(identifier.encode()):08x}"


def _content_block(part: Part, path: str) -> Block:
    return _image_block(part, path) if isinstance(part, ImagePart) else _text_block(part, path)


def _text_block(part: Part, path: str) -> Block:
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if isinstance(part, TextPart):
        return cached({"type": "text", "text": part.text}, part.cache_control)
    kind = part.__struct_config__.tag
    raise unsupported(path, f"a content part of type `{kind}` here")


def _image_block(part: ImagePart, path: str) -> Block:
    url = part.image_url.url
    if url.startswith("https://"):
        return cached({"type": "image", "source": {"type": "url", "url": url}}, part.cache_control)
    match = _DATA_URL.match(url)
    if match is None:
        raise InvalidRequest(
            f"`{path}`: an image's URL must begin with `https://` or `data:image/…;base64,`.",
            param=path,
        )
    media = match[1].lower()
    if media not in _IMAGES:
        raise unsupported(path, f"images of type `{media[:40]}`")
    source = {"type": "base64", "media_type": media, "data": url[match.end() :]}
    return cached({"type": "image", "source": source}, part.cache_control)


def cached(block: Block, cache_control: Any) -> Block:
    """The block with the client's cache mark, if it set one."""
    return block if cache_control is None else block | {"cache_control": cache_control}


def unsupported(param: str, what: str) -> InvalidRequest:
    """The refusal of something the API has no words for."""
    return InvalidRequest(
        f"`{param}`: this model's provider (Anthropic) does not support {what}.",
        code="unsupported_parameter",
        param=param,
        hint="Leave it out, or name a model of another provider.",
    )
