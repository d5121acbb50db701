"""A clock that stands still, a database, and a vault whose password hashing is quick."""

from __future__ import annotations

import itertools

import pytest

from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.vault.envelope import KdfParams
from tokenhub.vault.vault import Vault

QUICK = KdfParams(memory_kib=8, iterations=1, lanes=1)


class StillClock:
    """Time moves when a test moves it."""

    def __init__(self):
        self.seconds = 1_000.0
        self._ids = itertools.count()

    def now_ms(self):
        return int(self.seconds * 1000)

    def monotonic(self):
        return self.seconds

    def new_id(self):
        return f"id-{next(self._ids)}"


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
async def db(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "vault.sqlite", SystemClock())
    yield database
    await database.close()


@pytest.fixture
async def open_vault(db, clock):
    async def make(**options):
        return await Vault.open(db, clock, **({"kdf": QUICK, "floor": QUICK} | options))

    return make
