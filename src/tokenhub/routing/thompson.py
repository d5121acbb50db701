"""Thompson sampling: what was learned of each model, and how likely each one is the best.

An arm is a (model, token bucket). Its posterior is Beta(1 + successes, 1 + failures) over rewards
in [0, 1], read as a Gaussian of the same mean and variance.

The choice is drawn from explicit probabilities, so the propensity of every choice is exact by
construction. ``p`` of an arm is proportional to its probability of beating its strongest rival:
for the arm of the highest mean that is the runner-up, for all others it is that leader. With two
arms this *is* Thompson sampling; with more it stays within a few hundredths of it (the test
measures it) at a cost linear in the arms. A share ``FLOOR`` is spread evenly over all arms, so that
no propensity is near zero and offline evaluation stays possible.

Forgetting has two rates. Each new reward of an arm fades what the arm knew by ``FADE``, so a busy
arm follows change within about 100 requests; and every arm's knowledge halves in ``HALF_LIFE_MS``,
so an arm nobody asks any more becomes uncertain again and is tried again.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import erfc, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FADE = 0.99
HALF_LIFE_MS = 24 * 3_600_000
FLOOR = 0.01
TICK_MS = 60_000  # arms fade with time in steps of this size
BUCKETS = ("small", "medium", "large")
PRIOR = (0.5, 1 / 12)  # mean and variance of Beta(1, 1)


def bucket_of(tokens: int) -> str:
    """The token bucket: below 1000, up to 10 000, above."""
    if tokens < 1000:
        return "small"
    return "medium" if tokens <= 10_000 else "large"


class Arm:
    """What is known of one model in one bucket: faded sums of reward and of what missed 1."""

    __slots__ = ("lost", "mean", "tick", "variance", "won")

    def __init__(self, tick: int = 0, won: float = 0.0, lost: float = 0.0) -> None:
        self.tick = tick
        self.won = won
        self.lost = lost
        self.mean, self.variance = PRIOR
        self._derive()

    def _derive(self) -> None:
        alpha = 1.0 + self.won
        total = alpha + 1.0 + self.lost
        self.mean = mean = alpha / total
        self.variance = mean * (1.0 - mean) / (total + 1.0)

    def age(self, tick: int) -> None:
        """Fade to a later tick; an earlier one changes nothing."""
        if tick > self.tick:
            faded = 0.5 ** ((tick - self.tick) * TICK_MS / HALF_LIFE_MS)
            self.won *= faded
            self.lost *= faded
            self.tick = tick
            self._derive()

    def learn(self, reward: float) -> None:
        """Take in one reward."""
        self.won = self.won * FADE + reward
        self.lost = self.lost * FADE + (1.0 - reward)
        self._derive()

    def correct(self, change: float) -> None:
        """Move a reward that was already taken in by ``change``."""
        self.won = max(self.won + change, 0.0)
        self.lost = max(self.lost - change, 0.0)
        self._derive()


class Bandit:
    """All arms. Time comes with each call, in Unix milliseconds."""

    def __init__(self) -> None:
        self._arms: dict[str, dict[str, Arm]] = {bucket: {} for bucket in BUCKETS}
        self._ticks = dict.fromkeys(BUCKETS, 0)

    def update(self, model_id: str, bucket: str, reward: float, now_ms: int) -> None:
        """Learn that an attempt at a model came to ``reward`` in [0, 1]."""
        self._arm(model_id, bucket, now_ms).learn(reward)

    def correct(self, model_id: str, bucket: str, change: float, now_ms: int) -> None:
        """Move an earlier reward by ``change``, when feedback arrives after the fact."""
        self._arm(model_id, bucket, now_ms).correct(change)

    def _arm(self, model_id: str, bucket: str, now_ms: int) -> Arm:
        tick = now_ms // TICK_MS
        arms = self._arms[bucket]
        if (arm := arms.get(model_id)) is None:
            arm = arms[model_id] = Arm(tick)
        elif tick != arm.tick:
            arm.age(tick)
        return arm

    def view(
        self, model_ids: Iterable[str], bucket: str, now_ms: int
    ) -> dict[str, tuple[float, float]]:
        """Posterior mean and variance of the models that have learned something."""
        arms = self._arms[bucket]
        tick = now_ms // TICK_MS
        if tick != self._ticks[bucket]:
            self._ticks[bucket] = tick
            for arm in arms.values():
                arm.age(tick)
        get = arms.get
        found = {}
        for model_id in model_ids:
            known = get(model_id)
            if known is not None:
                found[model_id] = (known.mean, known.variance)
        return found

    def snapshot(self) -> dict[str, dict[str, tuple[int, float, float]]]:
        """Everything known: bucket → model → (tick, won, lost)."""
        return {
            bucket: {name: (arm.tick, arm.won, arm.lost) for name, arm in arms.items()}
            for bucket, arms in self._arms.items()
        }

    def restore(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Become what ``snapshot`` described."""
        for bucket in BUCKETS:
            self._arms[bucket] = {
                name: Arm(int(tick), won, lost)
                for name, (tick, won, lost) in state.get(bucket, {}).items()
            }
            self._ticks[bucket] = 0


def propensities(arms: Sequence[tuple[float, float]]) -> list[float]:
    """The probability of choosing each of some arms, given as (mean, variance); they sum to 1."""
    count = len(arms)
    if count == 1:
        return [1.0]
    top = max(arms)
    leader = arms.index(top)
    mean, variance = top
    # erfc(x) / 2 is the Gaussian probability of being more than x * sqrt(2) deviations above.
    wins = [0.5 * erfc((mean - m) / sqrt(2.0 * (variance + v) or 1e-12)) for m, v in arms]
    wins[leader] = 0.0
    wins[leader] = 1.0 - max(wins)
    scale = (1.0 - FLOOR) / sum(wins)
    even = FLOOR / count
    return [win * scale + even for win in wins]


def draw_index(chances: Sequence[float], draw: float) -> int:
    """The index that a number in [0, 1) falls on, by the inverse of the distribution function."""
    return min(bisect_right(list(accumulate(chances)), draw), len(chances) - 1)
