"""A real database file for each test that asks for one."""

from __future__ import annotations

import pytest

from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase


@pytest.fixture
async def db(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "tokenhub.sqlite", SystemClock())
    yield database
    await database.close()
