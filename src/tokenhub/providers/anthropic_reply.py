"""A whole Messages answer → neutral parts; usage and stop reasons of Anthropic's API."""

from __future__ import annotations

import msgspec

from tokenhub.core.chat import Usage
from tokenhub.core.conversation import Function, ToolCall
from tokenhub.providers.failures import classify_event, garbage, no_answer

_STOPS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class OutputDetails(msgspec.Struct):
    """What the output tokens were spent on."""

    thinking_tokens: int | None = None


class CacheWrites(msgspec.Struct):
    """Cache writes by how long they are kept."""

    ephemeral_1h_input_tokens: int | None = None


class UsageObject(msgspec.Struct):
    """The API's usage; in a stream later ones replace only what they name."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheWrites | None = None
    output_tokens_details: OutputDetails | None = None
    service_tier: str | None = None

    def updated(self, later: UsageObject) -> UsageObject:
        """This one with what ``later`` names."""
        names = self.__struct_fields__
        news = {name: value for name in names if (value := getattr(later, name)) is not None}
        return msgspec.structs.replace(self, **news)

    def usage(self) -> Usage | None:
        """Tokens by kind; None where the prompt was not counted, which is not free for that.

        ``input_tokens`` of the API leaves the cached ones out, ours do not.
        """
        if self.input_tokens is None:
            return None
        read, write = _count(self.cache_read_input_tokens), _count(self.cache_creation_input_tokens)
        output = _count(self.output_tokens)
        hour = self.cache_creation.ephemeral_1h_input_tokens if self.cache_creation else 0
        thought = self.output_tokens_details
        return Usage(
            prompt=_count(self.input_tokens) + read + write,
            completion=output,
            cached_read=read,
            cached_write=write,
            cached_write_1h=min(_count(hour), write),
            reasoning=min(_count(thought.thinking_tokens) if thought else 0, output),
            tier="" if self.service_tier in {None, "standard"} else str(self.service_tier),
        )


class Block(msgspec.Struct):
    """A content block of any type; types yet unknown have none of these members.

    Some servers that speak the API write out the members of all types, most of them null.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def arguments(self) -> str:
        """The JSON of a tool's input, as it was written; null is an empty object."""
        text = bytes(self.input).decode()
        return "{}" if text == "null" else text

    def call(self) -> ToolCall:
        """The tool call of a ``tool_use`` block."""
        return ToolCall(self.id or "", Function(self.name or "", self.arguments))


class StopDetails(msgspec.Struct):
    """More about a refusal."""

    explanation: str | None = None


class MessageObject(msgspec.Struct):
    """A ``message``."""

    id: str = ""
    type: str = ""
    model: str = ""
    content: list[Block] | None = None
    stop_reason: str | None = None
    stop_details: StopDetails | None = None
    usage: UsageObject | None = None

    def joined(self, kind: str, member: str) -> str:
        """The texts of all blocks of a type."""
        return "".join(getattr(b, member) or "" for b in self.content or [] if b.type == kind)

    def calls(self) -> list[ToolCall]:
        """The tool calls, in order."""
        return [block.call() for block in self.content or [] if block.type == "tool_use"]


_message = msgspec.json.Decoder(MessageObject)


def read_message(body: bytes) -> MessageObject:
    """Decode a whole answer.

    Raises:
        ProviderError: GARBAGE when it is no message, MISDIRECTED when it is none of an API's; the
            error's class when it is an error.
    """
    try:
        message = _message.decode(body)
    except msgspec.ValidationError as error:
        raise no_answer(body, f"answered with a body that is no message ({error})") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_answer(body, "answered with a body that is not JSON") from None
    if message.type == "error":
        raise classify_event(body)
    if message.type != "message" or message.content is None:
        raise garbage("answered with a body that is no message")
    return message


def finish_reason(stop_reason: str | None) -> str:
    """Why generation ended, in OpenAI's words; a reason yet unknown counts as a plain end."""
    return _STOPS.get(stop_reason or "", "stop")


def content_size(message: MessageObject) -> int:
    """UTF-8 bytes of everything generated."""
    return sum(
        len("".join((b.text or "", b.thinking or "", b.name or "")).encode())
        + (len(bytes(b.input)) if b.type == "tool_use" else 0)
        for b in message.content or []
    )


def _count(value: int | None) -> int:
    return value if value is not None and value > 0 else 0
