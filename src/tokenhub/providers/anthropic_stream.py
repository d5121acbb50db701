"""A Messages event stream → chunks of OpenAI's dialect, event by event.

message_start          id, model, the prompt's tokens
content_block_start    a text, thinking or tool_use block begins
content_block_delta    text_delta, thinking_delta, input_json_delta; signatures are dropped
content_block_stop     a tool call without arguments gets its ``{}``
message_delta          stop reason, final usage
message_stop           the end; a stream without it was cut
error, ping            a failure; nothing
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.conversation import CallDelta, Delta
from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.providers.adapter import DONE, MAX_EVENT, StreamRelay
from tokenhub.providers.anthropic_reply import (
    Block,
    MessageObject,
    StopDetails,
    UsageObject,
    finish_reason,
)
from tokenhub.providers.failures import classify_event, garbage, no_stream
from tokenhub.providers.openai_writer import ChunkWriter
from tokenhub.providers.sse import EventReader, EventTooLarge, cut_events

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_details: StopDetails | None = None


class _Event(msgspec.Struct, gc=False):
    type: str
    index: int = 0
    message: MessageObject | None = None
    content_block: Block | None = None
    delta: _Delta | None = None
    usage: UsageObject | None = None


class _Call(msgspec.Struct, gc=False):
    """A tool call under way: its number among the calls, and its arguments so far unsent."""

    number: int
    input: str
    spoken: bool = False


_event = msgspec.json.Decoder(_Event)

_CR = ord("\r")
_BREAK = b"\n\n"
# An event as the API sends it. Splitting leaves nothing between two of them, if they are such.
_PLAIN = re.compile(rb"(?:event: [^\n]*\n)?data: ([^\n]*)\n\n")


class AnthropicRelay(StreamRelay):
    """A ``StreamRelay`` from Anthropic's dialect to OpenAI's.

    Args:
        show_usage: whether the client asked for the usage chunk.
        created: Unix seconds for the chunks' ``created``.
        model: the name to use until the stream says its own.
    """

    __slots__ = (
        "_calls", "_created", "_model", "_opened", "_reader", "_tail", "_usage", "_writer",
    )  # fmt: skip

    def __init__(self, *, show_usage: bool, created: int, model: str) -> None:
        super().__init__(show_usage=show_usage)
        self._created = created
        self._writer = ChunkWriter("", model, created)
        self._model = model
        self._tail = bytearray()
        self._reader: EventReader | None = None  # after other line ends than LF
        self._usage = UsageObject()
        self._calls: dict[int, _Call] = {}
        self._opened = False  # message_start was seen

    def feed(self, data: bytes, chunks: Sequence[bytes] = ()) -> bytes:
        """The chunks for the events that end in this read."""
        del chunks
        if self.complete or self.failure is not None:
            return b""
        if self._unread is not None and not (data := self._begin(data)):
            return b""
        try:
            payloads = self._payloads(data)
        except EventTooLarge:
            return self._fail(garbage("sent an event of more than 8 MiB"))
        was_started = self.started
        out = []
        for payload in payloads:
            out.append(self._translate(payload))
            if self.failure is not None and not was_started:
                # Nothing of this stream has been written yet, so another provider can answer.
                self.started = False
                return b""
            if self._over():
                break
        return b"".join(out)

    def _payloads(self, data: bytes) -> list[bytes]:
        """The data of the events that end in this read."""
        if self._reader is None and _CR in data:
            self._reader = EventReader()
            data = b"".join((self._tail, data))
            self._tail.clear()
        if self._reader is not None:
            return [event.data for event in self._reader.feed(data)]
        if self._tail or not data.endswith(_BREAK):
            data = cut_events(self._tail, data)
            if len(self._tail) > MAX_EVENT:
                raise EventTooLarge
        pieces = _PLAIN.split(data)
        if any(pieces[::2]):
            return [event.data for event in EventReader().feed(data)]
        return pieces[1::2]

    def finish(self) -> bytes:
        """``[DONE]`` after ``message_stop``, else the error event."""
        if self.failure is not None:
            return b""
        if self.complete:
            return DONE
        if not self._opened:
            return self._fail(no_stream(self._unread or b""))
        return self._fail(_cut())

    def _translate(self, payload: bytes) -> bytes:
        try:
            event = _event.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.malformed += 1
            return b""
        if event.type == "content_block_delta":
            return self._on_delta(event)
        match event.type:
            case "content_block_start":
                return self._on_block(event)
            case "content_block_stop":
                return self._on_block_end(event)
            case "message_start":
                return self._on_start(event)
            case "message_delta":
                return self._on_end(event)
            case "message_stop":
                return self._on_stop()
            case "error":
                return self._fail(classify_event(payload))
            case _:
                # Pings, and types of later versions, which clients are told to skip.
                return b""

    def _on_start(self, event: _Event) -> bytes:
        self._opened = True
        if (message := event.message) is None:
            return b""
        self._writer = ChunkWriter(message.id, message.model or self._model, self._created)
        if message.usage is not None:
            self._usage = message.usage
            self.early = self._usage.usage()
            if self.early is not None:
                self.early.completion = self.early.reasoning = 0
        return b""

    def _on_block(self, event: _Event) -> bytes:
        if (block := event.content_block) is None:
            return b""
        if block.type == "tool_use":
            call = _Call(len(self._calls), block.arguments)
            self._calls[event.index] = call
            name = block.name or ""
            return self._say(Delta(call=CallDelta(call.number, block.id or "", name)), name)
        if block.type == "text" and block.text:
            return self._say(Delta(text=block.text), block.text)
        if block.type == "thinking" and block.thinking:
            return self._say(Delta(reasoning=block.thinking), block.thinking)
        return b""

    def _on_delta(self, event: _Event) -> bytes:
        delta = event.delta
        if delta is None:
            return b""
        if text := delta.text:
            self.content_bytes += len(text) if text.isascii() else len(text.encode())
            chunk = self._writer.text(text)
            return chunk if self.started else self._open() + chunk
        if delta.thinking:
            return self._say(Delta(reasoning=delta.thinking), delta.thinking)
        call = self._calls.get(event.index)
        if delta.partial_json and call is not None:
            call.spoken = True
            piece = CallDelta(call.number, arguments=delta.partial_json)
            return self._say(Delta(call=piece), delta.partial_json)
        return b""

    def _on_block_end(self, event: _Event) -> bytes:
        call = self._calls.get(event.index)
        if call is None or call.spoken:
            return b""
        # No arguments came in pieces: those of the block's start count, and clients need JSON.
        call.spoken = True
        return self._say(Delta(call=CallDelta(call.number, arguments=call.input)), call.input)

    def _on_end(self, event: _Event) -> bytes:
        if event.usage is not None:
            self._usage = self._usage.updated(event.usage)
            self.usage = self._usage.usage()
        if event.delta is None or event.delta.stop_reason is None:
            return b""
        if self.finish_reason is not None:
            return b""
        details, refusal = event.delta.stop_details, b""
        if details is not None and details.explanation:
            refusal = self._say(Delta(refusal=details.explanation), "")
        self.finish_reason = finish_reason(event.delta.stop_reason)
        return self._open() + refusal + self._writer.finish(self.finish_reason)

    def _on_stop(self) -> bytes:
        if self.finish_reason is None:
            return self._fail(_cut())
        self.complete = True
        if self._show_usage and self.usage is not None:
            return self._open() + self._writer.usage(self.usage)
        return b""

    def _say(self, delta: Delta, content: str) -> bytes:
        self.content_bytes += len(content) if content.isascii() else len(content.encode())
        return self._open() + self._writer.delta(delta)

    def _open(self) -> bytes:
        if self.started:
            return b""
        self.started = True
        return self._writer.role()


def _cut() -> ProviderError:
    return ProviderError(FailureClass.RESET, "The provider's stream ended before its answer.")
