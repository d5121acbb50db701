from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.routing.thompson import (
    FLOOR,
    PRIOR,
    Bandit,
    bucket_of,
    draw_index,
    propensities,
)

NOW = 1_800_000_000_000
HOUR = 3_600_000
_arms = st.lists(st.tuples(st.floats(0.001, 0.999), st.floats(0.01, 0.29)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("tokens", "bucket"),
    [(0, "small"), (999, "small"), (1000, "medium"), (10_000, "medium"), (10_001, "large")],
)
def test_bucket_edges(tokens, bucket):
    assert bucket_of(tokens) == bucket


@given(_arms)
def test_propensities_are_a_distribution_with_a_floor(arms):
    chances = propensities(arms)
    assert math.fsum(chances) == pytest.approx(1.0)
    assert min(chances) >= FLOOR / len(arms) * 0.999


@given(_arms, st.floats(0.0, 1.0, exclude_max=True))
def test_a_draw_always_falls_on_an_arm(arms, draw):
    assert 0 <= draw_index(propensities(arms), draw) < len(arms)


@pytest.mark.parametrize("count", [10, 1_000, 20_000])
@pytest.mark.parametrize("arm", [PRIOR, (0.9, 0.01), (0.2, 0.1)])
def test_no_number_of_arms_is_too_many(count, arm):
    mean, sd = arm
    assert propensities([arm] * count) == pytest.approx([1 / count] * count)
    chances = propensities([*[arm] * count, (mean + sd / 10, sd)])
    assert chances[-1] > 1.1 * chances[0]
    assert chances[:-1] == pytest.approx([chances[0]] * count)
    assert sum(chances) == pytest.approx(1)


@pytest.mark.parametrize(("count", "most"), [(2, 0.03), (3, 0.05), (5, 0.09), (20, 0.15)])
def test_propensities_are_those_of_thompson_sampling(count, most):
    rng = random.Random(count)
    apart = 0.0
    for _ in range(10):
        betas = []
        for _ in range(count):
            mean, seen = rng.uniform(0.3, 0.95), rng.uniform(0, 60)
            betas.append((1 + seen * mean, 1 + seen * (1 - mean)))
        wins = [0] * count
        for _ in range(2000):
            drawn = [rng.betavariate(alpha, beta) for alpha, beta in betas]
            wins[drawn.index(max(drawn))] += 1
        chances = propensities([_gaussian(alpha, beta) for alpha, beta in betas])
        apart += sum(abs(c - w / 2000) for c, w in zip(chances, wins, strict=True)) / 2
    assert apart / 10 < most


def _gaussian(alpha, beta):
    mean = alpha / (alpha + beta)
    return mean, math.sqrt(mean * (1 - mean) / (alpha + beta + 1))


def test_the_better_arm_takes_over_and_the_choice_follows_change():
    rng = random.Random(5)
    bandit = Bandit()
    worth = {"a": 0.8, "b": 0.5, "c": 0.3}

    def share_of(name, requests):
        chosen = 0
        for _ in range(requests):
            view = bandit.view(worth, "small", NOW)
            arms = [view.get(one, PRIOR) for one in worth]
            pick = list(worth)[draw_index(propensities(arms), rng.random())]
            chosen += pick == name
            bandit.update(pick, "small", float(rng.random() < worth[pick]), NOW)
        return chosen / requests

    share_of("a", 300)
    assert share_of("a", 500) > 0.85
    worth["a"], worth["b"] = 0.2, 0.8
    share_of("b", 300)
    assert share_of("b", 500) > 0.8


def test_an_idle_arm_forgets_with_time():
    bandit = Bandit()
    for _ in range(100):
        bandit.update("m", "small", 0.0, NOW)
    fresh = bandit.view(["m"], "small", NOW)["m"]
    later = bandit.view(["m"], "small", NOW + 24 * HOUR)["m"]
    much_later = bandit.view(["m"], "small", NOW + 240 * HOUR)["m"]
    assert fresh[0] < later[0] < much_later[0]
    assert much_later[0] == pytest.approx(0.5, abs=0.03)
    assert fresh[1] < later[1] < much_later[1]


def test_buckets_are_learned_apart():
    bandit = Bandit()
    bandit.update("m", "small", 1.0, NOW)
    assert bandit.view(["m"], "large", NOW) == {}


def test_a_snapshot_brings_everything_back():
    bandit, other = Bandit(), Bandit()
    for number in range(50):
        bandit.update(f"m{number % 3}", "medium", number / 50, NOW + number * HOUR)
    other.restore(bandit.snapshot())
    later = NOW + 100 * HOUR
    names = ["m0", "m1", "m2"]
    assert other.view(names, "medium", later) == bandit.view(names, "medium", later)


def test_a_corrected_reward_is_as_if_it_had_been_learned_so():
    corrected, direct = Bandit(), Bandit()
    corrected.update("m", "small", 0.9, NOW)
    corrected.correct("m", "small", -0.4, NOW)
    direct.update("m", "small", 0.5, NOW)
    one, two = (bandit.view(["m"], "small", NOW)["m"] for bandit in (corrected, direct))
    assert one == pytest.approx(two)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["update", "correct", "view", "wait", "other"]),
            st.sampled_from(["a", "b", "c", "d"]),
            st.floats(0, 1),
        )
    )
)
def test_a_view_that_is_kept_up_is_the_one_made_anew(steps):
    kept = Bandit()
    now = NOW
    models = {"a": 1, "b": 1, "c": 1}
    for what, name, number in steps:
        if what == "update":
            kept.update(name, "small", number, now)
        elif what == "correct":
            kept.correct(name, "small", number - 0.5, now)
        elif what == "wait":
            now += round(number * 90_000)
        elif what == "other":
            models = {name: 1, "a": 1}
        before = kept.view(models, "small", now)
        copy = dict(before)
        anew = Bandit()
        anew.restore(kept.snapshot())
        assert before == anew.view(models, "small", now)
        kept.update("a", "small", number, now)
        kept.view(models, "small", now)
        assert before == copy
