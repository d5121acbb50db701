"""A real database file for each test that asks for one."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase

# How long an example takes is the machine's business, not the code's.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
async def db(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "tokenhub.sqlite", SystemClock())
    yield database
    await database.close()
