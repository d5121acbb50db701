"""The chat vocabulary: what routing reads of a request, and what an answer used.

``ChatRequest`` holds the body's top-level members as raw JSON slices; only what routing needs is
decoded. Where client and provider speak the same dialect nothing else ever is; where they differ,
``conversation`` has the full decoding.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenhub.core.errors import InvalidRequest

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_flag = msgspec.json.Decoder(bool | None)
_count = msgspec.json.Decoder(int | None)
_options = msgspec.json.Decoder(dict[str, Any] | None)

MAX_MODEL_NAME = 256
_BRACKET = ord("[")


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of one answer, by kind.

    ``prompt`` includes ``cached_read``, ``cached_write`` (which includes ``cached_write_1h``),
    ``audio_in`` and ``image_in``; ``completion`` includes ``reasoning``, ``audio_out`` and
    ``image_out``. ``tier`` is the service tier the answer names, "" for the standard one.
    ``source`` says who counted: "provider", or "counted" (by us, from relayed bytes).
    """

    prompt: int = 0
    completion: int = 0
    cached_read: int = 0
    cached_write: int = 0
    reasoning: int = 0
    audio_in: int = 0
    audio_out: int = 0
    cached_write_1h: int = 0
    image_in: int = 0
    image_out: int = 0
    tier: str = ""
    source: str = "provider"

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


class ChatRequest:
    """A parsed ``/v1/chat/completions`` body.

    Attributes:
        body: the bytes as received.
        members: top-level members, name → raw JSON value (views of ``body``).
        model: the requested name, "" when absent.
        stream, include_usage: what the client asked for.
        max_tokens: the client's output limit (``max_completion_tokens`` first), None if none.
        choices: ``n``.
    """

    __slots__ = ("body", "choices", "include_usage", "max_tokens", "members", "model", "stream")

    def __init__(self, body: bytes, members: dict[str, msgspec.Raw]) -> None:
        self.body = body
        self.members = members
        self.model = ""
        self.stream = False
        self.include_usage = False
        self.max_tokens: int | None = None
        self.choices = 1

    def has(self, name: str) -> bool:
        """Whether a member is there and not null."""
        value = self.members.get(name)
        return value is not None and bytes(value) != b"null"

    def spliced(self, changes: dict[str, msgspec.Raw | None]) -> bytes:
        """The body with members replaced or added (None removes); all other values byte-exact."""
        if not changes:
            return self.body
        members = self.members | changes
        kept = {name: value for name, value in members.items() if value is not None}
        return msgspec.json.encode(kept)


def parse_chat(body: bytes) -> ChatRequest:
    """Parse the body of a chat request.

    Raises:
        InvalidRequest: not JSON, not an object, nested too deeply, a duplicate member, or a
            member that routing reads has the wrong type; the message names the member.
    """
    members = parse_members(body)
    request = ChatRequest(body, members)
    messages = memoryview(members.get("messages", b" "))
    if messages[0] != _BRACKET:
        raise InvalidRequest("`messages` must be a list of messages.", param="messages")
    if len(messages) < 64 and not bytes(messages).strip(b"[] \t\r\n"):
        raise InvalidRequest("`messages` must hold at least one message.", param="messages")
    if (raw := members.get("model")) is not None:
        request.model = _read(_text, raw, "model", "text")
        if len(request.model) > MAX_MODEL_NAME:
            raise InvalidRequest("`model` is longer than 256 characters.", param="model")
    if (raw := members.get("stream")) is not None:
        request.stream = bool(_read(_flag, raw, "stream", "true or false"))
    if (raw := members.get("stream_options")) is not None:
        options = _read(_options, raw, "stream_options", "an object") or {}
        request.include_usage = options.get("include_usage") is True
    for name in ("max_completion_tokens", "max_tokens"):
        if (raw := members.get(name)) is not None:
            count = _read(_count, raw, name, "a whole number")
            if count is not None and count < 1:
                raise InvalidRequest(f"`{name}` must be at least 1.", param=name)
            if count is not None and request.max_tokens is None:
                request.max_tokens = count
    if (raw := members.get("n")) is not None:
        choices = _read(_count, raw, "n", "a whole number")
        request.choices = 1 if choices is None else choices
        if not 1 <= request.choices <= 128:
            raise InvalidRequest("`n` must be between 1 and 128.", param="n")
    return request


def parse_members(body: bytes) -> dict[str, msgspec.Raw]:
    """The top-level members of a JSON object, undecoded.

    Raises:
        InvalidRequest: not JSON, not an object, nested too deeply, or a duplicate member.
    """
    try:
        members = _members.decode(body)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    _refuse_duplicates(body, members)
    return members


def _refuse_duplicates(body: bytes, members: dict[str, msgspec.Raw]) -> None:
    # A duplicate member would let us and the provider read different requests. The encodings of
    # the common JSON writers have one of two exact lengths, so the slow check is for odd spacing.
    count = len(members)
    compact = len(msgspec.json.encode(members)) if count else 2
    if len(body) in {compact, compact + 2 * count - 1}:
        return
    _walk_members(body)


class _Pairs(list[tuple[str, Any]]):
    """A decoded object with its members in order, duplicates kept."""


def _walk_members(body: bytes) -> None:
    import json  # noqa: PLC0415  # for odd spacing only

    try:
        pairs = json.loads(body, object_pairs_hook=_Pairs)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRequest(f"The member `{name[:64]}` appears twice.", param=name[:64])
        seen.add(name)


def _read(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, name: str, kind: str) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError:
        raise InvalidRequest(f"`{name}` must be {kind}.", param=name) from None
