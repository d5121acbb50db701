from __future__ import annotations

import asyncio
import threading

import pytest

from tokenhub.core.decision import Attempt, encode_attempts
from tokenhub.core.errors import NotFound
from tokenhub.telemetry import journal as module
from tokenhub.telemetry.journal import Entry, Filter, Journal, status_range


@pytest.fixture
async def journal(db):
    found = Journal(db, asyncio.get_running_loop().call_later, lambda key: f"name of {key}")
    await found.open()
    return found


def entry(number, **changes):
    row = {
        "request_id": f"r-{number}", "client_id": "", "session": "", "at_ms": 1000 + number,
        "endpoint": "/v1/chat", "key_id": "k", "asked": "auto", "model_id": "m",
        "provider_id": "p", "mode": "cheap", "alias": "", "reason": "why", "stream": False,
        "status": 200, "error_class": "", "error": "", "finish_reason": "stop",
        "latency_ms": 12.5, "ttft_ms": None, "prompt": 3, "completion": 4, "cached_read": 0,
        "cached_write": 0, "reasoning": 0, "counted_by": "provider", "cost": 2500,
        "price_source": "manual", "price_version": "",
        "attempts": [Attempt(number=1, model_id="m", provider_id="p", at_ms=1, cost=2500)],
    }  # fmt: skip
    row |= changes
    return Entry(**row, attempts_json=encode_attempts(row["attempts"]))


async def test_rows_come_back_newest_first_with_cost_and_tokens(journal):
    journal.append(entry(1))
    journal.append(entry(2, cost=None, status=502))
    new, old = await journal.list(Filter(), 10)
    assert [new["request_id"], old["request_id"]] == ["r-2", "r-1"]
    assert (old["estimated_cost_usd"], new["estimated_cost_usd"]) == (2.5e-6, None)
    assert (old["total_tokens"], old["api_key_name"]) == (7, "name of k")


async def test_one_request_has_its_attempts(journal):
    attempts = [
        Attempt(number=1, model_id="a", provider_id="p", at_ms=1, kind="timeout", message="slow"),
        Attempt(number=2, model_id="b", provider_id="q", at_ms=2, cost=7, latency_ms=1.23456),
    ]
    journal.append(entry(1, attempts=attempts))
    shown = await journal.get("r-1")
    assert shown["attempt_count"] == 2
    assert [one["error_class"] for one in shown["attempts"]] == ["timeout", ""]
    assert shown["attempts"][1]["latency_ms"] == 1.235
    with pytest.raises(NotFound):
        await journal.get("r-2")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(model="m2"), [2]),
        (Filter(provider="p"), [3, 2, 1]),
        (Filter(key="other"), [3]),
        (Filter(status="429"), [2]),
        (Filter(status="5xx"), [3]),
        (Filter(status="error"), [3, 2]),
        (Filter(since_ms=1002), [3, 2]),
        (Filter(since_ms=1002, until_ms=1003), [2]),
    ],
)
async def test_filters(journal, wanted, found):
    journal.append(entry(1))
    journal.append(entry(2, model_id="m2", status=429))
    journal.append(entry(3, key_id="other", status=503))
    rows = await journal.list(wanted, 10)
    assert [int(row["request_id"][2:]) for row in rows] == found


async def test_a_full_queue_drops_and_counts(journal, monkeypatch):
    monkeypatch.setattr(module, "MOST_PENDING", 5)
    for number in range(8):
        journal.append(entry(number))
    assert journal.dropped == 3
    assert len(await journal.list(Filter(), 100)) == 5


async def test_what_the_writer_has_not_taken_fills_the_queue_too(journal, db, monkeypatch):
    monkeypatch.setattr(module, "MOST_PENDING", 5)
    at_work, go_on = threading.Event(), threading.Event()

    def hold_up(_):
        at_work.set()
        go_on.wait(10)

    busy = asyncio.create_task(db.write(hold_up))
    await asyncio.to_thread(at_work.wait, 10)
    for number in range(4):
        journal.append(entry(number))
        journal.flush()
    journal.append(entry(4))
    journal.append(entry(5))
    assert (journal.pending, journal.dropped) == (5, 1)
    go_on.set()
    await busy
    await journal.settled()
    assert (journal.pending, journal.written, journal.dropped) == (0, 5, 1)


async def test_rows_that_cannot_be_written_are_counted_as_dropped(journal, db, caplog):
    await db.write(lambda tx: tx.execute("ALTER TABLE request_log RENAME TO away"))
    journal.append(entry(1))
    journal.append(entry(2))
    await journal.settled()
    assert (journal.pending, journal.written, journal.dropped) == (0, 0, 2)
    assert "The request log cannot be written; its rows are lost." in caplog.text


async def test_numbering_goes_on_after_a_restart(journal, db):
    journal.append(entry(1))
    await journal.settled()
    again = Journal(db, asyncio.get_running_loop().call_later, str)
    await again.open()
    again.append(entry(2))
    assert [row["request_id"] for row in await again.list(Filter(), 10)] == ["r-2", "r-1"]


async def test_pruning_in_slices_keeps_what_is_younger(journal, monkeypatch):
    monkeypatch.setattr(module, "PRUNE_SLICE", 3)
    for number in range(10):
        journal.append(entry(number))
    await journal.settled()
    assert await journal.prune(1008) == 8
    assert {row["request_id"] for row in await journal.list(Filter(), 100)} == {"r-8", "r-9"}


@pytest.mark.parametrize("text", ["", "2xxx", "abc", "6xx", "20", "-200", "٢٠٠"])
def test_nonsense_is_no_status(text):
    with pytest.raises(ValueError):
        status_range(text)


async def test_many_rows_are_written_in_pieces_and_in_order(journal, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 4)
    pieces = []
    write_soon = journal._db.write_soon
    monkeypatch.setattr(
        journal._db,
        "write_soon",
        lambda *each, **how: (pieces.append(how), write_soon(*each, **how)),
    )
    for number in range(10):
        journal.append(entry(number))
    rows = await journal.list(Filter(), 100)
    assert [row["request_id"] for row in rows] == [f"r-{number}" for number in range(9, -1, -1)]
    assert pieces == [{"patient": True}] * 3
    assert (journal.pending, journal.written) == (0, 10)
