"""The smallest single change that would have chosen another model.

Every answer is proved: the decision is made again with the one change, and differs. Changes are
measured relative to what they change, so that a weight and a price can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.decision import AUTO, ModelView, ProviderView
from tokenhub.core.errors import HubError
from tokenhub.core.money import usd
from tokenhub.routing.decide import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenhub.core.catalog import Model, Prices
    from tokenhub.core.decision import Candidate, Decision, Limits
    from tokenhub.routing.rules import Rules

RIVALS = 5  # candidates looked at besides the choice
RELAXED = 10  # values of a limit looked at, the nearest ones
STEPS = 12  # halvings of the range in which a number is sought
TOP_WEIGHT = 10
DEAREST = 10.0  # a choice is looked for up to this multiple of its price or time


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """One change: of what, of whom, from, to, and which model it would choose.

    ``change`` is its relative size, by which the smallest was found.
    """

    what: str
    model_id: str = ""
    before: float | str
    after: float | str
    chooses: str
    change: float


def smallest_flip(decision: Decision, rules: Rules) -> Flip | None:
    """The smallest change that was found; None when none of the kinds we try does it."""
    return min(_flips(decision, rules), key=lambda flip: flip.change, default=None)


def _flips(decision: Decision, rules: Rules) -> Iterator[Flip]:
    trial = _Trial(decision, rules)
    if decision.policy in {"named", "alias"}:
        yield from _unnamed(trial)
        return
    yield from _limits(trial)
    if decision.policy in {"softmax", "thompson"}:
        yield from _draws(trial)
        return
    chosen, *others = decision.candidates
    for rival in others[:RIVALS]:
        yield from _weight(trial, rival, range(rival.model.weight + 1, TOP_WEIGHT + 1))
        yield from _scaled(trial, rival, 0.0)
    yield from _weight(trial, chosen, range(chosen.model.weight - 1, -1, -1))
    yield from _scaled(trial, chosen, DEAREST)


class _Trial:
    """The decision again, with something changed."""

    def __init__(self, decision: Decision, rules: Rules) -> None:
        self.decision = decision
        self.rules = rules
        self.was = decision.chosen.model_id

    def other(
        self,
        *,
        model: Model | None = None,
        evidence: dict[str, Any] | None = None,
        query: dict[str, Any] | None = None,
        draw: float | None = None,
    ) -> str:
        """The model that is chosen now, "" if it is the same one or none."""
        decision, rules = self.decision, self.rules
        if model is not None:
            models = rules.catalog.models | {model.id: model}
            catalog = msgspec.structs.replace(rules.catalog, models=models)
            rules = msgspec.structs.replace(rules, catalog=catalog)
        asked, seen = decision.query, decision.evidence
        try:
            again = decide(
                msgspec.structs.replace(asked, **query) if query else asked,
                rules,
                msgspec.structs.replace(seen, **evidence) if evidence else seen,
                decision.seed,
                draw=decision.draw if draw is None else draw,
            )
        except HubError:
            return ""
        return "" if again.chosen.model_id == self.was else again.chosen.model_id


def _weight(trial: _Trial, candidate: Candidate, weights: range) -> Iterator[Flip]:
    model = candidate.model
    for weight in weights:
        if other := trial.other(model=msgspec.structs.replace(model, weight=weight)):
            yield Flip(
                what="weight",
                model_id=model.id,
                before=model.weight,
                after=weight,
                chooses=other,
                change=abs(weight - model.weight) / TOP_WEIGHT,
            )
            return


def _scaled(trial: _Trial, candidate: Candidate, end: float) -> Iterator[Flip]:
    """Multiples between 1 and ``end`` of the model's price, time and error rate."""
    model, seen = candidate.model, trial.decision.evidence
    if candidate.cost:

        def priced(factor: float) -> str:
            return trial.other(
                model=msgspec.structs.replace(model, prices=_times(model.prices, factor))
            )

        yield from _found(priced, "cost_usd", model.id, usd(candidate.cost), end)
    own = seen.models.get(model.id, ModelView())
    view = seen.providers.get(model.provider_id, ProviderView())
    if usual := own.usual_ms or view.usual_ms:

        def timed(factor: float) -> str:
            changed = msgspec.structs.replace(own, usual_ms=usual * factor)
            return trial.other(evidence={"models": {**seen.models, model.id: changed}})

        # 0 would mean "never measured", which falls back to the provider's time.
        yield from _found(timed, "latency_ms", model.id, usual, max(end, 0.001))
    if rate := view.error_rate:

        def failing(factor: float) -> str:
            changed = msgspec.structs.replace(view, error_rate=rate * factor)
            return trial.other(
                evidence={"providers": {**seen.providers, model.provider_id: changed}}
            )

        end = min(end, 1.0 / rate)
        yield from _found(failing, "error_rate", model.id, rate, end)


def _found(
    chooses: Callable[[float], str], what: str, model_id: str, before: float, end: float
) -> Iterator[Flip]:
    """The multiple nearest to 1 that flips, between 1 and ``end``, by halving."""
    if not (other := chooses(end)):
        return
    same, flips = 1.0, end
    for _ in range(STEPS):
        middle = (same + flips) / 2.0
        if found := chooses(middle):
            flips, other = middle, found
        else:
            same = middle
    yield Flip(
        what=what,
        model_id=model_id,
        before=before,
        after=before * flips,
        chooses=other,
        change=abs(flips - 1.0),
    )


def _times(prices: Prices, factor: float) -> Prices:
    def times(price: int | None) -> int | None:
        return None if price is None else round(price * factor)

    return msgspec.structs.replace(
        prices,
        input=times(prices.input),
        output=times(prices.output),
        request=round(prices.request * factor),
        tiers=tuple((start, _times(tier, factor)) for start, tier in prices.tiers),
    )


def _draws(trial: _Trial) -> Iterator[Flip]:
    """The nearest other value of the random number: the ends of the choice's interval."""
    draw = trial.decision.draw
    for end in (0.0, 1.0 - 1e-12):

        def at(share: float, end: float = end) -> str:
            return trial.other(draw=draw + (end - draw) * share)

        if not (other := at(1.0)):
            continue
        same, flips = 0.0, 1.0
        for _ in range(4 * STEPS):
            middle = (same + flips) / 2.0
            if found := at(middle):
                flips, other = middle, found
            else:
                same = middle
        after = draw + (end - draw) * flips
        yield Flip(what="draw", before=draw, after=after, chooses=other, change=abs(after - draw))


def _limits(trial: _Trial) -> Iterator[Flip]:
    """The request's limits, each relaxed until a filtered model that comes in is chosen."""
    limits = trial.decision.limits
    for reason, (name, what) in _FIELDS.items():
        missed = {
            -int(-one.value // 1): float(one.limit)
            for one in trial.decision.filtered
            if one.reason == reason and not isinstance(one.value, str)
        }
        nearest = sorted((abs(needed - before), needed) for needed, before in missed.items())
        for distance, needed in nearest[:RELAXED]:
            before = missed[needed]
            changed: Limits = msgspec.structs.replace(limits, **{name: needed})
            if other := trial.other(query={"limits": changed}):
                money = name == "max_budget"
                yield Flip(
                    what=what,
                    before=usd(int(before)) if money else before,
                    after=usd(needed) if money else needed,
                    chooses=other,
                    change=distance / (before or 1.0),
                )
                break


_FIELDS = {
    "budget_exceeded": ("max_budget", "max_budget_usd"),
    "latency_exceeded": ("max_latency_ms", "max_latency_ms"),
    "weight_below_minimum": ("min_weight", "min_weight"),
}


def _unnamed(trial: _Trial) -> Iterator[Flip]:
    if other := trial.other(query={"model": AUTO}):
        yield Flip(
            what="model",
            before=trial.decision.query.model,
            after=AUTO,
            chooses=other,
            change=1.0,
        )
