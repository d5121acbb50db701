from __future__ import annotations

import asyncio
import json

import pytest

from tokenhub.core.catalog import Provider
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import FailureClass, TransportError, UpstreamFailed
from tokenhub.providers.demo import PRESETS, DemoProvider, DemoUpstream
from tokenhub.providers.discovery import discover
from tokenhub.providers.upstream import Answer

PROVIDER = Provider(id="p", type="openai", base_url="https://api.example.com/v1")


class Scripted:
    """An upstream of one answer."""

    def __init__(self, status=200, body=b"", *, error=None):
        self.status, self.body, self.error = status, body, error
        self.request = None

    async def send(self, origin, request, timeouts, *, stream):
        await asyncio.sleep(0)
        self.origin, self.request, self.timeouts = origin, request, timeouts
        if self.error is not None:
            raise self.error
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return Answer(self.status, {}, body)


async def failure(**options):
    with pytest.raises(UpstreamFailed) as caught:
        await discover(Scripted(**options), PROVIDER, b"sk-1")
    assert caught.value.status == 502
    return caught.value


async def test_the_demo_providers_models():
    found = await discover(
        DemoUpstream(DemoProvider(SystemClock())), Provider(id="d", type="demo"), None
    )
    assert [model.id for model in found] == list(PRESETS)


@pytest.mark.parametrize("wrap", [lambda items: {"object": "list", "data": items}, list])
async def test_a_list_bare_or_wrapped(wrap):
    items = [{"id": "a"}, {"id": "b", "context_length": 8192}, {"id": "a"}, "c", 3, {}, {"id": ""}]
    found = await discover(Scripted(body=wrap(items)), PROVIDER, b"sk-1")
    assert [(m.id, m.max_context_tokens) for m in found] == [("a", 0), ("b", 8192), ("c", 0)]


async def test_the_request_of_each_type():
    openai = Scripted(body=[])
    await discover(openai, PROVIDER, b"sk-1")
    assert openai.request.heading.target == b"/v1/models"
    assert openai.origin.host == "api.example.com"
    assert dict(openai.request.headers())[b"authorization"] == b"Bearer sk-1"
    assert openai.timeouts.total == 10
    claude = Scripted(body=[])
    await discover(claude, Provider(id="c", type="anthropic", base_url="https://x.com"), b"k")
    assert claude.request.heading.target == b"/v1/models?limit=1000"
    headers = dict(claude.request.headers())
    assert (headers[b"x-api-key"], headers[b"anthropic-version"]) == (b"k", b"2023-06-01")


@pytest.mark.parametrize(
    "identifier",
    [
        "a b",
        "x\x1b[31m",
        "ü",
        "<script>",
        "a" * 201,
        "a\nb",
        "' OR '1'='1",
        "%2e",
        "\u202e",
        "..",
        "-x",
    ],
)
async def test_hostile_ids_are_shown_escaped_and_marked(identifier):
    (found,) = await discover(Scripted(body=[{"id": identifier}]), PROVIDER, None)
    assert not found.registrable
    assert found.id.isprintable()
    assert found.id.removesuffix("…").isascii()
    assert len(found.id) <= 200


@pytest.mark.parametrize("identifier", ["gpt-5", "a/b:3.1", "/m.gguf", "@cf/m", "x" * 200])
async def test_ordinary_ids_can_be_registered(identifier):
    (found,) = await discover(Scripted(body=[{"id": identifier}]), PROVIDER, None)
    assert (found.id, found.registrable) == (identifier, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"status": 401, "body": b"SECRET"}, "refused the key"),
        ({"status": 404, "body": b"SECRET"}, "status 404"),
        ({"status": 302, "body": b"SECRET"}, "redirect"),
        ({"body": b"<html>SECRET"}, "not JSON"),
        ({"body": b""}, "not JSON"),
        ({"body": b"\xff"}, "not JSON"),
        ({"body": b"[" * 100_000}, "not JSON"),
        ({"body": {"models": ["SECRET"]}}, "no list"),
        ({"body": {"data": "SECRET"}}, "no list"),
        ({"body": b" " * (1024 * 1024 + 1)}, "1 MiB"),
        (
            {"error": TransportError(FailureClass.CONNECT, "Connection refused.", sent=False)},
            "Connection refused",
        ),
    ],
)
async def test_every_failure_has_a_reason_and_never_the_providers_words(options, words):
    error = await failure(**options)
    assert words in error.message
    assert "SECRET" not in error.message
    assert "`p`" in error.message


@pytest.mark.parametrize("context", [-1, 0, True, "8192", 1.5, 2**60, None])
async def test_a_senseless_context_size_is_none(context):
    (found,) = await discover(
        Scripted(body=[{"id": "a", "context_length": context}]), PROVIDER, None
    )
    assert found.max_context_tokens == 0
