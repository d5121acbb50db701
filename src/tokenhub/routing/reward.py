"""Outcome → reward in [0, 1].

    reward = 0.3·(1 - min(cost/$0.10, 1)) + 0.3·(1 - min(time/budget, 1)) + 0.4·quality

or 0 for an attempt that failed. ``quality`` is 1 until feedback says otherwise. ``time`` is to the
first token of a stream, else of the whole answer; ``budget`` is the request's ``max_latency_ms``,
20 s where it has none, at least 1 s. An unknown cost counts as $0.10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.errors import FailureClass
from tokenhub.routing.health import ATTRIBUTABLE, REJECTIONS

if TYPE_CHECKING:
    from tokenhub.core.decision import Attempt, Decision

COST_CEILING = 100_000_000  # nano-dollars: $0.10
LATENCY_FLOOR_MS = 1_000
LATENCY_BUDGET_MS = 20_000
COST_SHARE = 0.3
LATENCY_SHARE = 0.3
QUALITY_SHARE = 0.4

LEARNED = ATTRIBUTABLE | REJECTIONS | {FailureClass.RATE_LIMITED, FailureClass.DEADLINE}
"""Failures that count against the arm; the others are the request's or the client's."""


def latency_budget(decision: Decision) -> int:
    """The milliseconds an answer's time is measured against."""
    limit = decision.limits.max_latency_ms
    return max(limit, LATENCY_FLOOR_MS) if limit else LATENCY_BUDGET_MS


def reward_of(decision: Decision, attempt: Attempt) -> float | None:
    """What an attempt was worth; None when it says nothing about the model."""
    return worth(attempt, latency_budget(decision))


def worth(attempt: Attempt, budget: int) -> float | None:
    """The same by the milliseconds that its time is measured against."""
    if attempt.kind:
        learned = attempt.kind in LEARNED
        if attempt.kind == FailureClass.LATENCY:
            learned = attempt.latency_ms >= LATENCY_FLOOR_MS  # nobody can be as quick as any wish
        return 0.0 if learned else None
    spent = COST_CEILING if attempt.cost is None else attempt.cost
    time = attempt.latency_ms if attempt.ttft_ms is None else attempt.ttft_ms
    # Conditions, where min() would be a call: every request comes by here.
    cheap = 1.0 - spent / COST_CEILING if spent < COST_CEILING else 0.0
    quick = 1.0 - time / budget if time < budget else 0.0
    return COST_SHARE * cheap + LATENCY_SHARE * quick + QUALITY_SHARE
