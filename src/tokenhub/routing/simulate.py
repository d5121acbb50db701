"""``simulate``: the same decision without sending anything and without changing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.decision import Limits, RouteQuery
from tokenhub.core.errors import InvalidRequest
from tokenhub.routing.explain import describe, eligible_rows
from tokenhub.routing.settings import Number, budget_nano, check_latency, check_weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenhub.core.decision import Decision
    from tokenhub.routing.router import Router
    from tokenhub.routing.rules import Rules

MAX_TOKENS = 1 << 40
DEFAULT_TOKENS = 500


class SimulateFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A made-up request. A limit that is left out is the stored default's, 0 is none."""

    mode: str = ""
    token_count: int = DEFAULT_TOKENS
    max_tokens: int | None = None
    max_budget_usd: Number | None = None
    max_latency_ms: int | None = None
    min_weight: int | None = None
    model_hint: str = ""
    allow_fallback: bool = False
    tools: bool = False
    images: bool = False
    stream: bool = False
    seed: int = 0


def simulate(router: Router, fields: SimulateFields, unavailable: Mapping[str, str]) -> Decision:
    """What would be chosen now.

    Raises:
        InvalidRequest: naming the field.
        HubError: nothing may answer, as a real request would be told.
    """
    return router.simulate(query_of(fields), unavailable, fields.seed)


def table_of(decision: Decision, rules: Rules) -> dict[str, Any]:
    """The whole table behind it; takes a while with many models, and reads nothing that changes."""
    table = describe(decision, rules)
    return {**table, "eligible": eligible_rows(decision), "total": decision.count}


def query_of(fields: SimulateFields) -> RouteQuery:
    """The request that the fields describe.

    Raises:
        InvalidRequest: naming the field.
    """
    if not 0 <= fields.token_count <= MAX_TOKENS:
        raise InvalidRequest("`token_count` must not be negative.", param="token_count")
    if fields.max_tokens is not None and not 1 <= fields.max_tokens <= MAX_TOKENS:
        raise InvalidRequest("`max_tokens` must be at least 1.", param="max_tokens")
    budget, latency, weight = fields.max_budget_usd, fields.max_latency_ms, fields.min_weight
    return RouteQuery(
        model=fields.model_hint,
        mode=fields.mode,
        input_tokens=fields.token_count,
        max_tokens=fields.max_tokens,
        tools=fields.tools,
        images=fields.images,
        stream=fields.stream,
        allow_fallback=fields.allow_fallback,
        limits=Limits(
            max_budget=None if budget is None else budget_nano(budget, "max_budget_usd"),
            max_latency_ms=None if latency is None else check_latency(latency, "max_latency_ms"),
            min_weight=None if weight is None else check_weight(weight, "min_weight"),
        ),
    )
