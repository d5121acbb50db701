"""A database and a ledger on it, both real, under a clock that stands still."""

from __future__ import annotations

import pytest
from tests.unit.access.money import StillClock

from tokenhub.access.bookkeeper import Bookkeeper
from tokenhub.access.ledger import Ledger
from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
async def db(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "money.sqlite", SystemClock())
    yield database
    await database.close()


@pytest.fixture
async def ledger(db, clock):
    opened = await Ledger.open(db, clock)
    yield opened
    await opened.close()


@pytest.fixture
async def books(db, clock, ledger):
    return Bookkeeper(db, clock, ledger)
