"""The translation vocabulary: a chat in full, in OpenAI's shape, and what an answer is made of.

Made only where client and provider speak different dialects. A provider's adapter turns a
``Conversation`` into its own request, and its answer into ``Delta`` and ``Finish``, which the
client's dialect writes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenhub.core.chat import ChatRequest


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """Words. ``cache_control`` is Anthropic's, accepted from clients that know it."""

    text: str
    cache_control: Any = None


class ImageURL(msgspec.Struct):
    """Where an image is: a ``data:`` or an ``https:`` URL."""

    url: str


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    """An image."""

    image_url: ImageURL
    cache_control: Any = None


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    """An assistant's words of refusal in the history."""

    refusal: str


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio"):
    """Recorded sound."""

    input_audio: Any


class FilePart(msgspec.Struct, tag_field="type", tag="file"):
    """A document."""

    file: Any


Part = TextPart | ImagePart | RefusalPart | AudioPart | FilePart


class Function(msgspec.Struct):
    """A call's target; ``arguments`` is JSON text as a model wrote it."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """One call an assistant made."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class Message(msgspec.Struct):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    def parts(self) -> list[Part]:
        """The content as parts, whichever form it has; empty text left out."""
        if isinstance(self.content, list):
            return [p for p in self.content if not isinstance(p, TextPart) or p.text]
        return [TextPart(self.content)] if self.content else []


class ToolFunction(msgspec.Struct):
    """What a tool is called, does and takes (a JSON schema)."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A function the model may call."""

    type: Literal["function"]
    function: ToolFunction
    cache_control: Any = None


class NamedFunction(msgspec.Struct):
    """The name inside a forced choice."""

    name: str


class NamedChoice(msgspec.Struct):
    """The choice of one tool."""

    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(msgspec.Struct):
    """The schema an answer must fit."""

    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct):
    """The form an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class Conversation(msgspec.Struct):
    """A chat request decoded in full; names and meanings are OpenAI's."""

    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    thinking: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None

    def stops(self) -> list[str]:
        """The stop sequences as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: ``id`` and ``name`` with the first, then arguments' JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True):
    """A piece of an answer."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    call: CallDelta | None = None


class Finish(msgspec.Struct, frozen=True):
    """Why an answer ended, in OpenAI's words: stop, length, tool_calls, content_filter."""

    reason: str


_conversation = msgspec.json.Decoder(Conversation)
_AT = re.compile(r"^(.*) - at `\$\.?(.*)`$", re.DOTALL)


def parse_conversation(chat: ChatRequest) -> Conversation:
    """Decode a request in full.

    Raises:
        InvalidRequest: a member has the wrong type or an unknown value; names it by its path.
    """
    try:
        return _conversation.decode(chat.body)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def _named(text: str) -> InvalidRequest:
    match = _AT.match(text)
    path = match[2] if match else "messages"
    reason = match[1] if match else text
    reason = reason[:1].lower() + reason[1:]
    return InvalidRequest(
        f"`{path}` cannot be understood: {reason[:300]}.", param=path, code="invalid_type"
    )
