from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.telemetry.sketch import ERROR, FIRST, HIGHEST_MS, LAST, LOWEST_MS, Sketch, bucket_of

SHARES = (0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)
times = st.floats(LOWEST_MS, HIGHEST_MS)


def sketch(values):
    made = Sketch()
    if values:
        made.add(values)
    return made


@given(st.lists(times, min_size=1), st.integers(0, 20))
def test_values_count_the_same_together_and_one_by_one(values, first):
    parts, single = sketch(values[:first]), Sketch()
    if values[first:]:
        parts.add(values[first:])
    for value in values:
        single.add([value])
    assert state(parts) == state(single) == state(sketch(values))


def state(one):
    return one.count, one.total, one.low, one.high, one.buckets


@given(st.lists(times, min_size=1, max_size=300))
def test_quantiles_are_within_the_stated_error(values):
    found = sketch(values).quantiles(SHARES)
    ordered = sorted(values)
    for share, value in zip(SHARES, found, strict=True):
        exact = ordered[min(int(len(values) * share), len(values) - 1)]
        # Values are kept to the microsecond.
        assert abs(value - exact) <= exact * ERROR + 0.001, (share, value, exact)


@given(st.lists(st.lists(times, max_size=40), max_size=8))
def test_merging_parts_in_any_grouping_is_the_whole(parts):
    whole = sketch([value for part in parts for value in part])
    left = Sketch()
    for part in parts:
        left.merge(sketch(part))
    right = Sketch()
    for part in reversed(parts):
        step = sketch(part)
        step.merge(right)
        right = step
    assert state(left) == state(whole) == state(right)


@given(st.lists(times, max_size=100), st.lists(times, max_size=100))
def test_what_was_merged_can_be_taken_out_again(stays, goes):
    both = sketch(stays + goes)
    both.subtract(sketch(goes))
    kept = sketch(stays)
    assert (both.count, both.total, both.buckets) == (kept.count, kept.total, kept.buckets)


@given(st.lists(times, max_size=200))
def test_a_packed_sketch_comes_back_whole(values):
    one = sketch(values)
    again = Sketch.unpack(one.count, one.total, one.low, one.high, one.pack())
    assert state(again) == state(one)


def test_memory_is_bounded_whatever_comes():
    one = sketch([0.0, 1e-9, 1e300] + [1.001**n for n in range(30_000)])
    assert len(one.buckets) <= LAST - FIRST + 1 == 461
    assert one.quantiles((0.0, 1.0))[0] <= LOWEST_MS * (1 + ERROR)


def test_a_packed_sketch_of_a_busy_hour_is_small():
    busy = sketch([50 * 1.00001**n for n in range(300_000)])
    assert len(busy.pack()) < 800
    assert not Sketch().pack()


def test_an_empty_sketch_knows_nothing():
    assert Sketch().quantiles((0.5, 0.99)) == [None, None]
    assert Sketch().mean_ms is None


def test_the_mean_is_exact():
    assert sketch([1.0, 2.0, 6.0]).mean_ms == pytest.approx(3.0)


@given(st.floats(0, 1e9))
def test_adding_uses_the_bucket_of_the_value(value):
    assert list(sketch([value]).buckets) == [bucket_of(value)]
