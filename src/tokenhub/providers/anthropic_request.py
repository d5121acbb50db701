"""An OpenAI chat request → the body of a Messages request (Anthropic's API, as of 2026-10-21).

What the API cannot express is refused with the member's name when it would change the answer's
shape; what only tunes an answer is left out and listed, so that the client can be told.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.conversation import Conversation, NamedChoice, Tool, parse_conversation
from tokenhub.core.errors import InvalidRequest
from tokenhub.providers.anthropic_turns import Block, cached, system_of, turns_of, unsupported

if TYPE_CHECKING:
    from tokenhub.core.chat import ChatRequest

DEFAULT_MAX_TOKENS = 4096
WITHOUT_SAMPLING = "2026-10-21"  # the first version that refuses the members in SAMPLING
SAMPLING = ("temperature", "top_p", "top_k")

_HANDLED = frozenset(
    {
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
        "tools", "tool_choice", "parallel_tool_calls", "stop", "temperature", "top_p", "top_k",
        "user", "safety_identifier", "reasoning_effort", "thinking", "response_format", "n",
        "logprobs", "top_logprobs", "modalities",
    }
)  # fmt: skip
_REFUSED = {
    "audio": "audio output",
    "functions": "the old `functions`; use `tools`",
    "function_call": "the old `function_call`; use `tool_choice`",
    "web_search_options": "web search",
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EFFORT = {"minimal": "low"}
_temperature = msgspec.json.Decoder(float)
_stop = msgspec.json.Decoder(str | list[str])


def dropped_members(chat: ChatRequest, version: str) -> list[str]:
    """The members a request will lose in translation, wholly or in part.

    In part: a temperature beyond this API's scale, stop sequences of white space alone.
    """
    lost = [name for name in chat.members if name not in _HANDLED and name not in _REFUSED]
    if version >= WITHOUT_SAMPLING:
        lost += [name for name in chat.members if name in SAMPLING]
    elif chat.has("temperature") and not 0 <= _temperature.decode(chat.members["temperature"]) <= 1:
        lost.append("temperature")
    if chat.has("stop") and not all(map(str.strip, _listed(_stop.decode(chat.members["stop"])))):
        lost.append("stop")
    return [name for name in lost if chat.has(name) and _NAME.fullmatch(name)]


def _listed(stop: str | list[str]) -> list[str]:
    return [stop] if isinstance(stop, str) else stop


def messages_body(
    chat: ChatRequest, *, model: str, version: str, max_tokens: int | None, default_max: int
) -> bytes:
    """The Messages request.

    Args:
        chat: the client's request.
        model: the provider's name for the model.
        version: the ``anthropic-version`` it will be sent with.
        max_tokens: cap of the output, None = the client's own or the default.
        default_max: what to allow when neither client nor gateway says; 0 = 4096.

    Raises:
        InvalidRequest: the API cannot express a member; ``param`` names it.
    """
    conversation = parse_conversation(chat)
    _refuse(chat, conversation)
    limit = chat.max_tokens or default_max or DEFAULT_MAX_TOKENS
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": limit if max_tokens is None else min(limit, max_tokens),
        "messages": turns_of(conversation.messages),
    }
    if system := system_of(conversation.messages):
        body["system"] = system
    if chat.stream:
        body["stream"] = True
    _add_tools(body, conversation)
    _add_output(body, conversation)
    if version < WITHOUT_SAMPLING:
        _add_sampling(body, conversation)
    if stops := [stop for stop in conversation.stops() if stop.strip()]:
        body["stop_sequences"] = stops
    if user := conversation.user or conversation.safety_identifier:
        body["metadata"] = {"user_id": user}
    return msgspec.json.encode(body)


def _refuse(chat: ChatRequest, conversation: Conversation) -> None:
    for name, what in _REFUSED.items():
        if chat.has(name):
            raise unsupported(name, what)
    if chat.choices > 1:
        raise unsupported("n", "more than one choice")
    if conversation.logprobs:
        raise unsupported("logprobs", "log probabilities")
    if conversation.top_logprobs:
        raise unsupported("top_logprobs", "log probabilities")
    if any(kind != "text" for kind in conversation.modalities or []):
        raise unsupported("modalities", "output other than text")


def _add_tools(body: dict[str, Any], conversation: Conversation) -> None:
    if not conversation.tools:
        return
    body["tools"] = [_tool(tool) for tool in conversation.tools]
    choice = _choice(conversation)
    if conversation.parallel_tool_calls is False and choice != {"type": "none"}:
        choice = (choice or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    if choice is not None:
        body["tool_choice"] = choice


def _tool(tool: Tool) -> Block:
    function = tool.function
    schema = {"type": "object"} | (function.parameters or {"properties": {}})
    block: Block = {"name": function.name, "input_schema": schema}
    if function.description is not None:
        block["description"] = function.description
    if function.strict:
        block["strict"] = True
    return cached(block, tool.cache_control)


def _choice(conversation: Conversation) -> Block | None:
    choice = conversation.tool_choice
    if choice is None:
        return None
    if isinstance(choice, NamedChoice):
        return {"type": "tool", "name": choice.function.name}
    return {"type": "any" if choice == "required" else choice}


def _add_output(body: dict[str, Any], conversation: Conversation) -> None:
    config: dict[str, Any] = {}
    form = conversation.response_format
    if form is not None and form.type == "json_object":
        raise unsupported("response_format", "`json_object`; use `json_schema`")
    if form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema is None:
            path = "response_format.json_schema.schema"
            raise InvalidRequest(
                f"`{path}` is missing.", param=path, code="missing_required_parameter"
            )
        config["format"] = {"type": "json_schema", "schema": form.json_schema.schema}
    effort = conversation.reasoning_effort
    if effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif effort is not None:
        config["effort"] = _EFFORT.get(effort, effort)
    if conversation.thinking is not None:
        body["thinking"] = conversation.thinking
    if config:
        body["output_config"] = config


def _add_sampling(body: dict[str, Any], conversation: Conversation) -> None:
    if conversation.temperature is not None:
        # OpenAI's scale ends at 2, this one at 1.
        body["temperature"] = min(max(conversation.temperature, 0.0), 1.0)
    if conversation.top_p is not None:
        body["top_p"] = conversation.top_p
    if conversation.top_k is not None:
        body["top_k"] = conversation.top_k
