"""Thompson sampling: what was learned of each model, and how likely each one is the best.

An arm is a (model, token bucket). Its posterior is Beta(1 + successes, 1 + failures) over rewards
in [0, 1], read as a Gaussian of the same mean and variance.

The choice is drawn from explicit probabilities, so the propensity of every choice is exact by
construction. They are those of Thompson sampling, the probability of each arm to be the best one,
integrated over six points with a logistic in place of the Gaussian. From sampling the Betas
themselves they differ by 0.01 with two arms, 0.05 with five and 0.1 with twenty (mean total
variation; the test measures it). A share ``FLOOR`` is spread evenly over all arms, so that no
propensity is near zero and offline evaluation stays possible.

Forgetting has two rates. Each new reward of an arm fades what the arm knew by ``FADE``, so a busy
arm follows change within about 100 requests; and every arm's knowledge halves in ``HALF_LIFE_MS``,
so an arm nobody asks any more becomes uncertain again and is tried again.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import exp, fsum, log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

FADE = 0.99
HALF_LIFE_MS = 24 * 3_600_000
FLOOR = 0.01
TICK_MS = 60_000  # arms fade with time in steps of this size
BUCKETS = ("small", "medium", "large")
PRIOR = (0.5, sqrt(1 / 12))  # mean and standard deviation of Beta(1, 1)

LOGISTIC = 1.702  # makes the logistic function differ from the Gaussian one by less than 0.01
TINY = 1e-250  # a product of thousands of factors below it may be nothing but rounding
LEFT, RIGHT = 2.0, 2.5  # standard deviations around the means where the best reward is looked for
SD_MIN = 0.01


def bucket_of(tokens: int) -> str:
    """The token bucket: below 1000, up to 10 000, above."""
    if tokens < 1000:
        return "small"
    return "medium" if tokens <= 10_000 else "large"


class Arm:
    """What is known of one model in one bucket: faded sums of reward and of what missed 1.

    ``known`` is the posterior once somebody has asked; whoever changes the sums sets it to None.
    """

    __slots__ = ("count", "known", "lost", "tick", "won")

    def __init__(self, tick: int = 0, won: float = 0.0, lost: float = 0.0) -> None:
        self.tick = tick
        self.won = won
        self.lost = lost
        self.count = 0  # rewards taken in by this process
        self.known: tuple[float, float] | None = None

    @property
    def posterior(self) -> tuple[float, float]:
        """Mean and standard deviation; found when asked for, which is rarer than an answer."""
        if self.known is None:
            alpha = 1.0 + self.won
            total = alpha + 1.0 + self.lost
            mean = alpha / total
            self.known = mean, max(sqrt(mean * (1.0 - mean) / (total + 1.0)), SD_MIN)
        return self.known

    def age(self, tick: int) -> None:
        """Fade to a later tick; an earlier one changes nothing."""
        if tick > self.tick:
            faded = 0.5 ** ((tick - self.tick) * TICK_MS / HALF_LIFE_MS)
            self.won *= faded
            self.lost *= faded
            self.tick = tick
            self.known = None

    def recall(self, reward: float, tick: int) -> None:
        """Take in a reward that is older than all that were taken in, as if it had come first."""
        weight: float = FADE**self.count
        if tick < self.tick:
            weight *= 0.5 ** ((self.tick - tick) * TICK_MS / HALF_LIFE_MS)
        self.won += weight * reward
        self.lost += weight * (1.0 - reward)
        self.count += 1
        self.known = None

    def correct(self, change: float) -> None:
        """Move a reward that was already taken in by ``change``."""
        self.won = max(self.won + change, 0.0)
        self.lost = max(self.lost - change, 0.0)
        self.known = None


class _Bucket:
    """The arms of one token bucket, and the view of them that was last given out."""

    __slots__ = ("arms", "changed", "models", "tick", "view")

    def __init__(self) -> None:
        self.arms: dict[str, Arm] = {}
        self.changed: set[str] = set()  # since the view was made
        self.models: Collection[str] = ()  # those it is of
        self.tick = 0
        self.view: dict[str, tuple[float, float]] = {}


class Bandit:
    """All arms. Time comes with each call, in Unix milliseconds."""

    def __init__(self) -> None:
        self._buckets = {bucket: _Bucket() for bucket in BUCKETS}

    def update(self, model_id: str, bucket: str, reward: float, now_ms: int) -> None:
        """Learn that an attempt at a model came to ``reward`` in [0, 1]."""
        found = self._buckets[bucket]
        arm = found.arms.get(model_id)
        if arm is None or arm.tick != now_ms // TICK_MS:
            arm = _arm(found, model_id, now_ms)
        # Not a method of the arm's, for each answer pays this.
        arm.won = arm.won * FADE + reward
        arm.lost = arm.lost * FADE + (1.0 - reward)
        arm.count += 1
        arm.known = None
        found.changed.add(model_id)

    def recall(self, model_id: str, bucket: str, reward: float, then_ms: int) -> None:
        """Learn an earlier reward again; to be called latest first."""
        found = self._buckets[bucket]
        tick = then_ms // TICK_MS
        if (arm := found.arms.get(model_id)) is None:
            arm = found.arms[model_id] = Arm(tick)
        arm.recall(reward, tick)
        found.changed.add(model_id)

    def correct(self, model_id: str, bucket: str, change: float, now_ms: int) -> None:
        """Move an earlier reward by ``change``, when feedback arrives after the fact."""
        found = self._buckets[bucket]
        _arm(found, model_id, now_ms).correct(change)
        found.changed.add(model_id)

    def view(
        self, models: Collection[str], bucket: str, now_ms: int
    ) -> dict[str, tuple[float, float]]:
        """Posterior mean and standard deviation of the models that have learned something.

        Args:
            models: their ids; the same object as last time stands for the same ids, and then only
                what was learned meanwhile is looked at.
            bucket: whose arms.
            now_ms: to which they fade.

        Returns:
            What is never changed afterwards.
        """
        found = self._buckets[bucket]
        arms = found.arms
        tick = now_ms // TICK_MS
        if tick != found.tick:
            found.tick = tick
            for arm in arms.values():
                arm.age(tick)
        elif models is found.models:
            if found.changed:
                fresh = {i: arms[i].posterior for i in found.changed if i in models}
                found.view = found.view | fresh
                found.changed = set()
            return found.view
        found.models = models
        found.view = {i: arms[i].posterior for i in models if i in arms}
        found.changed = set()
        return found.view

    def snapshot(self) -> dict[str, dict[str, tuple[int, float, float]]]:
        """Everything known: bucket → model → (tick, won, lost)."""
        return {
            bucket: {name: (arm.tick, arm.won, arm.lost) for name, arm in found.arms.items()}
            for bucket, found in self._buckets.items()
        }

    def restore(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Become what ``snapshot`` described."""
        for bucket in BUCKETS:
            found = self._buckets[bucket] = _Bucket()
            for name, (tick, won, lost) in state.get(bucket, {}).items():
                found.arms[name] = Arm(int(tick), won, lost)


def _arm(found: _Bucket, model_id: str, now_ms: int) -> Arm:
    tick = now_ms // TICK_MS
    if (arm := found.arms.get(model_id)) is None:
        arm = found.arms[model_id] = Arm(tick)
    elif tick != arm.tick:
        arm.age(tick)
    return arm


def propensities(arms: Sequence[tuple[float, float]]) -> list[float]:
    """The probability of choosing each of some arms, given as (mean, sd); they sum to 1.

    With F the distribution function and f the density of each arm's logistic, arm a is the best
    with probability ∫ f_a · Π F_b (b ≠ a) dx, and f/F = k·(1 - F).
    """
    count = len(arms)
    if count == 1:
        return [1.0]
    low = max([mean - LEFT * sd for mean, sd in arms])
    high = min(max([mean + RIGHT * sd for mean, sd in arms]), 1.0)
    step = (high - low) / 6.0
    first = low + step / 2.0
    b0 = b1 = b2 = b3 = b4 = b5 = 1.0  # Π F at the six points
    columns = []
    # Written out: half the time of loops over points, and every thompson request pays it.
    for at, (mean, sd) in enumerate(arms):
        if mean + RIGHT * sd <= low:
            continue
        k = LOGISTIC / sd
        # Each point lies above mean - LEFT * sd of every arm, so exp() stays small.
        e = exp((mean - first) * k)
        ratio = exp(-step * k)
        f0 = 1.0 / (1.0 + e)
        e *= ratio
        f1 = 1.0 / (1.0 + e)
        e *= ratio
        f2 = 1.0 / (1.0 + e)
        e *= ratio
        f3 = 1.0 / (1.0 + e)
        e *= ratio
        f4 = 1.0 / (1.0 + e)
        f5 = 1.0 / (1.0 + e * ratio)
        b0 *= f0
        b1 *= f1
        b2 *= f2
        b3 *= f3
        b4 *= f4
        b5 *= f5
        columns.append((at, k, f0, f1, f2, f3, f4, f5))
    if b0 + b1 + b2 + b3 + b4 + b5 < TINY:
        # Thousands of arms: only what the products are to each other matters.
        logs = [fsum(map(log, f)) for f in list(zip(*columns, strict=True))[2:]]
        top = max(logs)
        b0, b1, b2, b3, b4, b5 = (exp(one - top) for one in logs)
    total = b0 + b1 + b2 + b3 + b4 + b5
    wins = [
        k * (total - f0 * b0 - f1 * b1 - f2 * b2 - f3 * b3 - f4 * b4 - f5 * b5)
        for _, k, f0, f1, f2, f3, f4, f5 in columns
    ]
    # Not sum(), which rounds in another way since Python 3.12: a replay has the same propensity.
    scale = (1.0 - FLOOR) / fsum(wins)
    chances = [FLOOR / count] * count
    for column, win in zip(columns, wins, strict=True):
        chances[column[0]] += win * scale
    return chances


def draw_index(chances: Sequence[float], draw: float) -> int:
    """The index that a number in [0, 1) falls on, by the inverse of the distribution function."""
    return step_index(steps_of(chances), draw)


def steps_of(chances: Sequence[float]) -> list[float]:
    """The distribution function at each index but the last, for ``step_index``."""
    return list(accumulate(chances[:-1]))


def step_index(steps: Sequence[float], draw: float) -> int:
    """The index that a number in [0, 1) falls on."""
    return bisect_right(steps, draw)
