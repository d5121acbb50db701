from __future__ import annotations

import asyncio
import sys
from collections import deque

import pytest
from tests.unit.telemetry.finished import Timer, attempt, entry, failed

from tokenhub.telemetry import observer as observer_module
from tokenhub.telemetry.cell import MOST, Group
from tokenhub.telemetry.observer import Observer
from tokenhub.telemetry.series import DAY, HOUR, MINUTE, SECOND


@pytest.fixture
def start(db, clock):
    async def begin():
        await db.write(lambda _: None)  # what an earlier one has queued is there
        observer = Observer(db, clock, Timer())
        await observer.open()
        return observer

    return begin


def names(key_id):
    return {"k1": "alice"}.get(key_id, "")


async def windows(observer, dimension="global", **which):
    report = await observer.report(names)
    rows = report[dimension]
    if dimension != "global":
        rows = [row for of_window in rows.values() for row in of_window]
    matching = [r for r in rows if all(r[name] == value for name, value in which.items())]
    return {row["window"]: row for row in matching}


async def test_every_field_of_an_aggregate(start, clock):
    observer = await start()
    for latency in (100.0, 200.0, 300.0):
        observer.observe(entry(clock.ms, latency, ttft_ms=latency / 2, stream=True), 0.05)
    observer.observe(failed(clock.ms), 0.0)
    observer.observe(failed(clock.ms, "cancelled", 499, latency_ms=50.0), 0.0)
    row = (await windows(observer))["1m"]
    assert row == {
        "window": "1m",
        "request_count": 5,
        "error_count": 1,
        "cancelled_count": 1,
        "error_rate": 0.2,
        "errors_by_class": {"server": 1},
        "avg_latency_ms": 150.0,
        "p50_latency_ms": pytest.approx(100, rel=0.02),
        "p95_latency_ms": pytest.approx(300, rel=0.02),
        "p99_latency_ms": pytest.approx(300, rel=0.02),
        "avg_ttft_ms": 100.0,
        "p50_ttft_ms": pytest.approx(100, rel=0.02),
        "p95_ttft_ms": pytest.approx(150, rel=0.02),
        "p99_ttft_ms": pytest.approx(150, rel=0.02),
        "total_cost_usd": 0.003,
        "unpriced_count": 2,
        "input_tokens": 30,
        "output_tokens": 60,
        "total_tokens": 90,
    }


async def test_groups_add_up_to_the_whole(start, clock):
    observer = await start()
    for number in range(60):
        observer.observe(
            entry(
                clock.ms,
                model_id=f"m{number % 3}",
                provider_id=f"p{number % 2}",
                key_id=f"k{number % 5}",
                mode=("cheap", "")[number % 2],
            ),
            0.0,
        )
    observer.observe(failed(clock.ms), 0.0)
    report = await observer.report(names)
    for dimension in ("by_model", "by_provider", "by_api_key", "by_mode"):
        for window in ("1m", "5m", "1h", "24h"):
            assert sum(row["request_count"] for row in report[dimension][window]) == 61
    keys = {row["api_key_id"]: row["api_key_name"] for row in report["by_api_key"]["1m"]}
    assert keys["k1"] == "alice"
    assert keys["k2"] == "k2"
    assert {row["model_id"] for row in report["by_model"]["1m"]} == {"m0", "m1", "m2"}


async def test_each_window_forgets_in_its_time(start, clock):
    observer = await start()
    observer.observe(entry(clock.ms, 1.0), 0.0)
    assert set(await windows(observer)) == {"1m", "5m", "1h", "24h"}
    for passed, left in (
        (MINUTE - SECOND, {"1m", "5m", "1h", "24h"}),
        (6 * SECOND, {"5m", "1h", "24h"}),
        (5 * MINUTE, {"1h", "24h"}),
        (HOUR - MINUTE, {"24h"}),
        (23 * HOUR + 20 * MINUTE, set()),
    ):
        clock.ms += passed
        assert set(await windows(observer)) == left, passed


async def test_a_restart_changes_nothing(start, clock):
    observer = await start()
    for number in range(3000):
        clock.ms += 20_011  # about 16 hours
        made = entry if number % 7 else failed
        observer.observe(made(clock.ms - 300, latency_ms=1.0 + number % 250), 0.0)
        if number % 10 == 0:
            observer.fold()
    before = await observer.report(names)
    observer.close()
    clock.ms += 400
    again = await (await start()).report(names)
    assert before["global"][3]["request_count"] == 3000
    # Counts, sums and sketches are integers: not close, but the same. Only the least and the
    # largest time, which bound a quantile, are forgotten with the cells they were in.
    rows, others = _rows(before), _rows(again)
    assert [_exact(row) for row in rows] == [_exact(row) for row in others]
    for row, other in zip(rows, others, strict=True):
        for name in QUANTILES:
            assert other[name] == pytest.approx(row[name], rel=0.05)


QUANTILES = ("p50_latency_ms", "p95_latency_ms", "p99_latency_ms")


def _rows(report):
    nested = [rows for name in report if name != "global" for rows in report[name].values()]
    return [row for rows in [report["global"], *nested] for row in rows]


def _exact(row):
    return {name: value for name, value in row.items() if name not in QUANTILES}


async def test_what_is_observed_before_the_past_is_taken_up_is_counted_then(start, db, clock):
    first = await start()
    first.observe(entry(clock.ms, 1.0), 0.0)
    first.fold()
    clock.ms += 2 * SECOND
    first.close()
    await db.write(lambda _: None, patient=True)
    timer = Timer()
    again = Observer(db, clock, timer)
    again.observe(entry(clock.ms, 1.0), 0.0)
    asked = asyncio.create_task(again.report(names))
    for _ in range(600):
        again.observe(entry(clock.ms, 1.0), 0.0)
    timer.fire()
    await asyncio.sleep(0)
    assert not asked.done()
    await again.open()
    report = await asked
    assert [row["request_count"] for row in report["global"]] == [602] * 4


async def test_statistics_begin_anew_where_the_stored_ones_cannot_be_read(db, clock, caplog):
    await db.close()
    observer = Observer(db, clock, Timer())
    await observer.open()
    observer.observe(entry(clock.ms, 1.0), 0.0)
    assert (await windows(observer))["1m"]["request_count"] == 1
    assert "cannot be read" in caplog.text


async def test_a_process_that_died_loses_the_running_second_only(start, clock):
    observer = await start()
    for number in range(500):
        clock.ms += 10_007
        observer.observe(entry(clock.ms - 10, 10.0 + number), 0.0)
        observer.fold()
        observer.series.flush()
    await observer.series.settled()
    [row] = [r for r in (await (await start()).report(names))["global"] if r["window"] == "24h"]
    assert row["request_count"] == 499


async def test_labels_beyond_the_cap_are_counted_together(start, clock):
    observer = await start()
    for number in range(MOST["key"] + 50):
        observer.observe(entry(clock.ms, key_id=f"k{number}"), 0.0)
    report = await observer.report(names)
    rows = {row["api_key_id"]: row for row in report["by_api_key"]["1m"]}
    assert len(rows) == MOST["key"] + 1
    assert rows["other"]["request_count"] == 50
    # A day later the names of then have made room.
    clock.ms += DAY + HOUR
    await observer.prune()
    observer.observe(entry(clock.ms, key_id="late"), 0.0)
    assert set(await windows(observer, "by_api_key", api_key_id="late"))


async def test_models_beyond_the_cap_are_one_group_in_every_family(start, clock, monkeypatch):
    observer = await start()
    groups = []
    monkeypatch.setattr(observer_module, "Group", lambda some: groups.append(some) or Group(some))
    for number in range(MOST["pair"] + 50):
        observer.observe(entry(clock.ms, model_id=f"m{number}"), 0.0)
        if number % 2:
            observer.observe(failed(clock.ms, attempts=[attempt(f"m{number}", "p1", "reset")]), 0.0)
    report = await observer.report(names)
    by_model = {row["model_id"]: row["request_count"] for row in report["by_model"]["1m"]}
    assert (len(by_model), by_model["other"], by_model["m1"]) == (MOST["pair"] + 1, 75, 2)
    requests = observer.metrics.requests
    assert requests.at("normal", "other", "p1", "ok") == [50]
    assert requests.at("normal", "other", "p1", "error") == [25]
    assert requests.at("normal", "m1", "p1", "error") == [1]
    assert sorted(map(len, groups))[-3:] == [1, 25, 50]


def size_of(thing, seen):
    """Bytes of everything reachable from an object of ours."""
    if id(thing) in seen or isinstance(thing, type) or callable(thing):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        inner = thing
    elif type(thing).__module__.startswith("tokenhub.telemetry"):
        slots = [getattr(thing, name) for name in getattr(thing, "__slots__", ())]
        inner = [*slots, *getattr(thing, "__dict__", {}).values()]
    else:
        inner = ()
    return size + sum(size_of(one, seen) for one in inner)


async def test_a_hundred_thousand_requests_with_nobody_reading(start, clock, db):
    observer = await start()

    async def pour(count, apart):
        for number in range(count):
            clock.ms += apart
            latency = 5.0 + number % 2000
            change = {"model_id": f"m{number % 5}", "key_id": f"k{number % 8}"}
            observer.observe(entry(clock.ms - 3000, latency, **change), 0.0)
            if number % 1000 == 0:
                observer.series.flush()
                observer.stats.expire(clock.ms)
                await observer.series.settled()
        observer.fold()
        await observer.series.settled()

    await pour(4_000, 25_000)
    day = size_of(observer, set())
    await pour(96_000, 10)
    assert observer.series.dropped == observer.series.pending == 0
    assert observer.series.retention_days
    # After a full day more traffic fills slots better, but there are no more of them.
    assert size_of(observer, set()) < day + 1_500_000 < 4_000_000
    assert all(len(window.totals) == 5 + 8 + 1 for window in observer.stats._windows)
    # One row for each label and second, minute, hour and day in which it was seen: no more.
    [(rows,)] = await db.read("SELECT COUNT(*) FROM series_points")
    seconds, minutes, rest = 4_000 * 3 + 960 * 14, 4_000 * 3 + 16 * 14, 33 * 14
    assert rows <= seconds + minutes + rest


async def test_a_closed_second_is_taken_in_step_by_step(start, clock):
    observer = await start()
    observer.observe(entry(clock.ms), 0.0)
    clock.ms += 1000
    timer = observer._call_later
    timer.fire()
    done = [bool(window.totals) for window in observer.stats._windows]
    assert not any(done)
    for number in range(2):
        timer.fire()
        done = [bool(window.totals) for window in observer.stats._windows]
        assert sum(done) == number + 1
    timer.fire()
    assert not observer.stats.late
    clock.ms += MINUTE
    observer.observe(entry(clock.ms), 0.0)
    timer.fire()
    for number in range(2):
        timer.fire()
        done = [bool(window.totals) for window in observer.stats._windows]
        assert sum(done) == number + 3


async def test_every_window_holds_every_request_once_whatever_ends_meanwhile(start, clock):
    observer = await start()
    clock.ms += MINUTE - clock.ms % MINUTE - 2_500
    for count in range(1, 9):
        observer.observe(entry(clock.ms, 1.0), 0.0)
        if count % 2:  # half of the ends are found by who asks, half by the timer
            observer._call_later.fire()
        rows = (await windows(observer)).values()
        assert [row["request_count"] for row in rows] == [count] * 4
        clock.ms += 700
    observer.fold()
    observer.close()
    again = await start()
    assert [row["request_count"] for row in (await windows(again)).values()] == [8] * 4
    again.close()
    clock.ms += MINUTE
    later = await windows(await start())
    assert [later[name]["request_count"] for name in ("5m", "1h", "24h")] == [8] * 3


async def test_what_ends_while_somebody_reads_is_in_no_sum_twice(start, clock):
    observer = await start()
    for turns in range(0, 200, 20):
        for number in range(50):
            observer.observe(entry(clock.ms, 1.0, model_id=f"m{number}"), 0.0)
        clock.ms += SECOND
        observer.fold()
        reading = asyncio.ensure_future(observer.report(names))
        for _ in range(turns):
            await asyncio.sleep(0)
        clock.ms += MINUTE
        for _ in range(6):
            observer._call_later.fire()
        day = (await reading)["global"][-1]
        assert (day["window"], day["request_count"]) == ("24h", 50 * (1 + turns // 20))
    for _ in range(5):
        observer._call_later.fire()
    assert not observer.stats.late


async def test_a_second_that_closes_while_somebody_reads_is_counted_once(start, clock):
    observer = await start()
    for count, turns in enumerate(range(0, 200, 5), 1):
        clock.ms += SECOND
        for number in range(50):
            observer.observe(entry(clock.ms, 1.0, model_id=f"m{number}"), 0.0)
        reading = asyncio.ensure_future(observer.report(names))
        for _ in range(turns):
            await asyncio.sleep(0)
        clock.ms += SECOND
        observer.fold()
        *_, hour, day = (await reading)["global"]
        assert (hour["request_count"], day["request_count"]) == (50 * count, 50 * count)


async def test_readers_at_once_see_each_request_once(start, clock):
    observer = await start()
    readings = []
    for count in range(1, 12):
        clock.ms += 20 * SECOND
        for number in range(50):
            observer.observe(entry(clock.ms, 1.0, model_id=f"m{number}"), 0.0)
        observer.fold()
        readings.append((50 * count, asyncio.ensure_future(observer.report(names))))
        for _ in range(40):  # each is still reading when the next one begins
            await asyncio.sleep(0)
    for least, reading in readings:
        rows = {row["window"]: row["request_count"] for row in (await reading)["global"]}
        assert all(count % 50 == 0 for count in rows.values())
        assert least <= rows["1h"] <= rows["24h"] <= 50 * 11


async def test_names_of_the_running_minute_keep_their_place(start, clock):
    observer = await start()
    for number in range(MOST["key"]):
        observer.observe(entry(clock.ms, key_id=f"k{number}"), 0.0)
    clock.ms += SECOND
    await observer.prune()
    observer.observe(entry(clock.ms, key_id="late"), 0.0)
    assert not await windows(observer, "by_api_key", api_key_id="late")


async def test_who_asks_in_between_finds_the_closed_second_whole(start, clock):
    observer = await start()
    observer.observe(entry(clock.ms), 0.0)
    clock.ms += 1000
    observer._call_later.fire()
    assert observer.stats.late
    report = await observer.report(str)
    assert [row["request_count"] for row in report["global"]] == [1] * 4
    assert not observer.stats.late
