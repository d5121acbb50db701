"""Quantiles of times in constant memory: counts in buckets whose bounds grow by a fixed factor.

A quantile of a sketch is within 2 % of the exact one for values from 0.1 ms to 10 000 s; smaller
and larger values count as those two. There are never more than 461 buckets. Everything is counted
in integers, so that merging is exact: in whatever order and grouping parts are merged, the result
is that of one sketch that saw all values. The bucket scheme is that of DDSketch (Masson, Rim, Lee:
"DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB 2019).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from itertools import accumulate
from math import ceil, log
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

ERROR = 0.02
LOWEST_MS = 0.1
HIGHEST_MS = 1e7

_GAMMA = (1.0 + ERROR) / (1.0 - ERROR)
_SCALE = 1.0 / log(_GAMMA)
FIRST = ceil(log(LOWEST_MS) * _SCALE)
LAST = ceil(log(HIGHEST_MS) * _SCALE)

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


def bucket_of(ms: float) -> int:
    """The bucket of a time: bucket i holds (g^(i-1), g^i] with g = 1.02 / 0.98."""
    if ms <= LOWEST_MS:
        return FIRST
    return min(ceil(log(ms) * _SCALE), LAST)


def _value_of(bucket: int) -> float:
    # The point of (g^(i-1), g^i] from which both ends are equally far, relative to themselves.
    return float(2.0 * _GAMMA**bucket / (_GAMMA + 1.0))


class Sketch:
    """Times in milliseconds: how many, their sum, their extremes and their distribution.

    Attributes:
        count: how many values.
        total: their sum in whole microseconds.
        low, high: the least and the largest in whole microseconds, 0 when empty.
        buckets: bucket number → how many values.
    """

    __slots__ = ("buckets", "count", "high", "low", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.low = 0
        self.high = 0
        self.buckets: dict[int, int] = {}

    def add(self, times: Sequence[float]) -> None:
        """Count some values, one at least."""
        whole = [int(ms * 1000.0) for ms in times]
        low = min(whole)
        if low < self.low or not self.count:
            self.low = low
        self.high = max(self.high, *whole)
        self.count += len(whole)
        self.total += sum(whole)
        buckets = self.buckets
        for ms in times:
            # As bucket_of; the call would be a third of the cost.
            bucket = FIRST if ms <= LOWEST_MS else ceil(log(ms) * _SCALE)
            if bucket > LAST:  # noqa: PLR1730  # min() is a call
                bucket = LAST
            buckets[bucket] = buckets.get(bucket, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Take in all values of another sketch."""
        if not other.count:
            return
        if not self.count or other.low < self.low:
            self.low = other.low
        self.high = max(self.high, other.high)
        self.count += other.count
        self.total += other.total
        buckets = self.buckets
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count

    def subtract(self, other: Sketch) -> None:
        """Take out values that were merged before; ``low`` and ``high`` stay as bounds."""
        self.count -= other.count
        self.total -= other.total
        buckets = self.buckets
        for bucket, count in other.buckets.items():
            if left := buckets[bucket] - count:
                buckets[bucket] = left
            else:
                del buckets[bucket]

    @property
    def mean_ms(self) -> float | None:
        """The exact mean in milliseconds, None when empty."""
        return self.total / self.count / 1000.0 if self.count else None

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Milliseconds below which these shares of the values lie; shares rise; None when empty.

        The value at place ⌊n·share⌋ of the sorted values, at most the last, within ``ERROR``.
        """
        if not self.count:
            return [None] * len(shares)
        numbers = sorted(self.buckets)
        reached = list(accumulate(self.buckets[number] for number in numbers))
        found: list[float | None] = []
        at = 0
        for share in shares:
            rank = min(int(self.count * share), self.count - 1)
            while reached[at] <= rank:
                at += 1
            within = min(_value_of(numbers[at]), self.high / 1000.0)
            found.append(max(within, self.low / 1000.0))
        return found

    def flat(self) -> list[int]:
        """The buckets as small numbers: [number, count, step to the next number, count, …]."""
        flat: list[int] = []
        last = 0
        for number in sorted(self.buckets):
            flat += (number - last, self.buckets[number])
            last = number
        return flat

    def pack(self) -> str:
        """``flat`` as text: base64 of MessagePack."""
        return b64encode(_encode(self.flat())).decode() if self.count else ""

    @classmethod
    def unpack(cls, count: int, total: int, low: int, high: int, text: str) -> Sketch:
        """A sketch from its numbers and the text of ``pack``."""
        return cls.of_flat(count, total, low, high, _decode(b64decode(text)) if text else ())

    @classmethod
    def of_flat(cls, count: int, total: int, low: int, high: int, flat: Sequence[int]) -> Sketch:
        """A sketch from its numbers and ``flat``."""
        sketch = cls()
        sketch.count, sketch.total, sketch.low, sketch.high = count, total, low, high
        sketch.buckets = dict(zip(accumulate(flat[::2]), flat[1::2], strict=True))
        return sketch
