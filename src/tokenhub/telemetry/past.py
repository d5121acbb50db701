"""Answers about what is over, kept for whoever asks again.

A board asks for the same year every few seconds, and all of it but the last step stays the same
for a day. So points of steps that are over are kept until a row of their resolution is written or
deleted, and such a question costs what has changed since.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenhub.telemetry.sketch import Sketch

MOST_POINTS_KEPT = 30_000  # some 300 bytes each

Points = list[dict[str, Any]]
Key = tuple[object, ...]


class Sums:
    """A step's numbers under way, for every aggregate but quantiles."""

    __slots__ = ("count", "high", "low", "total")

    def __init__(self, count: int, total: int, low: int, high: int) -> None:
        self.count = count
        self.total = total
        self.low = low
        self.high = high

    def merge(self, other: Sums) -> None:
        """Take in another step's."""
        if not self.count or (other.count and other.low < self.low):
            self.low = other.low
        self.high = max(self.high, other.high)
        self.count += other.count
        self.total += other.total


class Past(NamedTuple):
    """What the stored rows say, by label number. It is shared, so nobody may change it.

    Attributes:
        points: of the steps before the one that is not over.
        last: that step's stored part.
    """

    points: dict[int, Points]
    last: dict[int, Sums | Sketch]

    @property
    def size(self) -> int:
        """How many points there are."""
        return sum(map(len, self.points.values())) + len(self.last)


class Memory:
    """The pasts that were asked for last, with the version of the rows they were made of."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, tuple[int, Past]] = OrderedDict()
        self._size = 0

    def get(self, key: Key, version: int) -> Past | None:
        """The past of a question; None when it is not known, or not true any more."""
        found = self._kept.get(key)
        if found is None or found[0] != version:
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: Key, version: int, past: Past) -> None:
        """Keep a past; those that were not asked for longest make room."""
        if key in self._kept:
            self._size -= self._kept.pop(key)[1].size
        self._kept[key] = version, past
        self._size += past.size
        while self._size > MOST_POINTS_KEPT:
            self._size -= self._kept.popitem(last=False)[1][1].size
