"""What one event of an OpenAI stream says: the members the gateway reads, and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenhub.core.chat import Usage


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    audio: Any = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk; ``text`` stands for a delta of an unforeseen shape."""

    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


_STANDARD = frozenset({"default", "auto", "standard"})
_MOST = 10**15  # tokens; more is senseless


class UsageObject(msgspec.Struct, gc=False):
    """OpenAI's ``usage``. Any value may be anything: what is senseless counts as 0."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    prompt_cache_hit_tokens: Any = None

    @classmethod
    def of(cls, raw: dict[str, Any]) -> UsageObject:
        """From the decoded object."""
        return cls(*map(raw.get, cls.__struct_fields__))

    def says_nothing(self) -> bool:
        """Whether it counts neither prompt nor completion: an answer is not free for that."""
        return self.prompt_tokens is None and self.completion_tokens is None

    def tokens(self, tier: Any = None) -> Usage:
        """Tokens by kind; what is missing counts as 0.

        ``tier`` is the ``service_tier`` beside it.
        """
        prompt, completion = self.prompt_tokens, self.completion_tokens
        if type(prompt) is not int or not 0 < prompt < _MOST:
            prompt = _count(prompt)
        if type(completion) is not int or not 0 < completion < _MOST:
            completion = _count(completion)
        usage = Usage(prompt=prompt, completion=completion)
        if tier is not None and isinstance(tier, str) and tier not in _STANDARD:
            usage.tier = tier
        if self.completion_tokens_details is not None:
            self._read_completion(_object(self.completion_tokens_details), usage)
        if self.prompt_tokens_details is not None or self.prompt_cache_hit_tokens is not None:
            self._read_prompt(_object(self.prompt_tokens_details), usage)
        return usage

    def _read_completion(self, details: dict[str, Any], usage: Usage) -> None:
        reasoning = _count(details.get("reasoning_tokens"))
        # Some providers report reasoning beside the completion; their total gives them away.
        if reasoning and _count(self.total_tokens) == usage.total + reasoning:
            usage.completion += reasoning
        usage.reasoning = min(reasoning, usage.completion)
        usage.audio_out = _count(details.get("audio_tokens"))
        usage.image_out = _count(details.get("image_tokens"))

    def _read_prompt(self, details: dict[str, Any], usage: Usage) -> None:
        cached = _count(details.get("cached_tokens", self.prompt_cache_hit_tokens))
        usage.cached_read = cached = min(cached, usage.prompt)
        written = _count(details.get("cache_write_tokens"))
        usage.cached_write = min(written, usage.prompt - cached)
        usage.audio_in = _count(details.get("audio_tokens"))
        usage.image_in = _count(details.get("image_tokens"))


class Event(msgspec.Struct, gc=False):
    """A chunk, or an error in its place."""

    choices: list[Choice] | None = None
    usage: UsageObject | None = None
    error: Any = None
    service_tier: Any = None
    kind: Any = msgspec.field(default=None, name="object")

    @property
    def failed(self) -> bool:
        """Whether the event is an error in one of its two customary shapes."""
        return bool(self.error) or (self.kind == "error" and self.choices is None)


_event = msgspec.json.Decoder(Event)
decode_event = _event.decode


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    kind = type(value)  # true and false are no numbers here
    if kind is int or kind is float:
        return int(value) if 0 < value < _MOST else 0
    return 0


def said(choice: Choice) -> int:
    """UTF-8 bytes of everything generated in this choice of an event."""
    delta = choice.delta
    if delta is None:
        return _length(choice.text)
    size = _length(delta.content) if delta.content else 0
    if delta.reasoning_content or delta.reasoning:
        size += _length(delta.reasoning_content or delta.reasoning)
    if delta.refusal:
        size += _length(delta.refusal)
    if delta.audio is not None:
        size += len(msgspec.json.encode(delta.audio))
    if delta.tool_calls or delta.function_call is not None:
        calls = [call.function for call in delta.tool_calls or ()]
        for function in (*calls, delta.function_call):
            if function is not None:
                size += _length(function.name) + _length(function.arguments)
    return size


def _length(text: str | None) -> int:
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def read_event(payload: bytes) -> Event | None:
    """The event, its odd members left out; None when it is no JSON object."""
    try:
        payload.decode()
        return _event.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    import json  # noqa: PLC0415  # for odd events only

    try:
        value = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    usage = value.get("usage")
    return Event(
        choices=_choices(value.get("choices")),
        usage=UsageObject.of(usage) if isinstance(usage, dict) else None,
        error=value.get("error"),
        kind=value.get("object"),
        service_tier=value.get("service_tier"),
    )


def _choices(value: Any) -> list[Choice] | None:
    if not isinstance(value, list):
        return None
    return [_choice(item) for item in value]


def _choice(item: Any) -> Choice:
    item = _object(item)
    index, reason = item.get("index"), item.get("finish_reason")
    delta = _object(item.get("delta"))
    import json  # noqa: PLC0415  # as above

    # Its JSON is at least as long as what was said, so this never counts too little.
    said = json.dumps(delta, ensure_ascii=False) if delta else None
    return Choice(
        index=index if isinstance(index, int) else 0,
        text=said,
        finish_reason=reason if isinstance(reason, str) else None,
    )


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
