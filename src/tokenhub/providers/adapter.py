"""The port between the gateway and a wire format: what every adapter promises.

One adapter per provider type, shared by all requests and without state of its own. It turns a
``ChatRequest`` into the provider's request, and the provider's answer into bytes for a client
that speaks OpenAI's chat dialect:

    request()  → UpstreamRequest          reply()   a whole answer → Reply
    notes()    → headers for the client   relay()   a stream → StreamRelay, fed read by read
                                          failure() an error answer → ProviderError
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokenhub.core.chat import Usage
from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.providers.egress import parse_base_url
from tokenhub.providers.failures import elsewhere, garbage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenhub.core.catalog import Model, Provider
    from tokenhub.core.chat import ChatRequest
    from tokenhub.providers.upstream import UpstreamRequest

USER_AGENT = b"tokenhub"
MAX_EVENT = 8 * 1024 * 1024  # bytes of one stream event; a longer one is garbage

DONE = b"data: [DONE]\n\n"

_PAGE_OR_LIST = frozenset({b"<", b"["})


class Target:
    """Who is to answer. It outlives a request, so the provider's key is no part of it.

    Attributes:
        model, provider: as the catalog has them.
        name: what the provider calls the model.
        written_name: the same in JSON.
    """

    __slots__ = ("model", "name", "provider", "written_name")

    def __init__(self, model: Model, provider: Provider) -> None:
        self.model = model
        self.provider = provider
        self.name = model.name_at_provider
        self.written_name = msgspec.Raw(msgspec.json.encode(self.name))

    def __repr__(self) -> str:
        return f"Target({self.model.id!r} at {self.provider.id!r})"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer.

    ``body`` is for the client, in OpenAI's shape. ``usage`` is None when the provider did not
    report it; then ``content_bytes`` (UTF-8 bytes of everything generated) is what to count.
    ``model`` is the name the provider gave itself.
    """

    body: bytes
    usage: Usage | None
    finish_reason: str | None
    model: str = ""
    content_bytes: int = 0


class StreamRelay(ABC):
    """One stream: the provider's bytes in, whole events for the client out.

    What a broken stream looks like to the client is said here, once for every dialect.

    Args:
        show_usage: whether the client asked for the extra usage chunk.

    Attributes:
        started: bytes for the client have been returned. Until the first generated content the
            relay keeps everything back, so while this is False another provider can still answer.
        failure: the stream failed: an error event, a stream that ended early, or one that is not
            what the protocol says. Set before ``started``, nothing is to be written and the
            caller may go elsewhere; after it, the error event was already returned.
        complete: the protocol's own end was seen. The caller need not read on.
        usage: what the provider reported for the answer so far, None when nothing.
        early: the prompt's tokens, where a provider reports them before the end; they count when
            the stream breaks and ``usage`` never comes. Its completion is 0.
        finish_reason: why generation ended, in OpenAI's words (of the first choice to end).
        content_bytes: UTF-8 bytes of generated text, reasoning and tool arguments relayed.
        malformed: events dropped because they were no JSON objects.
    """

    __slots__ = (
        "_object", "_show_usage", "_unread", "complete", "content_bytes", "early", "failure",
        "finish_reason", "malformed", "started", "usage",
    )  # fmt: skip

    def __init__(self, *, show_usage: bool) -> None:
        self.started = False
        self.failure: ProviderError | None = None
        self.complete = False
        self.usage: Usage | None = None
        self.early: Usage | None = None
        self.finish_reason: str | None = None
        self.content_bytes = 0
        self.malformed = 0
        self._show_usage = show_usage
        self._unread: bytearray | None = bytearray()  # all so far; None once a stream has begun
        self._object = False  # an object came in its place

    @abstractmethod
    def feed(self, data: bytes, chunks: Sequence[bytes] = ()) -> bytes:
        """What to write for one read; never part of an event, b"" when there is nothing yet.

        Args:
            data: what was read.
            chunks: the same in the pieces it was sent in, where they are known.
        """

    @abstractmethod
    def finish(self) -> bytes:
        """The transport ended cleanly: the last bytes, ``[DONE]`` only if the protocol ended too.

        ``[DONE]`` is returned here and nowhere else, so that the caller can close its books
        between the last content and the end the client sees.
        """

    def interrupted(self, message: str) -> bytes:
        """The error event for a stream that broke; b"" when one was already returned."""
        if self.complete or (self.failure is not None and self.started):
            return b""
        if self.failure is None:
            self.failure = ProviderError(FailureClass.RESET, message)
        self.started = True
        return interruption(message)

    def _begin(self, data: bytes) -> bytes:
        """All that has come, as soon as it is seen to begin a stream; until then b"".

        No field of an event begins like a page or like JSON. How the bytes were cut into reads
        makes no difference: a page fails at its first visible byte, an object when it ends.
        """
        unread = self._unread
        assert unread is not None
        first = b"{" if self._object else data.lstrip()[:1]
        if first in _PAGE_OR_LIST:
            return self._fail(elsewhere(first))
        if first and first != b"{":
            self._unread = None
            return b"".join((unread, data)) if unread else data
        self._object = first == b"{"
        unread += data
        if len(unread) > MAX_EVENT:
            return self._fail(garbage("sent an event of more than 8 MiB"))
        return b""

    def _over(self) -> bool:
        """Nothing more will be read: it is complete, or it failed."""
        return self.complete or self.failure is not None

    def _fail(self, failure: ProviderError) -> bytes:
        self.failure = failure
        if not self.started:
            return b""
        code = "upstream_interrupted" if failure.kind == FailureClass.RESET else failure.kind
        return error_event(failure.message, "upstream_error", code)


class Adapter(Protocol):
    """How one wire format is spoken."""

    dialect: str  # "openai" or "anthropic"

    def request(
        self,
        chat: ChatRequest,
        target: Target,
        credential: bytes | None,
        max_tokens: int | None,
    ) -> UpstreamRequest:
        """The provider's request.

        Args:
            chat: what the client asks.
            target: who is to answer.
            credential: the provider's key for this one request; None = it has none.
            max_tokens: caps the output; None leaves the client's.

        Raises:
            InvalidRequest: the provider's API cannot express what the client asks; names the
                member.
        """
        ...

    def notes(self, chat: ChatRequest, target: Target) -> list[tuple[bytes, bytes]]:
        """Headers for the client's answer: what ``request`` had to leave out."""
        ...

    def reply(self, chat: ChatRequest, target: Target, body: bytes) -> Reply:
        """Read a whole answer with status 200.

        Raises:
            ProviderError: GARBAGE when it is not what the protocol says, MISDIRECTED when nothing
                of an API is in it; the class of the error when it is one in spite of its status.
        """
        ...

    def relay(self, chat: ChatRequest, target: Target) -> StreamRelay:
        """A fresh relay for one streamed answer with status 200."""
        ...

    def failure(self, status: int, headers: Mapping[bytes, bytes], body: bytes) -> ProviderError:
        """Why an answer with another status failed. The message is safe to show to a client."""
        ...


def base_path(base_url: str) -> bytes:
    """The path to put before ``/v1/...``; b"" for a provider inside this process."""
    return parse_base_url(base_url).path if base_url else b""


def error_event(message: str, kind: str, code: str) -> bytes:
    """An error inside a stream, as OpenAI's SDKs recognise it."""
    body = {"error": {"message": message, "type": kind, "code": code}}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def interruption(message: str) -> bytes:
    """The error event for a stream that broke; the transport's phrase is made a sentence."""
    sentence = f"{message[:1].upper()}{message[1:].rstrip('.')}."
    return error_event(sentence, "upstream_error", "upstream_interrupted")
