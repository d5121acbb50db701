"""Call: what is known of one request while it is under way; it ends as the journal's row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import msgspec

from tokenhub.core.errors import FailureClass, HubError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.access.keys import Grant
    from tokenhub.core.chat import ChatRequest, Usage
    from tokenhub.core.decision import Attempt, Candidate, Decision
    from tokenhub.core.errors import ProviderError


CLIENT_LEFT = 499  # as web servers log it
ATTEMPTS = b"x-tokenhub-attempts"
FAILED_OVER = "routed-failover"


def reason_of(decision: Decision, model_id: str) -> str:
    """Why a model answered: as it was decided, or since the choice failed or was slower."""
    if not model_id or model_id == decision.chosen.model.id:
        return decision.reason
    return FAILED_OVER


class Malformed(NamedTuple):
    """How many events of an attempt's stream were dropped because they were no JSON objects."""

    model_id: str
    provider_id: str
    events: int


class ClientStream(Protocol):
    """The client's side of a streamed answer."""

    on_pause: Callable[[], None] | None
    on_resume: Callable[[], None] | None

    @property
    def paused(self) -> bool:
        """Whether the client's side is full."""
        ...

    def write(self, data: bytes) -> None:
        """Send one piece; nothing for b""."""
        ...

    def end(self, data: bytes = b"") -> None:
        """The answer is complete, with ``data`` as its last piece."""
        ...

    def abort(self) -> None:
        """Close so that the answer cannot be taken for complete."""
        ...


class ClientRequest(Protocol):
    """A request as the edge hands it over."""

    id: str
    client_id: str
    body: bytes | memoryview
    at_ms: int
    peer: str
    headers: dict[bytes, bytes]

    def open_stream(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> ClientStream:
        """Send the head of a streamed answer."""
        ...


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer for the client, status 200."""

    body: bytes
    headers: Sequence[tuple[bytes, bytes]]

    status: ClassVar[int] = 200
    content_type: ClassVar[bytes] = b"application/json"


class Call:
    """One request under way.

    Attributes:
        request: as the edge handed it over.
        grant: what the caller's key permits.
        chat: the parsed body.
        endpoint: the route's path, a closed set.
        started_ms, began: wall time and monotonic seconds of its start.
        decision: candidates and why, None until decided.
        attempts: every try as it ended; once the request is over, in the order they began.
        attempts_json: the same as JSON, once the request is over.
        tries: how many were begun.
        model_id, provider_id: who answered, "" if nobody.
        usage: tokens of the answer given, None if none was.
        status: HTTP status the client got; 499 when it left first.
        error_class, error: "" when all went well.
        ttft_ms: start to the first byte of a streamed answer.
        streamed: whether bytes of a stream went to the client.
        malformed: the attempts whose streams had events that were dropped.
        ended: monotonic seconds of its end.
        upstream_s: seconds its tries waited for providers, added up. Those of a hedged request wait
            at the same time, so this is its own wait only where there was one try.
    """

    __slots__ = (
        "attempts",
        "attempts_json",
        "began",
        "chat",
        "decision",
        "ended",
        "endpoint",
        "error",
        "error_class",
        "finish_reason",
        "grant",
        "malformed",
        "model_id",
        "provider_id",
        "request",
        "started_ms",
        "status",
        "streamed",
        "tries",
        "ttft_ms",
        "upstream_s",
        "usage",
    )

    def __init__(
        self, request: ClientRequest, grant: Grant, endpoint: str, started_ms: int, began: float
    ) -> None:
        self.request = request
        self.grant = grant
        self.endpoint = endpoint
        self.started_ms = started_ms
        self.began = began
        self.chat: ChatRequest | None = None
        self.decision: Decision | None = None
        self.attempts: list[Attempt] = []
        self.attempts_json = "[]"
        self.tries = 0
        self.model_id = ""
        self.provider_id = ""
        self.usage: Usage | None = None
        self.status = 0
        self.error_class = ""
        self.error = ""
        self.finish_reason: str | None = None
        self.malformed: tuple[Malformed, ...] = ()
        self.ttft_ms: float | None = None
        self.streamed = False
        self.ended = 0.0
        self.upstream_s = 0.0

    @property
    def cost(self) -> int | None:
        """Nano-dollars over all attempts; None when a price is unknown."""
        attempts = self.attempts
        if len(attempts) == 1 and not attempts[0].kind:
            return attempts[0].cost
        costs = [attempt.cost for attempt in attempts if not attempt.kind or attempt.cost]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def let_go(self) -> None:
        """Keep no text of the request: its answer has begun, so nobody else will be asked."""
        self.request.body = b""
        assert self.chat is not None
        self.chat.let_go()

    def answered(self, candidate: Candidate, usage: Usage, finish_reason: str | None) -> None:
        """A provider has answered, at least in part."""
        model = candidate.model
        self.model_id = model.id
        self.provider_id = model.provider_id
        self.usage = usage
        self.finish_reason = finish_reason
        self.status = 200

    def broke(self, failure: ProviderError) -> None:
        """The stream broke after content had gone to the client."""
        self.error_class = failure.kind
        self.error = failure.message

    def failed(self, error: BaseException) -> None:
        """The client gets an error, which says how many attempts were made, or it has left."""
        if isinstance(error, HubError):
            self.status = error.status
            self.error_class = error.code
            self.error = error.message
            error.headers = (*error.headers, (ATTEMPTS, b"%d" % self.tries))
        elif isinstance(error, asyncio.CancelledError):
            self.status = CLIENT_LEFT
            self.error_class = FailureClass.CANCELLED
            self.error = "The client left before its answer was complete."
        else:
            self.status = 500
            self.error_class = "internal_error"
            self.error = type(error).__name__
