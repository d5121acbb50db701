from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.telemetry.finished import Timer, entry, failed

from tokenhub.core.errors import InvalidRequest
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.telemetry.cell import Cell, Group
from tokenhub.telemetry.observer import Observer
from tokenhub.telemetry.query import METRICS, Question
from tokenhub.telemetry.series import DAY, HOUR, MINUTE, SECOND


@pytest.fixture
def start(db, clock):
    async def begin():
        await db.write(lambda _: None)  # what an earlier one has queued is there
        observer = Observer(db, clock, Timer())
        await observer.series.configure()
        await observer.open()
        return observer

    return begin


async def points(observer, metric, **asked):
    answer = await observer.query(Question(metric=metric, **asked))
    found = {}
    for one in answer["series"]:
        for point in one["points"]:
            at = int(datetime.fromisoformat(point["t"]).timestamp() * 1000)
            found[one.get("model_id", ""), at] = point["v"]
    return found


async def total(observer, metric, **asked):
    return sum((await points(observer, metric, **asked)).values())


async def test_a_request_is_seen_by_the_next_question(start, clock):
    observer = await start()
    for step in (SECOND, MINUTE, HOUR):
        observer.observe(entry(clock.ms, 40.0), 0.0)
        assert (await points(observer, "requests", step=step))["m1", clock.ms // step * step] > 0
    clock.ms += 90 * MINUTE
    for step in (MINUTE, HOUR):
        assert await total(observer, "requests", step=step) == 3


traffic = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 250, 999, 1_000, 7_300, 59_999, 60_000, 754_321, HOUR, 9 * HOUR]),
        st.integers(1, 5_000),
        st.booleans(),
        st.sampled_from(["m1", "m2"]),
        st.sampled_from(["", "fold", "ask", "restart", "crash"]),
    ),
    max_size=40,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(traffic=traffic)
def test_counters_are_the_same_at_every_resolution_over_restarts(traffic, clock, tmp_path_factory):
    async def run():
        path = tmp_path_factory.mktemp("series") / "t.sqlite"
        clock.ms = 1_700_000_000_000
        begin = clock.ms
        db = await SqliteDatabase.open(path, clock)

        async def fresh():
            observer = Observer(db, clock, Timer())
            await observer.open()
            return observer

        observer = await fresh()
        tokens = requests = errors = 0
        for passed, prompt, ok, model, then in traffic:
            clock.ms += passed
            change = {"prompt": prompt, "completion": 0, "model_id": model}
            one = entry(clock.ms, 0.0, **change)
            if not ok:
                one = replace(one, error_class="server", status=502)
            observer.observe(one, 0.0)
            tokens, requests, errors = tokens + prompt, requests + 1, errors + (not ok)
            if then == "fold":
                observer.fold()
            elif then == "ask":  # what is kept of the answer must not show in later ones
                for step in (SECOND, MINUTE, HOUR, DAY):
                    span = {"start": begin, "step": step}
                    assert await total(observer, "requests", **span) == requests
            elif then == "restart":
                observer.close()
                await observer.series.settled()
                observer = await fresh()
            elif then == "crash":
                # Everything but the running second is stored; here it was over when it died.
                clock.ms += SECOND
                observer.fold()
                await observer.series.settled()
                observer = await fresh()
        for step in (SECOND, MINUTE, HOUR, DAY):
            span = {"start": begin, "step": step}
            assert await total(observer, "tokens", **span) == tokens
            assert await total(observer, "requests", **span) == requests
            assert await total(observer, "errors", **span) == errors
            assert await total(observer, "latency", aggregate="count", **span) == requests
        await db.close()

    asyncio.run(run())


async def test_every_aggregate_of_times(start, clock):
    observer = await start()
    at = clock.ms // MINUTE * MINUTE
    for latency in (100.0, 200.0, 600.0):
        observer.observe(entry(clock.ms, latency), 0.0)
    clock.ms += 2 * MINUTE
    exact = {"avg": 300.0, "sum": 900.0, "count": 3, "min": 100.0, "max": 600.0}
    for aggregate, value in exact.items():
        assert await points(observer, "latency", step=MINUTE, aggregate=aggregate) == {
            ("m1", at): value
        }
    for aggregate, value in {"p50": 200.0, "p95": 600.0, "p99": 600.0}.items():
        found = await points(observer, "latency", step=MINUTE, aggregate=aggregate)
        assert found == {("m1", at): pytest.approx(value, rel=0.02)}
    assert not (await observer.query(Question(metric="ttft")))["series"]


async def test_counters_are_summed_and_never_averaged(start, clock):
    observer = await start()
    for _ in range(10):
        observer.observe(entry(clock.ms, 1.0, cost=2_500_000_000), 0.0)
    assert await total(observer, "cost", step=HOUR) == 25.0
    clock.ms += 2 * HOUR
    assert await total(observer, "cost", step=DAY) == 25.0
    assert await total(observer, "cost", step=DAY, aggregate="avg") == 2.5


async def test_filters_and_the_series_of_requests_that_reached_nobody(start, clock):
    observer = await start()
    observer.observe(entry(clock.ms), 0.0)
    observer.observe(entry(clock.ms, model_id="m2", provider_id="p2"), 0.0)
    observer.observe(failed(clock.ms, "model_not_found", 404, attempts=[]), 0.0)
    answer = await observer.query(Question(metric="requests"))
    assert [(one.get("model_id"), one.get("provider_id")) for one in answer["series"]] == [
        (None, None),
        ("m1", "p1"),
        ("m2", "p2"),
    ]
    assert await total(observer, "requests", model="m2") == 1
    assert await total(observer, "requests", provider="p1") == 1
    assert await total(observer, "requests", model="m2", provider="p1") == 0


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"metric": ""}, "metric"),
        ({"metric": "stream_bytes"}, "metric"),
        ({"metric": "cost", "aggregate": "p95"}, "agg"),
        ({"metric": "latency", "aggregate": "median"}, "agg"),
        ({"metric": "latency", "start": 2_000_000_000_000}, "start"),
        ({"metric": "latency", "start": 1_650_000_000_000, "step": MINUTE}, "step_ms"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(start, asked, param):
    observer = await start()
    with pytest.raises(InvalidRequest) as refused:
        await observer.query(Question(**asked))
    assert refused.value.param == param
    assert refused.value.hint or param == "start"


async def test_a_year_is_read_as_thousands_of_points(start, clock, db):
    observer = await start()
    begin = clock.ms - 365 * DAY
    begin -= begin % DAY
    for hour in range(365 * 24):
        one = entry(begin + hour * HOUR, 100.0)
        observer.series.advance(one.at_ms)
        line = observer._tally(("m1", "p1", "k1", "", "/v1", 200, "")).line
        observer.series.cell(line).add(Group([one]))
    observer.fold()
    hours = await points(observer, "requests", start=begin, step=HOUR)
    assert len(hours) == 8760
    assert set(hours.values()) == {1}
    chosen = await points(observer, "requests", start=begin)
    assert len(chosen) == 365
    assert sum(chosen.values()) == 8760
    p99 = await points(observer, "latency", start=begin, step=DAY, aggregate="p99")
    assert len(p99) == 365
    assert set(p99.values()) == {100.0}


async def test_the_retention_is_kept_and_old_points_go(start, clock, db):
    observer = await start()
    for _ in range(50):
        clock.ms += 6 * HOUR
        observer.observe(entry(clock.ms, 1.0), 0.0)
        observer.fold()
    await observer.series.set_retention(5)
    assert await observer.prune() > 0
    rows = await db.read("SELECT resolution, MIN(at) FROM series_points GROUP BY resolution")
    oldest = dict(rows)
    assert oldest[HOUR] >= clock.ms - 5 * DAY
    assert oldest[MINUTE] >= clock.ms - 5 * DAY
    assert SECOND not in oldest or oldest[SECOND] >= clock.ms - HOUR
    assert await observer.prune() == 0
    assert (await start()).series.retention_days == 5
    for days in (0, -1, 4000):
        with pytest.raises(InvalidRequest):
            await observer.series.set_retention(days)


async def test_a_start_does_not_roll_up_again_what_was_pruned_since(start, clock):
    observer = await start()
    begin = clock.ms
    for _ in range(200):
        clock.ms += MINUTE // 2
        observer.observe(entry(clock.ms, 1.0), 0.0)
        observer.fold()
    assert await observer.prune() > 0
    observer.close()
    await observer.series.settled()
    observer = await start()
    clock.ms += DAY
    for step in (MINUTE, HOUR, DAY):
        assert await total(observer, "requests", start=begin, step=step) == 200


async def test_rows_that_cannot_be_written_wait(start, clock, db):
    observer = await start()
    await db.write(lambda tx: tx.execute("ALTER TABLE series_points RENAME TO away"))
    observer.observe(entry(clock.ms, 1.0), 0.0)
    observer.fold()
    clock.ms += 2 * SECOND
    observer.fold()
    await observer.series.settled()
    assert observer.series.pending == 3
    await db.write(lambda tx: tx.execute("ALTER TABLE away RENAME TO series_points"))
    await observer.series.settled()
    assert observer.series.pending == observer.series.dropped == 0
    assert await total(observer, "requests", step=SECOND, start=clock.ms - MINUTE) == 1


async def test_what_is_over_is_read_once(start, clock, db):
    observer = await start()
    begin = clock.ms
    for number in range(9):
        clock.ms += DAY
        observer.observe(entry(clock.ms, 100.0 + number, model_id=f"m{number % 2}"), 0.0)
    asked = {"start": begin, "step": 2 * DAY, "aggregate": "p99"}
    first = await points(observer, "latency", **asked)
    await observer.series.settled()
    await db.write(lambda tx: tx.execute("ALTER TABLE series_points RENAME TO away"))
    assert await points(observer, "latency", **asked) == first
    observer.observe(entry(clock.ms, 5_000.0, model_id="m0"), 0.0)
    again = await points(observer, "latency", **asked)
    changed = {one for one in again if again[one] != first[one]}
    assert changed == {max(one for one in first if one[0] == "m0")}
    assert await points(observer, "latency", **asked) == again
    await db.write(lambda tx: tx.execute("ALTER TABLE away RENAME TO series_points"))
    clock.ms += DAY
    observer.observe(entry(clock.ms, 7_000.0), 0.0)
    clock.ms += DAY
    later = await points(observer, "latency", **asked)
    assert len(later) > len(again)
    assert await points(observer, "latency", **asked) == later
    observer.close()
    await observer.series.settled()
    assert await points(await start(), "latency", **asked) == later


async def test_what_was_pruned_or_written_late_is_not_answered_from_memory(start, clock, db):
    observer = await start()
    begin = clock.ms
    observer.observe(entry(clock.ms, 1.0), 0.0)
    clock.ms += HOUR
    observer.fold()
    await observer.series.settled()
    await db.write(lambda tx: tx.execute("ALTER TABLE series_points RENAME TO away"))
    await db.write(lambda tx: tx.execute("CREATE TABLE series_points AS SELECT * FROM away"))
    observer.observe(entry(clock.ms, 1.0), 0.0)
    clock.ms += HOUR
    observer.fold()
    await observer.series.settled()
    assert observer.series.pending
    # The row of the second hour could not be written: no key, so no upsert.
    assert await total(observer, "requests", start=begin, step=HOUR) == 1
    await db.write(lambda tx: tx.execute("DROP TABLE series_points"))
    await db.write(lambda tx: tx.execute("ALTER TABLE away RENAME TO series_points"))
    await observer.series.settled()
    assert await total(observer, "requests", start=begin, step=HOUR) == 2
    clock.ms += 10 * DAY
    observer.observe(entry(clock.ms, 1.0), 0.0)
    assert await total(observer, "requests", start=begin, step=HOUR) == 3
    await observer.series.set_retention(5)
    await observer.prune()
    assert await total(observer, "requests", start=begin, step=HOUR) == 1


async def test_the_clock_set_back_loses_nothing_of_the_day(start, clock):
    observer = await start()
    observer.observe(entry(clock.ms, 1.0), 0.0)
    observer.fold()
    clock.ms -= 10 * MINUTE
    observer.observe(entry(clock.ms, 1.0), 0.0)
    observer.fold()
    clock.ms += HOUR
    assert await total(observer, "requests", step=HOUR) == 2


async def test_the_timer_stops_when_nothing_waits(clock, db):
    timer = Timer()
    observer = Observer(db, clock, timer)
    await observer.open()
    observer.observe(entry(clock.ms, 1.0), 0.0)
    for _ in range(20):
        clock.ms += 250
        timer.fire()
        await observer.series.settled()
    assert not timer.waiting
    assert observer.series.written == 3


def test_every_metric_names_a_default_it_offers():
    for metric in METRICS.values():
        assert metric.default in metric.aggregates


def test_requests_count_the_same_together_and_one_by_one():
    several = [
        entry(0, 3.5), entry(0, 700.0, ttft_ms=40.0, cost=None), failed(0, "timeout"),
        entry(0, 3.5, status=499, error_class="cancelled"), entry(0, 0.01, prompt=7),
    ]  # fmt: skip
    together, single = Cell(), Cell()
    together.add(Group(several))
    for one in several:
        single.add(Group([one]))
    assert together.pack() == single.pack()
    assert (together.requests, together.errors, together.cancelled) == (5, 1, 1)


async def test_one_fold_counts_every_request_in_its_second_and_kind(start, clock):
    observer = await start()
    clock.ms += SECOND - clock.ms % SECOND
    second = clock.ms
    clock.ms += 1500
    for at, key in ((0, "k1"), (10, "k2"), (20, "k1"), (1200, "k1"), (1300, "k2")):
        observer.observe(entry(second + at, 100.0, key_id=key), 0.01)
    counted = await points(observer, "requests", start=second, step=SECOND)
    assert counted == {("m1", second): 3, ("m1", second + SECOND): 2}
    assert observer.metrics.requests.at("normal", "m1", "p1", "ok") == [5]
