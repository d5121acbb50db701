"""READ THIS FIRST: the way of one chat request, top to bottom.

    1 ADMIT     the key's limits have room; the body can be read
    2 DECIDE    which models may answer, best first, and why
    3 DISPATCH  reserve the money, call the provider; when it fails, go on to the next
    4 RELAY     the answer to the client, whole or as a stream
    5 SETTLE    the books are closed before the last byte; once it has left, observers are told

Between 3 and 4 lies the line of no return: once a byte has gone to the client, no other
provider is asked.
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tokenhub.core.bounds import BYTES_PER_TOKEN, measure_chat
from tokenhub.core.chat import parse_chat
from tokenhub.core.decision import AUTO, RouteQuery, encode_attempts
from tokenhub.core.errors import ProviderError
from tokenhub.gateway.attempt import Attempt
from tokenhub.gateway.call import Call
from tokenhub.gateway.features import features_of
from tokenhub.gateway.hedge import race
from tokenhub.gateway.intent import PLAIN
from tokenhub.routing.retry import Try

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from tokenhub.access.keys import Grant
    from tokenhub.access.ledger import Ledger
    from tokenhub.access.limits import KeyLimits
    from tokenhub.core.bounds import Measure
    from tokenhub.core.chat import ChatRequest
    from tokenhub.core.clock import Clock
    from tokenhub.core.decision import Decision
    from tokenhub.gateway.call import Answer, ClientRequest
    from tokenhub.gateway.hedge import Hedging
    from tokenhub.gateway.intent import Intent
    from tokenhub.gateway.lanes import Lanes
    from tokenhub.providers.upstream import Timeouts
    from tokenhub.routing.router import Router

CHAT = "/v1/chat/completions"
NATIVE = "/v1/chat"
_NUMBER = attrgetter("number")
_ROUTED = frozenset({"", AUTO})  # how a model name begins that asks for routing


class Pipeline:
    """Answers chat requests.

    Args:
        clock: all times.
        router: decides, and learns from attempts.
        ledger: the only way to spend.
        limits: requests per second and at once, per key.
        lanes: the ways to the providers.
        timeouts: connect and idle; first byte and total are set per attempt.
        deadline_s: for a whole request, all attempts together.
        first_token_s: for a stream's first content, where the model sets no limit of its own.
        hedging: when to ask a second provider beside the first; None = never.
        observers: told of each call when it is over; they must not wait.
        after: does what the answer need not wait for, given a function and its argument.
    """

    def __init__(  # noqa: PLR0913  # the parts list
        self,
        *,
        clock: Clock,
        router: Router,
        ledger: Ledger,
        limits: KeyLimits,
        lanes: Lanes,
        timeouts: Timeouts,
        deadline_s: float,
        first_token_s: float,
        hedging: Hedging | None = None,
        observers: Iterable[Callable[[Call], None]] = (),
        after: Callable[[Callable[[Call], None], Call], None] = lambda tell, call: tell(call),
    ) -> None:
        self._clock = clock
        self._router = router
        self._ledger = ledger
        self._limits = limits
        self._lanes = lanes
        self._timeouts = timeouts
        self._deadline_s = deadline_s
        self._first_token_s = first_token_s
        self._hedging = hedging
        self._observers = tuple(observers)
        self._after = after

    def native(self, request: ClientRequest, grant: Grant) -> Coroutine[Any, Any, Answer | None]:
        """Answer a request in our own envelope.

        Raises:
            HubError: what the client gets instead.
        """
        from tokenhub.gateway.native import native_intent  # noqa: PLC0415  # few ask in our words

        read = partial(native_intent, defaults=self._router.rules.settings.limits)
        return self.chat(request, grant, NATIVE, read)

    async def chat(
        self,
        request: ClientRequest,
        grant: Grant,
        endpoint: str = CHAT,
        read: Callable[[bytes | memoryview, Grant], tuple[ChatRequest, Intent]] | None = None,
    ) -> Answer | None:
        """Answer a request in OpenAI's dialect: whole, or None when the answer was streamed.

        Args:
            request: as the edge hands it over.
            grant: what the caller's key permits.
            endpoint: the path it came by.
            read: how the body is read there; None = as it is.

        Raises:
            HubError: what the client gets instead.
        """
        call = Call(request, grant, endpoint, request.at_ms, self._clock.monotonic())
        try:
            running = self._limits.admit(grant)
            running.count += 1
            try:
                if read is None:
                    chat, intent = parse_chat(request.body), PLAIN
                else:
                    chat, intent = read(request.body, grant)
                call.chat = chat
                size = measure_chat(chat)
                decision = call.decision = self._decide(call, chat, intent, size)
                answer = await self._dispatch(call, chat, size, decision)
                if answer is not None and intent.shape is not None:
                    return intent.shape(call, answer)
                return answer
            finally:
                running.count -= 1
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            call.ended = self._clock.monotonic()
            self._after(self._tell, call)

    def _decide(self, call: Call, chat: ChatRequest, intent: Intent, size: Measure) -> Decision:
        grant = call.grant
        return self._router.decide(
            # By position, in the order of its fields: names cost as much as the object.
            RouteQuery(
                call.request.id,
                chat.model,
                intent.mode,
                grant.mode,
                intent.input_tokens or size.text // BYTES_PER_TOKEN,
                size,
                chat.max_tokens,
                chat.choices,
                "tools" in chat.members and chat.has("tools"),
                size.images > 0,
                chat.stream,
                intent.limits,
                grant.models,
                grant.allow_fallback or intent.allow_fallback,
                grant.key_id,
                features_of(chat) if chat.model[:4] in _ROUTED else None,
            ),
            self._lanes.unavailable(),
            call.began,
        )

    async def _dispatch(
        self, call: Call, chat: ChatRequest, size: Measure, decision: Decision
    ) -> Answer | None:
        plan = self._router.failover(
            decision,
            deadline=call.began + self._deadline_s,
            first_token_s=self._first_token_s,
            now_ms=call.started_ms,
        )
        call.attempts = plan.attempts
        while True:
            step = plan.next()
            if isinstance(step, Try):
                attempt = Attempt(self._clock, call, chat, size, plan, step, self._lanes)
                try:
                    if self._hedging is None:
                        return await attempt.run(self._ledger, self._timeouts)
                    return await self._race(attempt, self._hedging)
                except ProviderError:
                    continue  # the plan has been told
            else:
                await asyncio.sleep(step.seconds)

    def _race(self, attempt: Attempt, hedging: Hedging) -> Coroutine[Any, Any, Answer | None]:
        return race(attempt, lambda one: one.run(self._ledger, self._timeouts), hedging)

    def _tell(self, call: Call) -> None:
        attempts = call.attempts
        if len(attempts) > 1:
            attempts.sort(key=_NUMBER)  # those of a hedge end in any order
        call.attempts_json = text = encode_attempts(attempts)
        if call.decision is not None:
            self._router.finish(call.decision, attempts, call.error_class or "ok", text)
        for observe in self._observers:
            observe(call)
