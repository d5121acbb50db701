"""The demo provider: HTTP requests in, scripted answers out; offline, deterministic, honest.

    POST /v1/chat/completions   OpenAI's dialect      GET /v1/models    the scripted behaviours
    POST /v1/messages           Anthropic's dialect   GET /demo/books   its own invoice

The core (``respond``) does no input or output and never waits: it says how long to wait. It is
served in process by ``DemoUpstream`` and, through ``answer``, by any HTTP server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.chat import Usage
from tokenhub.providers.demo.answers import answer_to
from tokenhub.providers.demo.anthropic import AnthropicDialect
from tokenhub.providers.demo.books import Books
from tokenhub.providers.demo.openai import OpenAIDialect
from tokenhub.providers.demo.script import PRESETS, BadScript, script_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenhub.core.clock import Clock
    from tokenhub.providers.demo.answers import Answer, Prompt
    from tokenhub.providers.demo.script import Script

    Dialect = OpenAIDialect | AnthropicDialect

Headers = list[tuple[bytes, bytes]]
FOREVER = 86_400.0  # seconds; longer than any limit of a caller

_JSON: Headers = [(b"content-type", b"application/json")]
_EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
_HTML: Headers = [(b"content-type", b"text/html")]
_GARBAGE = b"<html><body>This is not an answer, as was asked for.</body></html>"
_MESSAGES = {
    400: "The demo model refuses this request, as it was asked to.",
    401: "The demo model does not know this key, as it was asked to.",
    413: "This model's maximum context length is 0 tokens, as was asked for.",
    429: "The demo model is limiting requests, as it was asked to.",
}


class Scripted(msgspec.Struct, kw_only=True):
    """One answer and how to deliver it.

    ``body`` is bytes, or for a stream an iterator of (seconds to wait before, bytes); close it
    when leaving early, so that the books know what was delivered. ``wait`` is the seconds before
    the headers. ``cut``: after the last byte break the connection instead of ending the answer.
    """

    status: int = 200
    headers: Headers = msgspec.field(default_factory=lambda: list(_JSON))
    body: bytes | Iterator[tuple[float, bytes]]
    wait: float = 0.0
    cut: bool = False


class DemoProvider:
    """Answers, misbehaves on request, and keeps books.

    Args:
        clock: for the time stamps in answers.
        books: where answers are charged; a fresh set at the default list prices when None.
        sleep: how ``answer`` waits.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        books: Books | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.books = books or Books()
        self._clock = clock
        self._sleep = sleep
        self._number = 0
        self._turns: dict[str, int] = {}

    async def answer(
        self, method: str, target: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[int, Headers, bytes | Iterator[tuple[float, bytes]], bool]:
        """For an HTTP server: status, headers, body or stream, and whether to cut it off.

        Waits as long as the script says before it returns. ``headers`` have lower-case names.
        """
        scripted = self.respond(method, target, headers, body)
        if scripted.wait:
            await self._sleep(scripted.wait)
        return scripted.status, scripted.headers, scripted.body, scripted.cut

    def respond(
        self, method: str, target: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> Scripted:
        """The answer to one HTTP request."""
        path = target.partition(b"?")[0]
        if method == "GET" and path == b"/v1/models":
            return Scripted(body=msgspec.json.encode(_model_list()))
        if method == "GET" and path == b"/demo/books":
            return Scripted(body=msgspec.json.encode(self.books.statement()))
        if method == "POST" and path == b"/v1/chat/completions":
            return self._chat(OpenAIDialect(), headers, body)
        if method == "POST" and path == b"/v1/messages":
            return self._chat(AnthropicDialect(), headers, body)
        return Scripted(status=404, body=OpenAIDialect().error(404, "There is nothing here."))

    def _chat(self, dialect: Dialect, headers: dict[bytes, bytes], body: bytes) -> Scripted:
        try:
            prompt = dialect.read(_decode(body), headers)
            script = script_for(prompt.model, prompt.wish)
        except BadScript as error:
            status = 404 if "does not exist" in str(error) else 400
            return Scripted(status=status, body=dialect.error(status, str(error)))
        except (TypeError, KeyError, AttributeError) as error:
            words = f"The request has a member of the wrong shape ({error})."
            return Scripted(status=400, body=dialect.error(400, words))
        account = self.books.account(prompt.model)
        account.requests += 1
        if refusal := self._refusal(dialect, prompt, script):
            account.failed += 1
            return refusal
        self._number += 1
        return self._performed(dialect, prompt, script)

    def _refusal(self, dialect: Dialect, prompt: Prompt, script: Script) -> Scripted | None:
        wait = FOREVER if script.hang else script.delay_ms / 1000
        status = script.status
        if script.fail_every:
            turn = self._turns.get(prompt.model, 0)
            self._turns[prompt.model] = turn + 1
            status = status or (500 if turn % script.fail_every == 0 else 0)
        if status:
            words = _MESSAGES.get(status, "The demo model fails, as it was asked to.")
            after = script.retry_after
            extra = [] if after is None else [(b"retry-after", b"%g" % after)]
            body = dialect.error(status, words)
            return Scripted(status=status, headers=_JSON + extra, body=body, wait=wait)
        if script.garbage:
            return Scripted(headers=_HTML, body=_GARBAGE, wait=wait)
        if script.hang:
            return Scripted(body=b"", wait=wait)
        return None

    def _performed(self, dialect: Dialect, prompt: Prompt, script: Script) -> Scripted:
        answer = answer_to(prompt, length=script.tokens, reasoning=script.reasoning)
        if script.refuse:
            answer.finish = "content_filter"
        usage = _usage(prompt, answer, script)
        wait = script.delay_ms / 1000
        if prompt.stream:
            return self._stream(dialect, prompt, script, answer, usage)
        created = self._clock.now_ms() // 1000
        shown = usage if script.usage else None
        body = dialect.whole(prompt, answer, shown, self._number, created)
        cut = script.cut_after >= 0
        self.books.charge(prompt.model, usage, reported=script.usage and not cut)
        return Scripted(body=body[: len(body) // 2] if cut else body, wait=wait, cut=cut)

    def _stream(
        self, dialect: Dialect, prompt: Prompt, script: Script, answer: Answer, usage: Usage
    ) -> Scripted:
        shown = usage if script.usage else None
        created = self._clock.now_ms() // 1000
        events = list(dialect.events(prompt, answer, shown, self._number, created))
        if script.malformed:
            events.insert(2, (dialect.broken_event(), 0))
        if script.done:
            events.append((dialect.end(), 0))
        cut = 0 <= script.cut_after < len(events)
        told = script.usage and (prompt.show_usage or isinstance(dialect, AnthropicDialect))
        delivery = self._delivery(dialect, script, events, prompt.model, usage, told=told)
        return Scripted(headers=_EVENTS, body=delivery, wait=script.delay_ms / 1000, cut=cut)

    def _delivery(
        self,
        dialect: Dialect,
        script: Script,
        events: list[tuple[bytes, int]],
        model: str,
        usage: Usage,
        *,
        told: bool,
    ) -> Iterator[tuple[float, bytes]]:
        """The events with their pauses; charges what was delivered however it ends."""
        produced = 0
        whole = False
        telling = len(events) - (2 if script.done else 1)  # the event that carries the usage
        try:
            for number, (event, tokens) in enumerate(events):
                pause = script.chunk_ms / 1000 if number else 0.0
                if number == script.cut_after:
                    return
                if number == script.stall_after:
                    yield FOREVER, b""
                    return
                if number == script.error_after:
                    yield pause, dialect.error_event("The demo model broke, as it was asked to.")
                    return
                produced += tokens
                yield pause, event
                whole = whole or number >= telling
        finally:
            if not whole:
                usage.completion = min(usage.completion, produced)
                usage.reasoning = min(usage.reasoning, produced)
            self.books.charge(model, usage, reported=told and whole)


def _usage(prompt: Prompt, answer: Answer, script: Script) -> Usage:
    cached = min(script.cached, prompt.tokens)
    return Usage(
        prompt=prompt.tokens,
        completion=answer.size,
        cached_read=cached,
        cached_write=min(script.cache_write, prompt.tokens - cached),
        reasoning=len(answer.reasoning),
    )


def _decode(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadScript("The body is not JSON.") from None
    if not isinstance(value, dict):
        raise BadScript("The body must be a JSON object.")
    return value


def _model_list() -> dict[str, Any]:
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "tokenhub-demo"}
        for name in PRESETS
    ]
    return {"object": "list", "data": data}
