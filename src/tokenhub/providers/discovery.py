"""Ask a provider which models it has: one ``GET <base>/v1/models``, never more than 1 MiB of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import TransportError, UpstreamFailed
from tokenhub.providers.adapter import USER_AGENT, base_path
from tokenhub.providers.catalog_fields import is_model_id
from tokenhub.providers.egress import parse_base_url
from tokenhub.providers.upstream import BEARER, Heading, Timeouts, UpstreamRequest

if TYPE_CHECKING:
    from tokenhub.core.catalog import Provider
    from tokenhub.providers.upstream import Upstream

MAX_BODY = 1024 * 1024
TIMEOUTS = Timeouts(connect=5.0, first_byte=10.0, idle=10.0, total=10.0)

_CONTEXT = ("max_context_tokens", "context_length", "max_model_len", "max_input_tokens")
_anything = msgspec.json.Decoder()


class Discovered(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its provider lists it.

    ``id`` is safe to print: where the provider's id is not ``registrable`` (no model can have
    it as its id) it is escaped and cut. ``max_context_tokens`` is 0 when not said.
    """

    id: str
    registrable: bool
    max_context_tokens: int = 0


class _TooMuch(Exception):
    """The list is over the cap."""


async def discover(
    upstream: Upstream, provider: Provider, credential: bytes | None
) -> list[Discovered]:
    """The provider's models, in its order, each once.

    Raises:
        UpstreamFailed: 502; says why, never in the provider's own words.
    """
    origin = parse_base_url(provider.base_url) if provider.base_url else None
    body = bytearray()

    def collect(data: bytes) -> None:
        body.extend(data)
        if len(body) > MAX_BODY:
            raise _TooMuch

    try:
        request = _request(provider, credential)
        answer = await upstream.send(origin, request, TIMEOUTS, stream=True)
        if answer.status != 200:
            answer.abort()
            raise _failed(provider, _refusal(answer.status))
        await answer.relay(collect)
    except _TooMuch:
        raise _failed(provider, "its list is larger than 1 MiB") from None
    except TransportError as error:
        raise _failed(provider, error.message.rstrip(".")) from None
    return _read(provider, bytes(body))


async def alive(upstream: Upstream, provider: Provider) -> str | None:
    """Whether a provider answers at all; None if it does, else what went wrong.

    No credential is sent: 401 and 403 are answers too.

    Raises:
        TransportError: no answer.
    """
    origin = parse_base_url(provider.base_url) if provider.base_url else None
    answer = await upstream.send(origin, _request(provider, None), TIMEOUTS, stream=True)
    answer.abort()
    if answer.status >= 500 or answer.status == 429:
        return f"It answered a probe with HTTP {answer.status}."
    return None


def _request(provider: Provider, credential: bytes | None) -> UpstreamRequest:
    headers = [(b"accept", b"application/json"), (b"user-agent", USER_AGENT)]
    line = BEARER
    path = base_path(provider.base_url) + b"/v1/models"
    if provider.type == "anthropic":
        from tokenhub.providers.anthropic import (  # noqa: PLC0415  # as its adapter
            credential_line,
            versioned,
        )

        headers.append(versioned(provider))
        line = credential_line(provider)
        # Its lists come in pages; this is the largest.
        path += b"?limit=1000"
    return UpstreamRequest(Heading(b"GET", path, headers, line), credential=credential)


def _read(provider: Provider, body: bytes) -> list[Discovered]:
    try:
        value = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _failed(provider, "its answer is not JSON") from None
    items = value.get("data") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise _failed(provider, "its answer holds no list of models")
    found: dict[str, Discovered] = {}
    for item in items:
        model = _model(item)
        if model is not None:
            found.setdefault(model.id, model)
    return list(found.values())


def _model(item: Any) -> Discovered | None:
    entry = item if isinstance(item, dict) else {"id": item}
    identifier = entry.get("id")
    if not isinstance(identifier, str) or not identifier:
        return None
    context = next((entry[name] for name in _CONTEXT if name in entry), 0)
    if isinstance(context, bool) or not isinstance(context, int) or not 0 < context < 2**53:
        context = 0
    registrable = is_model_id(identifier)
    shown = identifier if registrable else _escaped(identifier)
    return Discovered(id=shown, registrable=registrable, max_context_tokens=context)


def _escaped(text: str) -> str:
    line = text[:200].encode("unicode_escape").decode("ascii")
    return line if len(line) <= 200 else line[:199] + "…"


def _refusal(status: int) -> str:
    if status in {401, 403}:
        return f"it refused the key (status {status})"
    if 300 <= status < 400:
        return f"it answered with a redirect (status {status}), which is not followed"
    return f"it answered with status {status}"


def _failed(provider: Provider, reason: str) -> UpstreamFailed:
    return UpstreamFailed(
        f"The models of provider `{provider.id}` could not be listed: {reason}.",
        status=502,
        code="discovery_failed",
        hint="Check its base URL and its key with `tokenhubctl provider list`.",
    )
