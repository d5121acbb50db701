"""Hard constraints: which models may answer a request, and for each other one the rule it breaks.

What costs money is bounded from above: the whole prompt at the dearest input price and the output
limit. What is a time is expected, from the last minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.decision import DEFAULT_OUTPUT_TOKENS, Filtered, ModelView, ProviderView
from tokenhub.routing.scoring import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenhub.core.catalog import Model
    from tokenhub.core.decision import Evidence, Limits, RouteQuery
    from tokenhub.routing.rules import Rules

FEMTO_PER_NANO = 1_000_000
MARGIN = 1.15  # on the estimated prompt, against the context window

UNKNOWN_PROVIDER = ProviderView()
UNKNOWN_MODEL = ModelView()

CLOSED_REASONS = {
    "down": "health_down",
    "probing": "health_probing",
    "rate_limited": "rate_limited",
    "auth": "provider_auth",
    "quota": "provider_quota",
}
"""Why a provider takes no request now → the reason under which its models are filtered."""

PASSING = {*CLOSED_REASONS.values(), "vault_locked", "latency_exceeded"}
"""Reasons that can go away without anybody changing the request or the catalog."""


class Screen:
    """One request's rules, applied to any model.

    Args:
        query: the request.
        limits: those in force.
        rules: for the providers.
        evidence: health and availability.
        named: the client named the model, so its context window is only held against what
            certainly overflows: the estimate must not refuse what the provider might take.
        allowed: the ids the key may use, None = all.
    """

    def __init__(
        self,
        query: RouteQuery,
        limits: Limits,
        rules: Rules,
        evidence: Evidence,
        *,
        named: bool = False,
        allowed: frozenset[str] | None = None,
    ) -> None:
        self._query = query
        self._providers = rules.catalog.providers
        self._evidence = evidence
        self._named = named
        self._allowed = allowed
        self._budget = limits.max_budget or 0
        self._latency = limits.max_latency_ms or 0
        self._weight = limits.min_weight or 0
        self._bound = query.input_bound or query.input_tokens
        self._room = DEFAULT_OUTPUT_TOKENS if query.max_tokens is None else query.max_tokens
        self._prompt = int(query.input_tokens * MARGIN)

    def judge(self, model: Model) -> Fit | Filtered:
        """Whether a model may answer; the first rule it breaks if not."""
        fit = self._measure(model)
        fault = next(self._faults(model, fit), None)
        return fit if fault is None else fault

    def every_fault(self, model: Model) -> list[Filtered]:
        """All rules a model breaks."""
        return list(self._faults(model, self._measure(model)))

    def _measure(self, model: Model) -> Fit:
        query, evidence = self._query, self._evidence
        view = evidence.providers.get(model.provider_id, UNKNOWN_PROVIDER)
        own = evidence.models.get(model.id, UNKNOWN_MODEL)
        latency = own.usual_ms or view.usual_ms
        # A whole answer's time says nothing about a stream's first token, nor the other way.
        if query.stream:
            expected = own.ttft_ms or view.ttft_ms
        else:
            expected = own.latency_ms or view.latency_ms
        prices = model.prices
        if prices.input is None or prices.output is None:
            return Fit(model, None, None, None, expected, latency, view.error_rate)
        output = self._room * query.choices * prices.output
        cost = -(-(query.input_tokens * prices.input + output) // FEMTO_PER_NANO)
        dearest = max(prices.input, prices.cached_write or 0)
        bound = -(-(self._bound * dearest + output) // FEMTO_PER_NANO)
        cap = None
        if self._budget and bound <= self._budget and query.max_tokens is None and output:
            left = self._budget * FEMTO_PER_NANO - self._bound * dearest
            cap = left // (query.choices * prices.output)
            if model.max_output_tokens:
                cap = min(cap, model.max_output_tokens)
            bound = -(
                -(self._bound * dearest + cap * query.choices * prices.output) // FEMTO_PER_NANO
            )
        return Fit(model, cost, bound, cap, expected, latency, view.error_rate)

    def _faults(self, model: Model, fit: Fit) -> Iterator[Filtered]:
        query = self._query
        if self._allowed is not None and model.id not in self._allowed:
            yield _fault(model, "not_allowed")
        if not model.enabled:
            yield _fault(model, "disabled")
        provider = self._providers.get(model.provider_id)
        if provider is None or not provider.enabled:
            yield _fault(model, "provider_disabled")
        if query.tools and not model.tools:
            yield _fault(model, "tools_unsupported")
        if query.images and not model.images:
            yield _fault(model, "images_unsupported")
        if model.weight < self._weight:
            yield _fault(model, "weight_below_minimum", self._weight, model.weight)
        if (window := model.max_context_tokens) and (needed := self._needed(model)) > window:
            yield _fault(model, "context_overflow", window, needed)
        yield from self._closed(model)
        if self._budget:
            if fit.bound is None:
                yield _fault(model, "price_unknown", self._budget)
            elif fit.bound > self._budget:
                yield _fault(model, "budget_exceeded", self._budget, fit.bound)
        if self._latency and fit.expected_ms > self._latency:
            yield _fault(model, "latency_exceeded", self._latency, round(fit.expected_ms, 1))

    def _needed(self, model: Model) -> int:
        if self._named:
            return self._query.input_tokens
        room = self._room
        if model.max_output_tokens:
            room = min(room, model.max_output_tokens)
        return self._prompt + room

    def _closed(self, model: Model) -> Iterator[Filtered]:
        evidence = self._evidence
        if missing := evidence.unavailable.get(model.provider_id):
            yield _fault(model, missing)
        view = evidence.providers.get(model.provider_id)
        if view is not None and view.closed:
            yield _fault(model, CLOSED_REASONS[view.closed], view.retry_ms)


def _fault(model: Model, reason: str, limit: float | str = "", value: float | str = "") -> Filtered:
    return Filtered(
        model_id=model.id, provider_id=model.provider_id, reason=reason, limit=limit, value=value
    )
