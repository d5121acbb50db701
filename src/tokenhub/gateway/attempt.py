"""One try at one candidate: reserve, send, relay, settle."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from msgspec.structs import replace

from tokenhub.core.bounds import BYTES_PER_TOKEN
from tokenhub.core.errors import FailureClass, HubError, ProviderError, TransportError
from tokenhub.gateway.call import ATTEMPTS, Answer, Malformed, reason_of
from tokenhub.gateway.relay import Relay
from tokenhub.providers.upstream import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.access.hold import Hold
    from tokenhub.access.ledger import Ledger
    from tokenhub.core.bounds import Measure
    from tokenhub.core.chat import ChatRequest, Usage
    from tokenhub.core.clock import Clock
    from tokenhub.gateway.call import Call, ClientStream
    from tokenhub.gateway.lanes import Lane, Lanes
    from tokenhub.providers.adapter import Reply, StreamRelay
    from tokenhub.providers.upstream import Answer as Upstream
    from tokenhub.providers.upstream import UpstreamRequest
    from tokenhub.routing.retry import Failover, Try

    Headers = tuple[tuple[bytes, bytes], ...]

EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)

_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

# After these the provider may have worked, and will bill for it.
_MAYBE_BILLED = frozenset({FailureClass.TIMEOUT, FailureClass.RESET, FailureClass.GARBAGE})
_NO_ERROR = frozenset({None, 200})  # statuses of what was answered


class Attempt:
    """One try.

    Args:
        clock: tells how long the provider was waited for.
        call: the request it belongs to.
        chat, size: what is asked, and how large that is.
        plan, step: the failover it is part of.
        lanes: the ways to the providers.

    Attributes:
        cost: what it came to in nano-dollars, however it ended; None while unknown.
        on_content: called when an answer has come, before the client gets any of it; what it
            raises ends the attempt.
    """

    __slots__ = (
        "_call", "_chat", "_clock", "_hold", "_lane", "_lanes", "_plan", "_size", "_step",
        "on_content",
    )  # fmt: skip

    _lane: Lane

    def __init__(
        self,
        clock: Clock,
        call: Call,
        chat: ChatRequest,
        size: Measure,
        plan: Failover,
        step: Try,
        lanes: Lanes,
    ) -> None:
        self._clock = clock
        self._call = call
        self._chat = chat
        self._size = size
        self._plan = plan
        self._step = step
        self._lanes = lanes
        self._hold: Hold | None = None
        self.on_content: Callable[[], None] | None = None
        call.tries = step.number

    @property
    def cost(self) -> int | None:  # noqa: D102  # see the class
        return None if self._hold is None else self._hold.cost

    def beside(self) -> Attempt | None:
        """The same at a provider that has not been asked; None if there is none."""
        step = self._plan.hedge()
        if step is None:
            return None
        return Attempt(
            self._clock, self._call, self._chat, self._size, self._plan, step, self._lanes
        )

    async def run(self, ledger: Ledger, timeouts: Timeouts) -> Answer | None:
        """Ask the provider, give its answer to the client, tell the plan how it ended.

        Raises:
            ProviderError: it failed and the client has got nothing, so another may be asked.
            HubError: the request cannot be sent, to anybody or for this money.
        """
        call, chat, step = self._call, self._chat, self._step
        try:
            request, hold = self._prepare(ledger)
            if (opening := hold.reserve()) is not None:
                await hold.opened(opening)
            hold.sent = True
            lane, monotonic = self._lane, self._clock.monotonic
            limits = Timeouts(timeouts.connect, step.first_token_s, timeouts.idle, step.left_s)
            asked = monotonic()
            try:
                answer = await lane.upstream.send(lane.origin, request, limits, chat.stream)
            finally:
                call.upstream_s += monotonic() - asked
            # It holds a credential, and a stream may be long.
            del request
            if answer.status != 200:
                await self._refuse(answer)
            if chat.stream:
                await self._stream(answer, hold)
                return None
            reply = self._read(answer, hold)
            if (closing := hold.book()) is not None:
                await closing
            self._plan.succeeded(step, hold.cost)
            call.answered(step.candidate, reply.usage or hold.usage, reply.finish_reason)
            return Answer(reply.body, self._headers())
        except TransportError as error:
            raise self._broken(error) from None
        except ProviderError as error:
            self._failed(error)
            raise
        except HubError as error:
            self.given_up(error.message)
            raise
        except BaseException:
            self.given_up()
            raise

    def given_up(self, why: str = "") -> None:
        """Close the books of an attempt that ends by no word of its provider, and tell the plan.

        Nothing if it has ended.
        """
        self._leave()
        self._plan.cancelled(self._step, self.cost, why)

    def _prepare(self, ledger: Ledger) -> tuple[UpstreamRequest, Hold]:
        """The provider's request, and the money for it, which is not reserved yet."""
        call, chat, step = self._call, self._chat, self._step
        model = step.candidate.model
        lane = self._lane = self._lanes.to(model)
        credential = None if lane.credential is None else lane.credential()
        limit = ledger.bound(
            call.grant, model, self._size, max_tokens=chat.max_tokens, choices=chat.choices
        )
        cap = step.candidate.output_cap
        if limit.max_tokens is not None and (cap is None or limit.max_tokens < cap):
            cap = limit.max_tokens
        request = lane.adapter.request(chat, lane.target, credential, cap)
        if (trace := self._lanes.trace) is not None:
            request.more = [*request.more, *trace(call.request, step.number)]
        hold = self._hold = ledger.spend(call.grant, call.request.id, step.number, model, limit)
        return request, hold

    def _read(self, answer: Upstream, hold: Hold) -> Reply:
        """What a whole answer says, noted for the books."""
        lane = self._lane
        assert answer.body is not None
        try:
            reply = lane.adapter.reply(self._chat, lane.target, answer.body)
        except ProviderError as error:
            if error.kind == FailureClass.GARBAGE:
                hold.note(content_bytes=len(answer.body))  # what of it was generated, who knows
            raise
        if self.on_content is not None:
            self.on_content()
        hold.note(content_bytes=reply.content_bytes, usage=reply.usage)
        return reply

    async def _refuse(self, answer: Upstream) -> NoReturn:
        body = await answer.read()
        raise self._lane.adapter.failure(answer.status, answer.headers, body)

    def _broken(self, error: TransportError) -> ProviderError:
        # Made here: an exception in a variable of the frame that raises it is a circle.
        failure = ProviderError(error.kind, error.message, sent=error.sent)
        self._failed(failure)
        return failure

    def _failed(self, error: ProviderError) -> None:
        # An error answer is not billed. A silent or broken provider, or one whose answer cannot be
        # read, may have worked on the prompt: leaving the hold as noted books that.
        billed = error.sent and error.status in _NO_ERROR and error.kind in _MAYBE_BILLED
        if self._hold is not None and not billed:
            self._hold.release()
        self._leave()
        self._plan.failed(self._step, error, self.cost)

    def _leave(self) -> None:
        if self._hold is not None and not self._hold.closed:
            self._hold.leave()

    async def _stream(self, answer: Upstream, hold: Hold) -> None:
        call, lane, step = self._call, self._lane, self._step
        answer.let_go()
        wire = lane.adapter.relay(self._chat, lane.target)
        began = self._clock.monotonic()
        waited = began - step.started
        relay = Relay(answer, wire, self._open_stream, step.first_token_s, waited)
        try:
            if answer.body is None:
                await relay.run()
            else:
                relay.take(answer.body)
        finally:
            call.upstream_s += self._clock.monotonic() - began
            # Also when the client leaves: what was generated so far is what it costs.
            hold.note(content_bytes=wire.content_bytes, usage=_so_far(wire))
            if wire.malformed:
                model = step.candidate.model
                call.malformed = (
                    *call.malformed, Malformed(model.id, model.provider_id, wire.malformed)
                )  # fmt: skip
            if relay.stream is not None:
                call.answered(step.candidate, hold.usage, wire.finish_reason)
        if (closing := hold.book("" if wire.failure is None else "cut")) is not None:
            relay.write()  # only the end waits for the disk
            await closing
        if wire.failure is None:
            self._plan.succeeded(step, hold.cost)
        else:
            self._plan.failed(step, wire.failure, hold.cost)
            call.broke(wire.failure)
        relay.finish()

    def _open_stream(self) -> ClientStream:
        if self.on_content is not None:
            self.on_content()
        self._plan.first_token(self._step)
        self._call.streamed = True
        self._call.ttft_ms = self._step.ttft_ms
        headers = (*EVENT_STREAM, *self._headers())
        if self._lanes.trace is None:  # a trace says how the model was asked, at the end
            self._call.let_go()
        return self._call.request.open_stream(200, headers)

    def _headers(self) -> Headers:
        model, decision = self._step.candidate.model, self._call.decision
        assert decision is not None
        reason = reason_of(decision, model.id)
        headers = _who_answered(model.id, model.provider_id, reason, self._call.tries)
        if notes := self._lane.adapter.notes(self._chat, self._lane.target):
            headers = (*headers, *notes)
        if decision.alias:
            # Its name is free text, and a header is not.
            headers = (*headers, (b"x-alias-from", quote(decision.alias, safe=_PLAIN).encode()))
        return headers


@lru_cache(maxsize=4096)  # the same few for all answers
def _who_answered(model_id: str, provider_id: str, reason: str, tries: int) -> Headers:
    return (
        (b"x-tokenhub-model", model_id.encode()),
        (b"x-tokenhub-provider", provider_id.encode()),
        (b"x-tokenhub-reason", reason.encode()),
        (ATTEMPTS, b"%d" % tries),
    )


def _so_far(wire: StreamRelay) -> Usage | None:
    # A stream that was cut: the prompt as the provider reported it, the rest counted.
    if wire.usage is not None or wire.early is None:
        return wire.usage
    completion = -(-wire.content_bytes // BYTES_PER_TOKEN)
    return replace(wire.early, completion=completion, source="counted")
