"""How often and how many at once."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.access import limits
from tokenhub.access.key_rows import KeyRow
from tokenhub.access.limits import AddressLimiter, Bucket, KeyLimits
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import RateLimited


class MovedClock(SystemClock):
    def __init__(self):
        super().__init__()
        self.s = 100.0

    def monotonic(self):
        return self.s


@pytest.fixture
def clock():
    return MovedClock()


@contextmanager
def under_way(key_limits, one):
    running = key_limits.admit(one)
    running.count += 1
    yield
    running.count -= 1


def grant(key_id="k", **fields):
    row = {"id": key_id, "key_hash": "", "key_prefix": "", "name": key_id, "created_at": 0}
    return KeyRow(**row | {"updated_at": 0, "rotated_at": 0} | fields).grant(1)


@given(
    st.lists(st.integers(-5, 30), max_size=40),
    st.integers(1, 20),
    st.integers(1, 9),
)
def test_a_bucket_never_gives_more_than_burst_and_rate(steps, rate, burst):
    now, latest, bucket = 0.0, 0.0, Bucket(burst, 0.0)
    given_out = 0
    for step in steps:
        now += step / 10
        latest = max(latest, now)
        wait = bucket.take(rate, burst, now)
        if not wait:
            given_out += 1
        else:
            # What it says to wait is enough, and nothing less is.
            assert 0 < wait <= 1 / rate + 1e-9
            assert Bucket.take(_copy(bucket), rate, burst, latest + wait * 0.99)
            assert not Bucket.take(_copy(bucket), rate, burst, latest + wait + 1e-6)
        assert given_out <= burst + latest * rate + 1e-6


def _copy(bucket):
    copy = Bucket(0, 0)
    copy._tokens, copy.at = bucket._tokens, bucket.at
    return copy


def test_a_full_bucket_holds_its_burst_however_long_nobody_came():
    bucket = Bucket(3, 0.0)
    assert [bool(bucket.take(1, 3, 1000.0)) for _ in range(4)] == [False, False, False, True]


def test_a_keys_rate_is_its_own_or_the_servers(clock):
    by_default = KeyLimits(clock, default_rps=1, default_burst=2)
    for rate, at_once in ((0, 2), (3, 6)):
        one = grant(f"k{rate}", rate_limit_rps=rate)
        for _ in range(at_once):
            by_default.admit(one)
        with pytest.raises(RateLimited) as caught:
            by_default.admit(one)
        assert caught.value.code == "rate_limited"
    for _ in range(100):
        by_default.admit(grant("free", rate_limit_rps=-1))
    assert by_default.refused == 2
    clock.s += 1
    by_default.admit(grant("k0"))


def test_requests_at_once_are_counted_until_each_has_ended(clock):
    key_limits = KeyLimits(clock)
    two = grant(max_concurrent=2)
    with under_way(key_limits, two):
        with under_way(key_limits, two), pytest.raises(RateLimited) as caught:
            key_limits.admit(two)
        assert caught.value.code == "concurrency_limited"
        assert key_limits.running("k") == 1
        with under_way(key_limits, two):
            assert key_limits.running("k") == 2
    assert key_limits.running("k") == key_limits.running("other") == 0
    assert key_limits.refused == 1


def test_keys_that_came_once_are_forgotten_and_those_under_way_are_not(clock, monkeypatch):
    monkeypatch.setattr(limits, "MAX_IDLE_KEYS", 5)
    key_limits = KeyLimits(clock)
    with under_way(key_limits, grant("busy")):
        for number in range(50):
            with under_way(key_limits, grant(f"k{number}")):
                pass
            assert len(key_limits._running) <= 5
        assert key_limits.running("busy") == 1
        with pytest.raises(RateLimited):
            key_limits.admit(grant("busy", max_concurrent=1))


def test_a_bucket_is_forgotten_when_it_is_full_again_and_not_before(clock, monkeypatch):
    monkeypatch.setattr(limits, "MAX_IDLE_KEYS", 5)
    key_limits = KeyLimits(clock, default_rps=1, default_burst=4)
    for number in range(50):
        key_limits.admit(grant(f"k{number}"))
        clock.s += 1
        assert len(key_limits._buckets) <= 5
    spent = grant("spent")
    for _ in range(4):
        key_limits.admit(spent)
    clock.s += 3
    for number in range(5):
        key_limits.admit(grant(f"other{number}"))
    for _ in range(3):
        key_limits.admit(spent)
    with pytest.raises(RateLimited):
        key_limits.admit(spent)


def test_an_address_is_the_last_one_that_no_trusted_proxy_wrote(clock):
    limiter = AddressLimiter(clock, 1, 1, ("10.0.0.0/8",))
    ours = {b"x-forwarded-for": b"6.6.6.6, 1.2.3.4, 10.0.0.2"}
    limiter.check("10.0.0.1", ours)
    with pytest.raises(RateLimited):
        limiter.check("10.0.0.9", {b"x-forwarded-for": b"1.2.3.4"})
    limiter.check("9.9.9.9", ours)  # no proxy of ours: its own address counts
    with pytest.raises(RateLimited):
        limiter.check("9.9.9.9", {})
    assert limiter.refused == 2
    clock.s += 1
    limiter.check("9.9.9.9", {})


def test_an_address_with_a_zone_is_none(clock):
    """A zone is text of any length, and addresses are kept."""
    limiter = AddressLimiter(clock, 1, 1, ("10.0.0.0/8",))
    limiter.check("10.0.0.1", {b"x-forwarded-for": b"fe80::1%" + b"a" * 30_000})
    assert list(limiter._buckets) == ["10.0.0.1"]
