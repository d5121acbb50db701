"""The chat vocabulary: what routing reads of a request, and what an answer used.

``ChatRequest`` holds the body's top-level members as raw JSON slices; only what routing needs is
decoded. Where client and provider speak the same dialect nothing else ever is; where they differ,
``conversation`` has the full decoding.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenhub.core.errors import InvalidRequest
from tokenhub.core.members import (
    LONG,
    Spliced,
    Turn,
    read_object,
    read_turns,
    splice,
    split_messages,
)

MAX_MODEL_NAME = 256
MAX_CHOICES = 128
_BRACKET = ord("[")


class _Routed(msgspec.Struct, gc=False):
    """What routing reads of a request."""

    model: str = ""
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None


_routed = msgspec.json.Decoder(_Routed)
_flag = msgspec.json.Decoder(bool | None)
_count = msgspec.json.Decoder(int | None)
_TYPES: tuple[tuple[str, msgspec.json.Decoder[Any], str], ...] = (
    ("model", msgspec.json.Decoder(str), "text"),
    ("stream", _flag, "true or false"),
    ("stream_options", msgspec.json.Decoder(dict[str, Any] | None), "an object"),
    ("max_completion_tokens", _count, "a whole number"),
    ("max_tokens", _count, "a whole number"),
    ("n", _count, "a whole number"),
)


class Usage(msgspec.Struct, kw_only=True, gc=False):
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
        body: the bytes as received, perhaps as a view of more.
        members: top-level members, name → raw JSON value.
        model: the requested name, "" when absent.
        stream, include_usage: what the client asked for.
        max_tokens: the client's output limit (``max_completion_tokens`` first), None if none.
        choices: ``n``.
    """

    __slots__ = (
        "_turns", "body", "choices", "include_usage", "max_tokens", "members", "model", "stream",
    )  # fmt: skip

    def __init__(  # what was read
        self,
        body: bytes | memoryview,
        members: dict[str, msgspec.Raw],
        turns: list[Turn] | None,
        model: str,
        max_tokens: int | None,
        choices: int,
        stream: bool,  # noqa: FBT001
        include_usage: bool,  # noqa: FBT001
    ) -> None:
        self.body = body
        self.members = members
        self._turns = turns
        self.model = model
        self.max_tokens = max_tokens
        self.choices = choices
        self.stream = stream
        self.include_usage = include_usage

    def has(self, name: str) -> bool:
        """Whether a member is there and not null."""
        value = self.members.get(name)
        return value is not None and (len(value) != 4 or bytes(value) != b"null")

    def turns(self) -> list[Turn] | None:
        """The messages by structure; None when one has a member that a ``Turn`` has not."""
        if self._turns is not None:
            return self._turns
        return read_turns(self.members["messages"])

    def let_go(self) -> None:
        """Keep no text of it: nobody will be asked (again), and its answer may take long."""
        self.body = b""
        self.members = {}
        self._turns = None

    def spliced(self, changes: dict[str, msgspec.Raw]) -> bytes | Spliced:
        """The body with members replaced or added; all other values byte-exact."""
        if changes:
            return splice(self.members, changes)
        return Spliced(self.body) if isinstance(self.body, memoryview) else self.body


def parse_chat(body: bytes | memoryview) -> ChatRequest:
    """Parse the body of a chat request.

    Raises:
        InvalidRequest: not JSON, not an object, nested too deeply, a duplicate member, or a
            member that routing reads has the wrong type; the message names the member.
    """
    turns = None
    if len(body) > LONG and (split := split_messages(body)) is not None:
        members, around, turns = split
    else:
        members, around = read_object(body)
    messages = memoryview(members.get("messages", b" "))
    if messages[0] != _BRACKET:
        raise _no_list(members)
    if len(messages) < 64 and not bytes(messages).strip(b"[] \t\r\n"):
        raise InvalidRequest(
            "`messages` must hold at least one message.", param="messages", code="empty_array"
        )
    try:
        routed = _routed.decode(around)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _wrong_type(members) from None
    if len(routed.model) > MAX_MODEL_NAME:
        raise InvalidRequest(
            "`model` is longer than 256 characters.", param="model", code="string_above_max_length"
        )
    limit, tokens, choices = routed.max_completion_tokens, routed.max_tokens, routed.n
    if limit is not None and limit < 1:
        raise _too_low("max_completion_tokens")
    if tokens is not None and tokens < 1:
        raise _too_low("max_tokens")
    if choices is None:
        choices = 1
    elif not 1 <= choices <= MAX_CHOICES:
        raise InvalidRequest("`n` must be between 1 and 128.", param="n")
    options = routed.stream_options
    return ChatRequest(
        body,
        members,
        turns,
        routed.model,
        tokens if limit is None else limit,
        choices,
        routed.stream is True,
        options is not None and options.get("include_usage") is True,
    )


def _no_list(members: dict[str, msgspec.Raw]) -> InvalidRequest:
    name = "messages"
    if name not in members:
        return InvalidRequest(
            f"`{name}` is missing.", param=name, code="missing_required_parameter"
        )
    return InvalidRequest(f"`{name}` must be a list of messages.", param=name, code="invalid_type")


def _too_low(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"`{name}` must be at least 1.", param=name, code="integer_below_min_value"
    )


def _wrong_type(members: dict[str, msgspec.Raw]) -> InvalidRequest:
    for name, decoder, kind in _TYPES:
        try:
            decoder.decode(members.get(name, b"null" if name != "model" else b'""'))
        except msgspec.ValidationError:
            return InvalidRequest(f"`{name}` must be {kind}.", param=name, code="invalid_type")
        except RecursionError:
            return InvalidRequest("The body is nested too deeply.", code="invalid_json")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json")
    # Each can be read by itself: together they were one level too deep.
    return InvalidRequest("The body is nested too deeply.", code="invalid_json")
