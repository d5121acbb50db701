"""Ranking: the weight profiles, the four terms of a score, and what is drawn at random.

    score = Wc·cost/maxCost + Wl·lat/maxLat + Wf·fail/maxFail - Ww·weight/maxWeight

over the models that may answer; a ratio is 0 where its maximum is 0. Lower is better. Ties go to
the lower id.
"""

from __future__ import annotations

from itertools import repeat
from math import exp, fsum
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tokenhub.core.decision import Candidate, Evidence, Mode
from tokenhub.routing.thompson import PRIOR, draw_index, propensities, step_index, steps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenhub.core.catalog import Model


# Multiples of 2^-40 below 1 add without rounding, so the terms of a score sum to it exactly, in any
# order and by any algorithm.
_GRID = 1 << 40
_SCORE_THEN_ID = itemgetter(0, 1)


class Profile(NamedTuple):
    """How much each term counts."""

    cost: float
    latency: float
    failure: float
    weight: float


PROFILES: dict[str, Profile] = {
    Mode.CHEAP: Profile(0.7, 0.1, 0.1, 0.1),
    Mode.NORMAL: Profile(0.25, 0.25, 0.25, 0.25),
    Mode.HIGH_CONFIDENCE: Profile(0.05, 0.1, 0.15, 0.7),
    Mode.PLANNING: Profile(0.1, 0.1, 0.2, 0.6),
    Mode.ADVERSARIAL: Profile(0.1, 0.1, 0.2, 0.6),
}


class Fit(NamedTuple):
    """A model that may answer, before it is ranked; the fields are those of ``Candidate``."""

    model: Model
    cost: int | None
    bound: int | None
    output_cap: int | None
    expected_ms: float
    latency_ms: float  # what the latency term reads, 0 = unknown
    error_rate: float


def rank(
    fits: Sequence[Fit], mode: str, temperature: float, evidence: Evidence, draw: float
) -> tuple[tuple[Candidate, ...], str]:
    """The models as candidates, the drawn one first and the others best first; and the policy.

    Args:
        fits: at least one.
        mode: a ``Mode`` value.
        temperature: of the softmax over ranks, which ``thompson`` does not use; 0 = the best.
        evidence: holds the arms that ``thompson`` reads.
        draw: a number in [0, 1).
    """
    if mode == Mode.THOMPSON:
        return _by_reward(fits, evidence, draw), "thompson"
    ranked = _by_score(fits, PROFILES[mode])
    if temperature <= 0 or len(ranked) == 1:
        return (_certain(ranked[0]), *ranked[1:]), "weighted"
    odds = [exp(-place / temperature) for place in range(len(ranked))]
    total = fsum(odds)  # sum() rounds in another way since Python 3.12; a replay must not
    spread = [
        msgspec.structs.replace(candidate, propensity=odd / total)
        for candidate, odd in zip(ranked, odds, strict=True)
    ]
    return _drawn(spread, draw), "softmax"


def _certain(candidate: Candidate) -> Candidate:
    return msgspec.structs.replace(candidate, propensity=1.0)


def _drawn(ranked: list[Candidate], draw: float) -> tuple[Candidate, ...]:
    index = draw_index([candidate.propensity for candidate in ranked], draw)
    return (ranked[index], *ranked[:index], *ranked[index + 1 :])


def _by_score(fits: Sequence[Fit], profile: Profile) -> list[Candidate]:
    # An unknown price counts as the dearest known one, so that no mode prefers a model because
    # nobody entered its price.
    of_cost, of_latency, of_failure, of_weight = (part * _GRID for part in profile)
    max_cost = max([fit.cost or 0 for fit in fits])
    most_cost = max_cost or 1
    most_latency = max([fit.latency_ms for fit in fits]) or 1.0
    most_failure = max([fit.error_rate for fit in fits]) or 1.0
    most_weight = max([fit.model.weight for fit in fits]) or 1
    ranked = []
    for fit in fits:
        share = max_cost if fit.cost is None else fit.cost
        cost = int(of_cost * (share / most_cost)) / _GRID
        latency = int(of_latency * (fit.latency_ms / most_latency)) / _GRID
        failure = int(of_failure * (fit.error_rate / most_failure)) / _GRID
        weight = -int(of_weight * (fit.model.weight / most_weight)) / _GRID
        terms = {"cost": cost, "latency": latency, "failure": failure, "weight": weight}
        ranked.append((cost + latency + failure + weight, fit.model.id, fit, terms))
    ranked.sort(key=_SCORE_THEN_ID)
    return [_candidate(fit, score, terms) for score, _, fit, terms in ranked]


def _by_reward(fits: Sequence[Fit], evidence: Evidence, draw: float) -> tuple[Candidate, ...]:
    fits = sorted(fits, key=_model_id)
    odds = Odds([fit.model.id for fit in fits], evidence)
    chosen = step_index(odds.steps, draw)
    candidates = [
        odds.candidate(place, fit.model, fit.cost, fit.expected_ms, fit.bound, fit.output_cap)
        for place, fit in enumerate(fits)
    ]
    rest = candidates[:chosen] + candidates[chosen + 1 :]
    rest.sort(key=_score_then_id)
    return (candidates[chosen], *rest)


class Odds:
    """How likely each of some models is to be chosen by ``thompson``.

    It depends on the arms alone, not on the request, so many requests can share it. The models
    stand in the order of their ids, which is the same when a decision is made again.

    Attributes:
        arms: mean and standard deviation of each.
        chances: the propensity of each.
        steps: the distribution function, for ``step_index``.
    """

    __slots__ = ("arms", "chances", "steps")

    def __init__(self, model_ids: Sequence[str], evidence: Evidence) -> None:
        self.arms = list(map(evidence.arms.get, model_ids, repeat(PRIOR)))
        self.chances = propensities(self.arms) if self.arms else []
        self.steps = steps_of(self.chances)

    def candidate(
        self,
        place: int,
        model: Model,
        cost: int | None,
        expected_ms: float,
        bound: int | None = None,
        output_cap: int | None = None,
    ) -> Candidate:
        """The model at a place as a candidate; its other figures are those of ``Fit``."""
        mean, sd = self.arms[place]
        return Candidate(
            model=model,
            score=-mean,
            terms={"reward": -mean},
            cost=cost,
            bound=bound,
            output_cap=output_cap,
            expected_ms=expected_ms,
            propensity=self.chances[place],
            mean=mean,
            sd=sd,
        )


def _model_id(fit: Fit) -> str:
    return fit.model.id


def _score_then_id(candidate: Candidate) -> tuple[float, str]:
    return candidate.score, candidate.model.id


def _candidate(fit: Fit, score: float, terms: dict[str, float]) -> Candidate:
    return Candidate(
        model=fit.model,
        score=score,
        terms=terms,
        cost=fit.cost,
        bound=fit.bound,
        output_cap=fit.output_cap,
        expected_ms=fit.expected_ms,
    )


def plain(fit: Fit, propensity: float = 0.0) -> Candidate:
    """A candidate that nothing was compared with, because the client named it."""
    return msgspec.structs.replace(_candidate(fit, 0.0, {}), propensity=propensity)
