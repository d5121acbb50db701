from __future__ import annotations

import pytest
from tests.unit.telemetry.finished import entry

from tokenhub.storage.database import StorageFailed
from tokenhub.telemetry.journal import PRUNE_SLICE, Journal
from tokenhub.telemetry.retention import DAY_MS, Retention, Rule


@pytest.fixture
def asked():
    return []


def rule(name, days, asked, result=3):
    async def prune(before_ms):
        asked.append((name, before_ms))
        if isinstance(result, Exception):
            raise result
        return result

    return Rule(name, days, prune)


async def test_each_table_by_its_own_days_and_zero_keeps_all(clock, asked):
    rules = (rule("log", 90, asked), rule("kept", 0, asked), rule("series", 1, asked))
    retention = Retention(clock, rules)
    await retention.apply()
    await retention.apply()
    assert asked[:2] == [("log", clock.ms - 90 * DAY_MS), ("series", clock.ms - DAY_MS)]
    assert retention.deleted == {"log": 6, "kept": 0, "series": 6}


async def test_one_table_that_fails_does_not_keep_the_others(clock, asked, caplog):
    broken = rule("log", 1, asked, StorageFailed("The disk is full."))
    retention = Retention(clock, (broken, rule("series", 1, asked)))
    await retention.apply()
    assert [name for name, _ in asked] == ["log", "series"]
    assert "log were not deleted: The disk is full." in caplog.text


async def test_the_request_log_shrinks_in_slices(clock, db):
    journal = Journal(db, lambda _delay, _call: None, lambda _: "")
    await journal.open()
    old = PRUNE_SLICE + 10
    for number in range(old + 5):
        journal.append(entry(clock.ms - (100 if number < old else 10) * DAY_MS))
    await journal.settled()
    retention = Retention(clock, (Rule("request_log", 90, journal.prune),))
    await retention.apply()
    assert retention.deleted == {"request_log": old}
    assert await db.read("SELECT COUNT(*) FROM request_log") == [(5,)]
