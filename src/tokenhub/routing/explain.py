"""A decision in words and numbers: the table ``simulate`` and ``explain`` show.

The table of a past decision is made by deciding again from its record, and the two choices are
compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.decision import Attempt, Evidence
from tokenhub.core.errors import HubError
from tokenhub.core.money import format_per_1k, output_price, usd
from tokenhub.routing.decide import Ask, decide, screen_of
from tokenhub.routing.flip import smallest_flip
from tokenhub.routing.record import Record
from tokenhub.routing.refusal import explain_fault
from tokenhub.routing.rules import decode

if TYPE_CHECKING:
    from tokenhub.core.decision import Candidate, Decision, Filtered
    from tokenhub.routing.rewards import StoredDecision
    from tokenhub.routing.rules import Rules

_ROUTED = frozenset({"weighted", "softmax", "thompson"})
_MONEY = frozenset({"budget_exceeded", "price_unknown"})


def again(stored: StoredDecision) -> tuple[Record, Rules, Decision]:
    """A past decision, made again from its record.

    Raises:
        HubError: nothing could answer, then or by the code of today.
    """
    record = msgspec.json.decode(stored.record, type=Record)
    evidence = msgspec.json.decode(stored.evidence, type=Evidence)
    evidence = msgspec.structs.replace(evidence, turn=record.turn)
    rules = decode(stored.rules)
    return record, rules, decide(record.query, rules, evidence, record.seed)


def replay(request_id: str, stored: StoredDecision) -> dict[str, Any]:
    """Whether deciding again from the record chooses the same model, as probably as then."""
    record = msgspec.json.decode(stored.record, type=Record)
    try:
        _, rules, decision = again(stored)
        now, propensity = decision.chosen.model_id, decision.propensity
        digest = rules.digest
    except HubError:
        now, propensity, digest = "", 0.0, decode(stored.rules).digest
    return {
        "request_id": request_id,
        "same": now == record.choice,
        "recorded": record.choice,
        "replayed": now,
        "recorded_propensity": record.propensity,
        "replayed_propensity": propensity,
        "seed": record.seed,
        "rules": digest,
    }


def explain(request_id: str, stored: StoredDecision) -> dict[str, Any]:
    """A past request: how it was decided, what was tried, what would have changed the choice.

    Of a request that nothing could answer: ``refused``, with the error it got.
    """
    attempts = msgspec.json.decode(stored.attempts, type=list[Attempt])
    past = {
        "request_id": request_id,
        "at": stored.at,
        "outcome": stored.outcome,
        "attempts": [attempt_row(attempt) for attempt in attempts],
    }
    try:
        record, rules, decision = again(stored)
    except HubError as error:
        refused = {"message": error.message, "code": error.code, "hint": error.hint}
        return {**past, "refused": {**refused, **error.extra}}
    same = decision.chosen.model_id == record.choice
    return {**past, **describe(decision, rules), "replayed_same": same}


def describe(decision: Decision, rules: Rules) -> dict[str, Any]:
    """The whole table of a decision, JSON-able."""
    flip = smallest_flip(decision, rules)
    return {
        "decision": headline(decision),
        "why": why(decision),
        "mode": decision.mode,
        "policy": decision.policy,
        "alias": decision.alias,
        "seed": decision.seed,
        "draw": decision.draw,
        "propensity": decision.propensity,
        "token_bucket": decision.bucket,
        "rules": decision.rules,
        "query": msgspec.to_builtins(decision.query),
        "limits": _limits(decision),
        "candidates": [candidate_row(one) for one in decision.candidates],
        "filtered": filter_rows(decision, rules),
        "flip": None if flip is None else msgspec.to_builtins(flip),
    }


def headline(decision: Decision) -> dict[str, Any]:
    """The choice alone."""
    chosen = decision.candidates[0]
    return {
        "model_id": chosen.model_id,
        "provider_id": chosen.provider_id,
        "estimated_cost_usd": None if chosen.cost is None else usd(chosen.cost),
        "reason": decision.reason,
    }


def why(decision: Decision) -> str:
    """The choice in one sentence."""
    chosen, count = decision.chosen, decision.count
    if decision.reason == "routed-fallback":
        return f"The named model may not answer; `{chosen.model_id}` is the best that may."
    if decision.policy == "named":
        return f"The client named `{chosen.model_id}` and nothing forbids it."
    if decision.policy == "alias":
        share = f"{chosen.propensity:.0%}"
        return f"`{decision.alias}` stands for `{chosen.model_id}` in {share} of requests."
    if count == 1:
        return f"`{chosen.model_id}` is the only model that may answer."
    if decision.policy == "weighted":
        return f"`{chosen.model_id}` has the lowest score of {count} in mode {decision.mode}."
    return (
        f"`{chosen.model_id}` was drawn from {count} with probability {chosen.propensity:.1%} "
        f"(policy {decision.policy}, draw {decision.draw:.4f})."
    )


def candidate_row(candidate: Candidate) -> dict[str, Any]:
    """One candidate; the terms sum to the score."""
    return {
        "model_id": candidate.model_id,
        "provider_id": candidate.provider_id,
        "score": candidate.score,
        "terms": candidate.terms,
        "propensity": candidate.propensity,
        "estimated_cost_usd": None if candidate.cost is None else usd(candidate.cost),
        "most_cost_usd": None if candidate.bound is None else usd(candidate.bound),
        "output_cap": candidate.output_cap,
        "expected_ms": candidate.expected_ms,
        "reward_mean": candidate.mean,
        "reward_sd": candidate.sd,
    }


def filter_rows(decision: Decision, rules: Rules) -> list[dict[str, Any]]:
    """Every rule that each filtered model breaks, with limit, value and words."""
    rows = []
    for first in decision.filtered:
        faults = [first]
        model = rules.catalog.models.get(first.model_id)
        if model is not None and decision.policy in _ROUTED:
            ask = Ask(decision.query, rules, decision.evidence, decision.seed, decision.draw)
            faults = screen_of(ask, decision.limits).every_fault(model)
        rows += [_filter_row(fault) for fault in faults]
    return rows


def _filter_row(fault: Filtered) -> dict[str, Any]:
    money = fault.reason in _MONEY
    limit, value = (
        usd(number) if money and isinstance(number, int) else number
        for number in (fault.limit, fault.value)
    )
    return {
        "model_id": fault.model_id,
        "provider_id": fault.provider_id,
        "reason": fault.reason,
        "limit": limit,
        "value": value,
        "text": explain_fault(fault),
    }


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    """One attempt."""
    return {
        "number": attempt.number,
        "model_id": attempt.model_id,
        "provider_id": attempt.provider_id,
        "at": attempt.at_ms,
        "error": attempt.kind,
        "status": attempt.status,
        "message": attempt.message,
        "latency_ms": round(attempt.latency_ms, 3),
        "ttft_ms": None if attempt.ttft_ms is None else round(attempt.ttft_ms, 3),
        "cost_usd": None if attempt.cost is None else usd(attempt.cost),
    }


def eligible_rows(decision: Decision) -> list[dict[str, Any]]:
    """The candidates as catalog rows, as ``simulate`` has always listed them."""
    chosen = decision.chosen.model_id
    return [
        {
            "id": one.model.id,
            "provider_id": one.model.provider_id,
            "weight": one.model.weight,
            "max_context_tokens": one.model.max_context_tokens,
            "input_per_1k": _per_1k(one.model.prices.input),
            "output_per_1k": (
                None if one.model.prices.input is None else _per_1k(output_price(one.model.prices))
            ),
            "enabled": one.model.enabled,
            "selected": one.model.id == chosen,
        }
        for one in decision.candidates
    ]


def _per_1k(femto: int | None) -> float | None:
    return None if femto is None else float(format_per_1k(femto))


def _limits(decision: Decision) -> dict[str, Any]:
    limits = decision.limits
    return {
        "max_budget_usd": usd(limits.max_budget or 0),
        "max_latency_ms": limits.max_latency_ms or 0,
        "min_weight": limits.min_weight or 0,
    }
