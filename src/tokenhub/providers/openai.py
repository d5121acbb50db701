"""The OpenAI wire format: types ``openai`` and ``vllm`` (any OpenAI-compatible server), ``demo``.

Client and provider speak the same dialect here, so a body travels as it is, with only the members
changed that must be, and an answer travels byte for byte.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.providers.adapter import USER_AGENT, Reply, Target, base_path
from tokenhub.providers.failures import classify, classify_event, garbage, no_answer
from tokenhub.providers.openai_events import UsageObject
from tokenhub.providers.openai_stream import OpenAIRelay
from tokenhub.providers.upstream import Heading, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenhub.core.chat import ChatRequest
    from tokenhub.core.clock import Clock
    from tokenhub.core.errors import ProviderError

_ASK_USAGE = msgspec.Raw(b'{"include_usage":true}')
_options = msgspec.json.Decoder(dict[str, msgspec.Raw])
_true = msgspec.Raw(b"true")
_anything = msgspec.json.Decoder()


class _Message(msgspec.Struct, gc=False):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: UsageObject | None = None
    model: str | None = None
    error: Any = None
    service_tier: Any = None


_answer = msgspec.json.Decoder(_Answer)


class OpenAIAdapter:
    """Relays OpenAI's chat dialect.

    Args:
        clock: for ``Retry-After`` dates.
        limit_name: the member that caps the output when the client gave none; OpenAI's reasoning
            models refuse ``max_tokens``, many compatible servers know nothing else.
    """

    dialect = "openai"

    def __init__(self, clock: Clock, *, limit_name: str = "max_completion_tokens") -> None:
        self._clock = clock
        self._limit_name = limit_name

    def request(
        self,
        chat: ChatRequest,
        target: Target,
        credential: bytes | None,
        max_tokens: int | None,
    ) -> UpstreamRequest:
        """The client's body with model, output cap and the wish for usage set."""
        changes: dict[str, msgspec.Raw] = {}
        if chat.model != target.name:
            changes["model"] = target.written_name
        if "max_completion_tokens" in chat.members and "max_tokens" in chat.members:
            # Some servers know one name alone: both must keep to what was reserved.
            own = chat.max_tokens
            max_tokens = min(own, max_tokens) if own and max_tokens else own or max_tokens
        if max_tokens is not None:
            self._cap(chat, max_tokens, changes)
        if chat.stream and not chat.include_usage:
            changes["stream_options"] = _with_usage(chat)
        heading = _heading(target.provider.base_url, chat.stream)
        return UpstreamRequest(heading, chat.spliced(changes), (), credential)

    def notes(self, chat: ChatRequest, target: Target) -> list[tuple[bytes, bytes]]:
        """Nothing is ever left out in the provider's own dialect."""
        del chat, target
        return []

    def reply(self, chat: ChatRequest, target: Target, body: bytes) -> Reply:
        """The answer as it came, its usage and finish reason read."""
        del chat, target
        try:
            answer = _answer.decode(body)
        except msgspec.ValidationError as error:
            odd = _odd_answer(body)
            if odd is None:
                raise _unreadable(error, body) from None
            answer = odd
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(error, body) from None
        if answer.error is not None:
            raise classify_event(body)
        if not answer.choices:
            raise garbage("answered without `choices`")
        said = answer.usage
        if said is None or (said.prompt_tokens is None and said.says_nothing()):
            usage, size = None, _content_bytes(answer.choices)
        else:
            usage, size = said.tokens(answer.service_tier), 0
        return Reply(
            body=body,
            usage=usage,
            finish_reason=answer.choices[0].finish_reason,
            model=answer.model or "",
            content_bytes=size,
        )

    def relay(self, chat: ChatRequest, target: Target) -> OpenAIRelay:
        """A relay that keeps the usage chunk to ourselves when the client did not ask for it."""
        del target
        return OpenAIRelay(show_usage=chat.include_usage)

    def failure(self, status: int, headers: Mapping[bytes, bytes], body: bytes) -> ProviderError:
        """Classify an error answer."""
        return classify(status, headers, body, now_ms=self._clock.now_ms())

    def _cap(self, chat: ChatRequest, cap: int, changes: dict[str, msgspec.Raw]) -> None:
        limit = msgspec.Raw(b"%d" % cap)
        named = [name for name in ("max_completion_tokens", "max_tokens") if chat.has(name)]
        for name in named:
            # Both may be there with different values; each alone must hold.
            if msgspec.json.decode(chat.members[name], type=int) > cap:
                changes[name] = limit
        if not named:
            changes[self._limit_name] = limit


def _odd_answer(body: bytes) -> _Answer | None:
    """The answer, its odd members left out; None when it holds no list of choices."""
    try:
        value = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        return None
    usage, model = value.get("usage"), value.get("model")
    return _Answer(
        choices=[_odd_choice(one) for one in choices],
        usage=UsageObject.of(usage) if isinstance(usage, dict) else None,
        model=model if isinstance(model, str) else None,
        error=value.get("error"),
        service_tier=value.get("service_tier"),
    )


def _odd_choice(choice: dict[str, Any]) -> _Choice:
    message, reason = choice.get("message"), choice.get("finish_reason")
    return _Choice(
        # Its JSON is at least as long as what was said, so this never counts too little.
        message=_Message(content=message),
        finish_reason=reason if isinstance(reason, str) else None,
    )


def _unreadable(error: Exception, body: bytes) -> ProviderError:
    if isinstance(error, msgspec.ValidationError):
        return no_answer(body, f"answered with a body that is no chat completion ({error})")
    return no_answer(body, "answered with a body that is not JSON")


def _with_usage(chat: ChatRequest) -> msgspec.Raw:
    if not chat.has("stream_options"):
        return _ASK_USAGE
    options = _options.decode(chat.members["stream_options"])
    return msgspec.Raw(msgspec.json.encode(options | {"include_usage": _true}))


@lru_cache(maxsize=1024)
def _heading(base_url: str, stream: bool) -> Heading:  # noqa: FBT001  # named, it costs twice
    return Heading(
        b"POST",
        base_path(base_url) + b"/v1/chat/completions",
        [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if stream else b"application/json"),
            (b"user-agent", USER_AGENT),
        ],
    )


def _content_bytes(choices: list[_Choice]) -> int:
    size = 0
    for choice in choices:
        if (said := choice.message) is None:
            continue
        for part in (said.content, said.refusal, said.reasoning_content or said.reasoning):
            size += _size(part)
        size += _size(said.tool_calls)
    return size


def _size(value: Any) -> int:
    if value is None:
        return 0
    return len(value.encode()) if isinstance(value, str) else len(msgspec.json.encode(value))
