"""Anthropic's Messages API, spoken for clients of OpenAI's chat dialect.

Source: the API's reference, versions 2023-06-01 and 2026-10-21 (checked 2026-11). The later one
refuses ``temperature``, ``top_p`` and ``top_k`` and takes its key as a bearer token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from tokenhub.providers.adapter import USER_AGENT, Reply, Target, base_path
from tokenhub.providers.anthropic_reply import content_size, finish_reason, read_message
from tokenhub.providers.anthropic_request import (
    WITHOUT_SAMPLING,
    dropped_members,
    messages_body,
)
from tokenhub.providers.anthropic_stream import AnthropicRelay
from tokenhub.providers.failures import classify
from tokenhub.providers.openai_writer import Spoken, completion
from tokenhub.providers.upstream import BEARER, Heading, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenhub.core.catalog import Provider
    from tokenhub.core.chat import ChatRequest
    from tokenhub.core.clock import Clock
    from tokenhub.core.errors import ProviderError

DEFAULT_VERSION = "2023-06-01"
DROPPED_HEADER = b"x-tokenhub-dropped-params"
_MAX_NAMED = 32  # members named in that header


class AnthropicAdapter:
    """Translates both ways, whole and streamed."""

    dialect = "anthropic"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def request(
        self,
        chat: ChatRequest,
        target: Target,
        credential: bytes | None,
        max_tokens: int | None,
    ) -> UpstreamRequest:
        """The Messages request; ``max_tokens`` is required there, so it always has one."""
        body = messages_body(
            chat,
            model=target.name,
            version=_version(target.provider),
            max_tokens=max_tokens,
            default_max=target.model.max_output_tokens,
        )
        provider = target.provider
        heading = _heading(provider.base_url, _version(provider), chat.stream)
        return UpstreamRequest(heading, body, (), credential)

    def notes(self, chat: ChatRequest, target: Target) -> list[tuple[bytes, bytes]]:
        """The members that have no place in a Messages request."""
        lost = dropped_members(chat, _version(target.provider))
        if not lost:
            return []
        return [(DROPPED_HEADER, ", ".join(lost[:_MAX_NAMED]).encode("ascii"))]

    def reply(self, chat: ChatRequest, target: Target, body: bytes) -> Reply:
        """The answer as a ``chat.completion``."""
        del chat
        message = read_message(body)
        usage = message.usage.usage() if message.usage is not None else None
        finish = finish_reason(message.stop_reason)
        model = message.model or target.name
        details = message.stop_details
        spoken = Spoken(
            text=message.joined("text", "text") or None,
            reasoning=message.joined("thinking", "thinking"),
            refusal=details.explanation if details is not None else None,
            calls=message.calls(),
            finish=finish,
        )
        created = self._clock.now_ms() // 1000
        written = completion(
            spoken, identifier=message.id, model=model, created=created, usage=usage
        )
        return Reply(
            body=written,
            usage=usage,
            finish_reason=finish,
            model=model,
            content_bytes=content_size(message),
        )

    def relay(self, chat: ChatRequest, target: Target) -> AnthropicRelay:
        """A relay that translates event by event."""
        return AnthropicRelay(
            show_usage=chat.include_usage,
            created=self._clock.now_ms() // 1000,
            model=target.name,
        )

    def failure(self, status: int, headers: Mapping[bytes, bytes], body: bytes) -> ProviderError:
        """Classify an error answer."""
        return classify(status, headers, body, now_ms=self._clock.now_ms())


@lru_cache(maxsize=1024)
def _heading(base_url: str, version: str, stream: bool) -> Heading:  # noqa: FBT001  # named, it costs twice
    return Heading(
        b"POST",
        base_path(base_url) + b"/v1/messages",
        [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if stream else b"application/json"),
            (b"user-agent", USER_AGENT),
            _version_header(version),
        ],
        _credential_line(version),
    )


def versioned(provider: Provider) -> tuple[bytes, bytes]:
    """The header that names the API's version."""
    return _version_header(_version(provider))


def credential_line(provider: Provider) -> bytes:
    """How the line of the key begins, as the API's version wants it."""
    return _credential_line(_version(provider))


def _credential_line(version: str) -> bytes:
    return BEARER if version >= WITHOUT_SAMPLING else b"x-api-key: "


def _version_header(version: str) -> tuple[bytes, bytes]:
    return b"anthropic-version", version.encode("ascii", "ignore")


def _version(provider: Provider) -> str:
    return provider.api_version or DEFAULT_VERSION
