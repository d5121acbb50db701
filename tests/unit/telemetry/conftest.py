from __future__ import annotations

import pytest

from tokenhub.storage.sqlite import SqliteDatabase


class Clock:
    def __init__(self):
        self.ms = 1_700_000_000_000
        self.ids = 0

    def now_ms(self):
        return self.ms

    def monotonic(self):
        return self.ms / 1000

    def new_id(self):
        self.ids += 1
        return f"r-{self.ids}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def db(tmp_path, clock):
    database = await SqliteDatabase.open(tmp_path / "t.sqlite", clock)
    yield database
    await database.close()
