"""Upper bounds: the most a request can cost, known before it is sent.

A byte-level tokenizer never makes more tokens than there are bytes of text, and a request's JSON
is longer than the text and the markers a provider makes of it. So ``len(body)`` bounds the prompt
in no time. What is not text is taken out and bounded by itself: images and files by fixed caps,
audio by its size. What no bound can know (a provider's own web search, Unicode that a tokenizer
first expands) ends as the ledger's overrun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.chat import Usage
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.money import FEMTO_PER_NANO, MAX_COST, variant

if TYPE_CHECKING:
    from tokenhub.core.catalog import Model, Prices
    from tokenhub.core.chat import ChatRequest
    from tokenhub.core.members import Turn

FLOOR_TOKENS = 16
"""An answer is never cut shorter than this to fit a budget; the request is refused instead."""

DEFAULT_OUTPUT_TOKENS = 16_384
"""Output assumed where neither the client nor the catalog names a limit."""

SHARE = 4
"""A request that names no limit may hold one part in this many of what is left ..."""

SHARE_FLOOR_TOKENS = 4_096
"""... or what this many tokens cost, whichever is more."""

IMAGE_TOKENS = 10_240
"""Cap per image: OpenAI bills at most 10,000 patches, the others less (their image guides)."""

_IMAGE_TOKENS_OF = {
    # 2833 + 5667 per 512-pixel tile, at most 8 tiles (OpenAI, images and vision guide).
    "gpt-4o-mini": 48_169,
}
FILE_TOKENS = 200_000  # per file where the model's context size is unknown
FIXED_TOKENS = 64  # markers around a conversation
TOOL_TOKENS = 1_024  # the hidden instructions some providers add when tools are offered
# The thinnest speech codec sends some 1000 base64 characters a second; no provider makes more
# than 32 tokens of one.
AUDIO_CHARS_PER_TOKEN = 8

BYTES_PER_TOKEN = 4
"""For counting where a provider does not: English text and code have about so many."""

_MARKS = (b'"image', b'"input_', b'"file"', b'"document"', b'"video_url"')
_MAX_TIER = 32
_HALF = FEMTO_PER_NANO // 2
_SHORT = 4_096  # bytes; up to here two searches are cheaper than reading the structure
_TEXT_OR_NULL = frozenset(b'"n')
_BRACKET = ord("[")
_BACKSLASH = ord("\\")
# Members of a chat request that say nothing of caches.
_PLAIN_MEMBERS = frozenset((
    "frequency_penalty", "max_completion_tokens", "max_tokens", "messages", "model", "n",
    "presence_penalty", "seed", "service_tier", "stop", "store", "stream", "stream_options",
    "temperature", "top_p", "user",
))  # fmt: skip
_IMAGES = frozenset({"image_url", "image", "input_image"})
_FILES = frozenset({"file", "input_file", "document", "video_url"})
_AUDIO = frozenset({"input_audio"})
_MEDIA = _IMAGES | _FILES | _AUDIO
_PAYLOADS = frozenset({"data", "file_data"})


class Measure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A request's size, taken once and good for every candidate.

    Attributes:
        text: upper bound of its text tokens.
        images, files: how many there are.
        audio: upper bound of its audio tokens.
        hour: it may ask for one-hour cache writes.
        tier: the service tier it asks for, "" if none.
    """

    text: int
    images: int = 0
    files: int = 0
    audio: int = 0
    hour: bool = False
    tier: str = ""


class Bound(msgspec.Struct, frozen=True, gc=False):
    """The most one attempt can cost.

    Attributes:
        nano: nano-dollars; 0 when ``priced`` is False.
        priced: the model has a known price.
        prompt: upper bound of the prompt tokens.
        output: output tokens paid for, over all choices.
        max_tokens: the limit to send per choice, None = leave the client's own.
        measure: what it was made from; counts the prompt if the provider does not.
    """

    nano: int
    priced: bool
    prompt: int
    output: int
    max_tokens: int | None
    measure: Measure


def measure(body: bytes, *, tools: bool = False, tier: str = "") -> Measure:
    """The size of a request body in JSON, whatever its endpoint.

    Plain text costs two searches of the body. Only one that holds media, or an escaped ASCII
    character (with which media could hide), is decoded.

    Raises:
        InvalidRequest: it had to be decoded and cannot be.
    """
    text = len(body) + FIXED_TOKENS + (TOOL_TOKENS if tools else 0)
    escaped = _escaped(body)
    if not escaped and b'"type"' not in body:
        return Measure(text=text, tier=tier)
    hour = escaped or b'"1h"' in body
    if not escaped and not any(mark in body for mark in _MARKS):
        return Measure(text=text, hour=hour, tier=tier)
    media = _Media()
    try:
        media.walk(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # A text that nobody has looked into yet may be no UTF-8.
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    return Measure(
        text=text - media.size,
        images=media.images,
        files=media.files,
        audio=-(-media.audio // AUDIO_CHARS_PER_TOKEN),
        hour=hour,
        tier=tier,
    )


def _escaped(body: bytes) -> bool:
    # A single byte is found some fifty times as fast as several, and a number without the
    # exception that CPython makes, and drops, for `in` with bytes.
    return _BACKSLASH in body and b"\\u00" in body


class _Text(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A part of a message that is nothing but text."""

    text: msgspec.Raw


_texts = msgspec.json.Decoder(list[_Text])


def _is_text(turns: list[Turn]) -> bool:
    """Whether nothing in the messages is to be looked at or listened to, nor sets a cache."""
    for turn in turns:
        content = turn.content
        if (first := memoryview(content)[0]) in _TEXT_OR_NULL:
            continue
        if first != _BRACKET:
            return False
        try:
            _texts.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
    return True


def measure_chat(chat: ChatRequest) -> Measure:
    """The size of a chat request: by searching it or, where that says little, by structure."""
    members = chat.members
    tier = ""
    if (raw := members.get("service_tier")) is not None:
        name = bytes(raw).strip(b'"')
        tier = name.decode("ascii", "replace") if len(name) <= _MAX_TIER else ""
    tools = "tools" in members or "functions" in members
    body = chat.body
    text = len(body) + FIXED_TOKENS + (TOOL_TOKENS if tools else 0)
    if (
        len(body) <= _SHORT
        and isinstance(body, bytes)
        and body.find(b'"type"') < 0
        and (_BACKSLASH not in body or not _escaped(body))
    ):
        return Measure(text=text, tier=tier)
    if "input" not in members and (turns := chat.turns()) is not None and _is_text(turns):
        return Measure(text=text, hour=_names_hour(members), tier=tier)
    return measure(bytes(body), tools=tools, tier=tier)


def _names_hour(members: dict[str, msgspec.Raw]) -> bool:
    """Whether something beside the messages may ask for one-hour cache writes."""
    for name in members.keys() - _PLAIN_MEMBERS:
        raw = bytes(members[name])
        if b'"1h"' in raw or _escaped(raw):
            return True
    return False


def bound(
    size: Measure,
    model: Model,
    *,
    max_tokens: int | None = None,
    choices: int = 1,
    room: int | None = None,
    output: bool = True,
) -> Bound:
    """The most an attempt at ``model`` can cost, with its output lowered to fit ``room``.

    Args:
        size: of the request.
        model: whose prices, context and output limit count.
        max_tokens: the client's own limit per choice.
        choices: how many answers it asks for.
        room: nano-dollars left to spend; None = no budget.
        output: False where the endpoint generates nothing (embeddings).

    When even 16 tokens do not fit, the result costs more than ``room``: the caller refuses.
    """
    prices = model.prices
    prompt = size.text
    images = 0
    media = size.images or size.audio or size.files
    if media:
        images = size.images and size.images * _image_tokens(model.name_at_provider)
        prompt += images + size.audio + size.files * (model.max_context_tokens or FILE_TOKENS)
    tokens = _wanted(model, max_tokens) if output else 0
    if prices.input is None:
        return Bound(0, False, prompt, tokens * choices, None, size)
    if media or size.tier or prices.tiers:
        fixed, each = _rates(size, images, prompt, prices)
    else:
        text, hour, each = prices.dearest
        fixed = prompt * (hour if size.hour else text) + prices.request
    each *= choices
    femto = fixed + each * tokens
    limit = None
    if room is not None and each and output:
        asked = max_tokens is not None
        if femto > (room if asked else room // SHARE) * FEMTO_PER_NANO:
            tokens = _affordable(room, fixed, each, tokens, asked=asked)
            femto = fixed + each * tokens
        if max_tokens is None or tokens < max_tokens:
            limit = tokens
    nano = (femto + _HALF) // FEMTO_PER_NANO
    return Bound(min(nano, MAX_COST), True, prompt, tokens * choices, limit, size)


def counted(size: Measure, content_bytes: int) -> Usage:
    """Usage where the provider reported none: from the bytes sent and relayed."""
    text = size.text // BYTES_PER_TOKEN
    return Usage(
        prompt=text + size.images * (IMAGE_TOKENS // 8) + size.audio // BYTES_PER_TOKEN,
        completion=-(-content_bytes // BYTES_PER_TOKEN),
        source="counted",
    )


def _wanted(model: Model, max_tokens: int | None) -> int:
    limit = model.max_output_tokens
    if max_tokens is None:
        return limit or DEFAULT_OUTPUT_TOKENS
    return min(max_tokens, limit) if limit else max_tokens


def _affordable(room: int, fixed: int, each: int, wanted: int, *, asked: bool) -> int:
    most = max(room * FEMTO_PER_NANO - fixed, 0) // each
    if not asked:
        share = max(room // SHARE * FEMTO_PER_NANO - fixed, 0) // each
        most = min(most, max(share, SHARE_FLOOR_TOKENS))
    return max(min(most, wanted), min(FLOOR_TOKENS, wanted))


def _rates(size: Measure, images: int, prompt: int, prices: Prices) -> tuple[int, int]:
    """Femto-dollars of the whole prompt, and of one output token, at the dearest that can apply."""
    reachable = [prices]
    if size.tier and prices.variants:
        reachable.append(variant(prices, size.tier))
    for standard in reachable[:]:
        reachable += [tier for start, tier in standard.tiers if prompt > start]
    fixed = each = 0
    for one in reachable:
        text, hour, answer = one.dearest
        if size.hour:
            text = hour
        femto = (prompt - images - size.audio) * text + one.request
        femto += images * max(text, one.image_in or 0) + size.audio * max(text, one.audio_in or 0)
        fixed = max(fixed, femto)
        each = max(each, answer)
    return fixed, each


def _image_tokens(name: str) -> int:
    for prefix, tokens in _IMAGE_TOKENS_OF.items():
        if prefix in name:
            return tokens
    return IMAGE_TOKENS


class _Media:
    """Counts the parts of a conversation that are not text, and the characters of their payload.

    Only parts of a message's content are taken for media: the same object in a tool's schema is
    text to the provider, and must be text here.
    """

    def __init__(self) -> None:
        self.images = 0
        self.files = 0
        self.audio = 0
        self.size = 0

    def walk(self, request: Any) -> None:
        if type(request) is not dict:
            return
        stack = [request.get("messages"), request.get("input")]
        while stack:
            items = stack.pop()
            if type(items) is not list:
                continue
            parts = [item for item in items if type(item) is dict and not self._takes(item)]
            stack.extend(part.get("content") for part in parts)

    def _takes(self, part: dict[str, Any]) -> bool:
        kind = part.get("type")
        if type(kind) is not str or kind not in _MEDIA:
            return False
        size = _payload(part)
        self.size += size
        if kind in _AUDIO:
            self.audio += size
        elif kind in _IMAGES:
            self.images += 1
        else:
            self.files += 1
        return True


def _payload(part: dict[str, Any]) -> int:
    """Characters of base64 in a media part; its other text stays text."""
    total = 0
    stack: list[tuple[str, Any]] = [("", part)]
    while stack:
        name, value = stack.pop()
        if type(value) is str:
            if name in _PAYLOADS or value.startswith("data:"):
                total += len(value)
        elif type(value) is dict:
            stack.extend(value.items())
    return total
