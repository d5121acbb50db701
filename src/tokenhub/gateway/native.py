"""``POST /v1/chat``: our own envelope around a chat request, with a policy and an output format."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.chat import parse_chat
from tokenhub.core.decision import AUTO, MODES, NO_LIMITS, Limits
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.fields import decode_fields
from tokenhub.core.money import parse_usd, usd
from tokenhub.gateway import directives
from tokenhub.gateway.call import Answer, reason_of
from tokenhub.gateway.intent import Intent
from tokenhub.gateway.output import OutputFormat, Schema

if TYPE_CHECKING:
    from tokenhub.access.keys import Grant
    from tokenhub.core.chat import ChatRequest
    from tokenhub.gateway.call import Call

MAX_BUDGET_USD = 100
MAX_LATENCY_MS = 300_000
MAX_WEIGHT = 10
RESERVED = ("model", "messages", "stream")


class Policy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to route. 0 = no limit; a member left out leaves the stored default."""

    mode: str = ""
    max_budget_usd: Decimal | None = None
    max_latency_ms: int | None = None
    min_weight: int | None = None
    allow_fallback: bool = False


class Question(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to ask."""

    messages: list[Any]
    id: str = ""
    model_hint: str = ""
    estimated_input_tokens: int = 0
    parameters: dict[str, msgspec.Raw] = {}
    stream: bool = False
    meta: dict[str, Any] = {}
    output_schema: Any = None


class Envelope(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole body. ``capabilities`` is accepted for old clients and means nothing."""

    request: Question
    policy: Policy = msgspec.field(default_factory=Policy)
    output_format: OutputFormat | None = None
    output_schema: Any = None
    capabilities: dict[str, Any] = {}


def native_intent(
    body: bytes | memoryview, grant: Grant, defaults: Limits = NO_LIMITS
) -> tuple[ChatRequest, Intent]:
    """Read the body of ``/v1/chat``: what to ask in OpenAI's dialect, and the policy.

    ``defaults`` are the stored limits of routed requests, which a directive must not lift.

    Raises:
        InvalidRequest: naming the member.
    """
    envelope = decode_fields(body, Envelope)
    question, policy = envelope.request, envelope.policy
    if not question.messages:
        raise InvalidRequest(
            "`request.messages` must hold at least one message.",
            param="messages",
            code="empty_array",
        )
    if question.estimated_input_tokens < 0:
        raise InvalidRequest(
            "`request.estimated_input_tokens` must not be negative.", param="estimated_input_tokens"
        )
    limits, mode = _limits(policy), policy.mode
    if mode and mode not in MODES:
        raise InvalidRequest(f"`policy.mode` must be one of {', '.join(MODES)}.", param="mode")
    if grant.allow_directives and (said := directives.take(question.messages)) is not None:
        routed = question.model_hint.strip()[:4] in {"", AUTO, "*"}
        limits = directives.narrow(limits, said.limits, defaults if routed else NO_LIMITS)
        mode = mode or said.mode
    return parse_chat(_chat_body(question)), Intent(
        mode=mode,
        limits=limits,
        allow_fallback=policy.allow_fallback,
        input_tokens=question.estimated_input_tokens,
        shape=_shape(envelope),
    )


def _chat_body(question: Question) -> bytes:
    for name in RESERVED:
        if name in question.parameters:
            raise InvalidRequest(
                f"`request.parameters` must not hold `{name}`.", param="parameters",
                hint=f"`{'model_hint' if name == 'model' else name}` has a place of its own.",
            )  # fmt: skip
    members: dict[str, Any] = {"model": question.model_hint, "messages": question.messages}
    if question.stream:
        members["stream"] = True
    return msgspec.json.encode(members | question.parameters)


def _limits(policy: Policy) -> Limits:
    budget, latency, weight = policy.max_budget_usd, policy.max_latency_ms, policy.min_weight
    if budget is not None and not (budget.is_finite() and 0 <= budget <= MAX_BUDGET_USD):
        raise InvalidRequest(
            f"`policy.max_budget_usd` must be between 0 and {MAX_BUDGET_USD}.",
            param="max_budget_usd",
        )
    if latency is not None and not 0 <= latency <= MAX_LATENCY_MS:
        raise InvalidRequest(
            f"`policy.max_latency_ms` must be between 0 and {MAX_LATENCY_MS}.",
            param="max_latency_ms",
        )
    if weight is not None and not 0 <= weight <= MAX_WEIGHT:
        raise InvalidRequest(
            f"`policy.min_weight` must be between 0 and {MAX_WEIGHT}.", param="min_weight"
        )
    if budget is None and latency is None and weight is None:
        return NO_LIMITS
    return Limits(
        max_budget=None if budget is None else parse_usd(budget, "max_budget_usd"),
        max_latency_ms=latency,
        min_weight=weight,
    )


def _shape(envelope: Envelope) -> Shaper:
    wanted = envelope.output_format
    schemas = [
        (envelope.output_schema, "output_schema"),
        (envelope.request.output_schema, "request.output_schema"),
        (wanted.schema if wanted else None, "output_format.schema"),
    ]
    given = [(schema, name) for schema, name in schemas if schema is not None]
    if envelope.request.stream and (given or wanted is not None):
        raise InvalidRequest(
            "A stream cannot be formatted or checked against a schema.",
            param="stream",
            hint="Leave out `output_format` and `output_schema`, or set `stream` to false.",
        )
    return Shaper(wanted, [Schema(schema, name) for schema, name in given])


class Shaper:
    """Makes the envelope of a whole answer."""

    def __init__(self, wanted: OutputFormat | None, schemas: list[Schema]) -> None:
        self._wanted = wanted
        self._schemas = schemas

    def __call__(self, call: Call, answer: Answer) -> Answer:
        """``{negotiated_model, estimated_cost_usd, routing_reason, response}``.

        Raises:
            Unprocessable: the text does not fit the schema.
        """
        response: Any = msgspec.Raw(answer.body)
        if self._wanted is not None or self._schemas:
            response = self._formed(answer.body)
        assert call.decision is not None
        cost = call.cost
        envelope = {
            "negotiated_model": call.model_id,
            "estimated_cost_usd": None if cost is None else usd(cost),
            "routing_reason": reason_of(call.decision, call.model_id),
            "response": response,
        }
        return Answer(msgspec.json.encode(envelope), answer.headers)

    def _formed(self, body: bytes) -> Any:
        response = msgspec.json.decode(body)
        for choice in response.get("choices") or []:
            message = choice.get("message") or {}
            text = message.get("content")
            if not isinstance(text, str) or not text:
                continue
            for schema in self._schemas:
                schema.check(text)
            if self._wanted is not None:
                message["content"] = self._wanted.apply(text)
        return response
