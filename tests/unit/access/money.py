"""A clock, keys and models for tests of the ledger."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import msgspec

from tokenhub.core.bounds import Bound, Measure
from tokenhub.core.catalog import Model, Prices
from tokenhub.core.chat import Usage

SIZE = Measure(text=100)
PRICED = Model(
    id="m",
    provider_id="p",
    # One nano-dollar per token of any kind.
    prices=Prices(input=1_000_000, output=1_000_000, source="manual"),
)
UNPRICED = Model(id="u", provider_id="p")
FREE = Model(id="f", provider_id="p", prices=Prices(input=0, output=0, source="manual"))


class StillClock:
    """Time moves when a test moves it."""

    def __init__(self, at="2026-11-23T12:00:00"):
        self.ms = at_ms(at)
        self._ids = itertools.count()

    def now_ms(self):
        return self.ms

    def monotonic(self):
        return self.ms / 1000

    def new_id(self):
        return f"id-{next(self._ids)}"

    def set(self, at):
        self.ms = at_ms(at)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str = "k"
    revision: int = 0
    monthly_budget: int | None = None
    daily_budget: int | None = None
    total_budget: int | None = None


def at_ms(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def most(nano):
    """A bound of so many nano-dollars."""
    return Bound(nano=nano, priced=True, prompt=nano, output=0, max_tokens=None, measure=SIZE)


def used(tokens):
    """Usage that costs so many nano-dollars at ``PRICED``."""
    return Usage(prompt=tokens)
