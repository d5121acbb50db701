"""Hard constraints: which models may answer a request, and for each other one the rule it breaks.

What costs money is bounded from above, as the ledger bounds it. What is a time is expected, from
the last minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.bounds import Measure, bound
from tokenhub.core.decision import DEFAULT_OUTPUT_TOKENS, Filtered, ModelView, ProviderView
from tokenhub.core.money import FEMTO_PER_NANO, at_prompt, output_price
from tokenhub.routing.scoring import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenhub.core.catalog import Model, Prices
    from tokenhub.core.decision import Evidence, Limits, RouteQuery
    from tokenhub.routing.rules import Rules

MARGIN = 1.15  # on the estimated prompt, against the context window
UNLIMITED = 1 << 40  # output tokens; any budget affords fewer

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
        self._size = query.size or Measure(text=query.input_tokens)
        self._room = DEFAULT_OUTPUT_TOKENS if query.max_tokens is None else query.max_tokens
        self._output = self._room * query.choices
        self._prompt = int(query.input_tokens * MARGIN)

    def judge(self, model: Model) -> Fit | Filtered:
        """Whether a model may answer; the first rule it breaks if not."""
        fit = self.measure(model)
        return next(self._faults(model, fit), None) or fit

    def every_fault(self, model: Model) -> list[Filtered]:
        """All rules a model breaks."""
        return list(self._faults(model, self.measure(model)))

    def measure(self, model: Model) -> Fit:
        """What is known of a model for this request, whether or not it may answer."""
        evidence = self._evidence
        view = evidence.providers.get(model.provider_id, UNKNOWN_PROVIDER)
        own = evidence.models.get(model.id, UNKNOWN_MODEL)
        most, cap = self._bound(model) if self._budget else (None, None)
        return Fit(
            model,
            expected_cost(model.prices, self._query.input_tokens, self._output),
            most,
            cap,
            expected_ms(model, evidence, stream=self._query.stream),
            own.usual_ms or view.usual_ms,
            view.error_rate,
        )

    def _bound(self, model: Model) -> tuple[int | None, int | None]:
        """The most the request can cost here, and the output limit that keeps it in the budget."""
        query = self._query
        most = bound(self._size, model, max_tokens=self._room, choices=query.choices)
        if not most.priced:
            return None, None
        if query.max_tokens is not None or most.nano > self._budget:
            return most.nano, None
        most = bound(
            self._size, model, max_tokens=UNLIMITED, choices=query.choices, room=self._budget
        )
        return most.nano, most.max_tokens

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
        if missing := self._evidence.unavailable.get(model.provider_id):
            yield _fault(model, missing)
        view = self._evidence.providers.get(model.provider_id)
        if view is not None and view.closed:
            yield _fault(model, CLOSED_REASONS[view.closed], view.retry_ms)
        if self._budget and fit.bound is None:
            yield _fault(model, "price_unknown", self._budget)
        if self._budget and fit.bound is not None and fit.bound > self._budget:
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


def expected_cost(prices: Prices, tokens: int, output: int) -> int | None:
    """Nano-dollars that so many prompt and output tokens should cost; None without a price."""
    if prices.input is None:
        return None
    if prices.tiers:
        prices = at_prompt(prices, tokens)
    femto = tokens * (prices.input or 0) + output * output_price(prices) + prices.request
    return (femto + FEMTO_PER_NANO // 2) // FEMTO_PER_NANO


def expected_ms(model: Model, evidence: Evidence, *, stream: bool) -> float:
    """The time an answer should take: to a stream's first token or to the end; 0 = unknown.

    A whole answer's time says nothing about a stream's first token, nor the other way.
    """
    first, whole = expected_times(model, evidence)
    return first if stream else whole


def expected_times(model: Model, evidence: Evidence) -> tuple[float, float]:
    """Both: to a stream's first token, and to the end of an answer in one piece."""
    view = evidence.providers.get(model.provider_id, UNKNOWN_PROVIDER)
    own = evidence.models.get(model.id, UNKNOWN_MODEL)
    return own.ttft_ms or view.ttft_ms, own.latency_ms or view.latency_ms


def _fault(model: Model, reason: str, limit: float | str = "", value: float | str = "") -> Filtered:
    return Filtered(
        model_id=model.id, provider_id=model.provider_id, reason=reason, limit=limit, value=value
    )
