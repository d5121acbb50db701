from __future__ import annotations

import math
import random

import pytest
from tests.unit.routing.world import model

from tokenhub.core.decision import Evidence, Mode
from tokenhub.routing.scoring import PROFILES, Fit, rank


def fit(name, cost=0, latency=0.0, failure=0.0, weight=5):
    return Fit(model(name, weight=weight), cost, None, None, 0.0, latency, failure)


def ranked(fits, mode="normal", temperature=0.0, draw=0.0):
    return rank(fits, mode, temperature, Evidence(), draw)[0]


@pytest.mark.parametrize("mode", sorted(PROFILES))
def test_scores_are_those_of_the_formula(mode):
    profile = PROFILES[mode]
    scored = {
        one.model_id: one.score
        for one in ranked([fit("a", 50, 100.0, 0.2, 4), fit("b", 100, 400.0, 0.1, 8)], mode)
    }
    share = (0.5, 0.25, 1.0, 0.5)
    expected = sum(w * s for w, s in zip(profile, share, strict=True)) - 2 * profile.weight * 0.5
    assert scored["a"] == pytest.approx(expected)
    assert scored["b"] == pytest.approx(
        profile.cost + profile.latency + 0.5 * profile.failure - profile.weight
    )


def test_the_profiles_are_the_documented_ones():
    assert {mode.value: tuple(profile) for mode, profile in PROFILES.items()} == {
        "cheap": (0.7, 0.1, 0.1, 0.1),
        "normal": (0.25, 0.25, 0.25, 0.25),
        "high_confidence": (0.05, 0.1, 0.15, 0.7),
        "planning": (0.1, 0.1, 0.2, 0.6),
        "adversarial": (0.1, 0.1, 0.2, 0.6),
    }
    assert set(PROFILES) | {Mode.THOMPSON} == set(Mode)


def test_terms_add_to_the_score_in_any_order():
    rng = random.Random(1)
    for _ in range(300):
        fits = [
            fit(f"m{i}", rng.randrange(10**9), rng.random() * 1e4, rng.random(), rng.randrange(11))
            for i in range(4)
        ]
        for one in ranked(fits, rng.choice(sorted(PROFILES))):
            terms = list(one.terms.values())
            rng.shuffle(terms)
            naive = 0.0
            for term in terms:
                naive += term
            assert naive == math.fsum(terms) == one.score


def test_nothing_measured_and_nothing_paid_leaves_only_the_weight():
    assert ranked([fit("a", 0, weight=2)])[0].terms == {
        "cost": 0.0,
        "latency": 0.0,
        "failure": 0.0,
        "weight": -0.25,
    }
    assert ranked([fit("a", weight=0)])[0].score == 0.0


def test_a_softmax_over_ranks():
    fits = [fit("a", weight=9), fit("b", weight=5), fit("c", weight=1)]
    odds = [math.exp(-place / 0.7) for place in range(3)]
    found = {one.model_id: one.propensity for one in ranked(fits, temperature=0.7)}
    for name, odd in zip("abc", odds, strict=True):
        assert found[name] == pytest.approx(odd / sum(odds))
    assert [one.model_id for one in ranked(fits, temperature=0.7, draw=0.999)] == ["c", "a", "b"]


def test_a_softmax_is_the_same_to_the_last_bit_on_each_python():
    fits = [fit(name) for name in "abcdefgh"]
    for step in range(1, 40):
        odds = [math.exp(-place / (step / 10)) for place in range(len(fits))]
        best = ranked(fits, temperature=step / 10)[0]
        assert best.propensity == odds[0] / math.fsum(odds)
