from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.routing.world import ManualClock

from tokenhub.core.catalog import Catalog, Provider
from tokenhub.core.errors import FailureClass
from tokenhub.routing.circuit import BUCKET_S, BUCKETS, MIN_SAMPLES, Window
from tokenhub.routing.health import ATTRIBUTABLE, Health

INNOCENT = [
    FailureClass.CLIENT,
    FailureClass.CONTEXT,
    FailureClass.CONTENT_FILTER,
    FailureClass.CANCELLED,
    FailureClass.DEADLINE,
    FailureClass.LATENCY,
]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def health(clock):
    return Health(clock)


def state_of(health):
    return health.rows(["p"])[0]["state"]


def fail(health, times, kind=FailureClass.SERVER):
    for _ in range(times):
        health.failed("p", kind, "broken")


def test_two_errors_degrade_and_five_close(health):
    seen = []
    health.on_change(lambda *change: seen.append(change))
    fail(health, 1)
    assert state_of(health) == "healthy"
    fail(health, 1)
    assert state_of(health) == "degraded"
    assert health.available("p")
    fail(health, 3)
    assert state_of(health) == "down"
    assert not health.available("p")
    assert seen == [("p", "healthy", "degraded", "server"), ("p", "degraded", "down", "server")]


@pytest.mark.parametrize("kind", INNOCENT)
def test_errors_of_the_request_never_count(health, kind):
    fail(health, 20, kind)
    assert state_of(health) == "healthy"
    assert health.rows(["p"])[0]["total_errors"] == 0


def test_the_ejection_grows_and_is_capped(health, clock):
    fail(health, 5)
    for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300]:
        clock.advance(expected - 0.01)
        assert not health.begin("p")
        clock.advance(0.02)
        assert health.begin("p")
        fail(health, 1)
    assert state_of(health) == "down"


def test_a_provider_that_was_well_for_long_starts_again_at_30_seconds(health, clock):
    for _ in range(2):
        fail(health, 5)
        clock.advance(61)
        assert health.begin("p")
        health.answered("p", "m", 10.0)
        clock.advance(400)
    fail(health, 5)
    clock.advance(30.01)
    assert health.begin("p")


@pytest.mark.parametrize(
    "trouble",
    [
        lambda health: fail(health, 4),
        lambda health: health.failed("p", FailureClass.AUTH),
        lambda health: health.failed("p", FailureClass.RATE_LIMITED),
        lambda health: [health.probed("p", "no") for _ in range(2)],
    ],
)
def test_an_answer_ends_every_doubt_that_came_after_earlier_answers(health, clock, trouble):
    for _ in range(3):
        health.answered("p", "m", 10.0)
        health.answered("p", "m", 10.0)
        trouble(health)
        health.answered("p", "m", 10.0)
        assert state_of(health) == "healthy"
        circuit = health._circuits["p"]
        assert (circuit.consecutive, circuit.rejected, circuit.pauses) == (0, 0, 0)
        clock.advance(60)


def test_one_trial_at_a_time(health, clock):
    fail(health, 5)
    clock.advance(30)
    assert health.begin("p")
    assert not health.begin("p")
    assert health.views()[0]["p"].closed == "probing"
    health.cancelled("p")
    assert health.begin("p")
    health.answered("p", "m", 10.0)
    assert health.begin("p")
    assert health.begin("p")
    assert state_of(health) == "healthy"


def test_a_lost_trial_is_given_up_after_a_minute(health, clock):
    fail(health, 5)
    clock.advance(30)
    assert health.begin("p")
    clock.advance(59.9)
    assert not health.begin("p")
    clock.advance(0.2)
    assert health.begin("p")


def test_the_first_token_ends_a_trial(health, clock):
    fail(health, 5)
    clock.advance(30)
    assert health.begin("p")
    health.first_token("p")
    assert health.begin("p")
    assert state_of(health) == "healthy"


def test_failures_already_under_way_prolong_nothing(health, clock):
    fail(health, 5)
    fail(health, 20)
    clock.advance(30.01)
    assert health.begin("p")


def test_retry_after_closes_without_illness(health, clock):
    health.failed("p", FailureClass.RATE_LIMITED, "slow down", retry_after=7.5)
    assert state_of(health) == "healthy"
    assert health.views()[0]["p"].closed == "rate_limited"
    clock.advance(7.4)
    assert not health.begin("p")
    clock.advance(0.11)
    assert health.begin("p")
    assert health.views()[0]["p"].closed == ""


def test_an_earlier_retry_after_never_shortens_a_later_one(health, clock):
    health.failed("p", FailureClass.RATE_LIMITED, "", retry_after=60)
    health.failed("p", FailureClass.RATE_LIMITED, "", retry_after=1)
    clock.advance(59)
    assert not health.begin("p")


def test_a_bare_429_pauses_longer_each_time(health, clock):
    for expected in [1, 2, 4, 8, 16, 30, 30]:
        fail(health, 1, FailureClass.RATE_LIMITED)
        clock.advance(expected - 0.1)
        assert not health.begin("p")
        clock.advance(0.2)
        assert health.begin("p")


def test_one_refused_credential_degrades_and_two_close(health):
    fail(health, 1, FailureClass.AUTH)
    assert state_of(health) == "degraded"
    assert health.available("p")
    fail(health, 1, FailureClass.AUTH)
    assert health.views()[0]["p"].closed == "auth"
    health.reset("p")
    assert health.available("p")


def test_an_empty_account_closes_at_once(health):
    fail(health, 1, FailureClass.QUOTA)
    assert health.views()[0]["p"].closed == "quota"


def test_probes_are_kept_apart_from_traffic(health, clock):
    for _ in range(5):
        health.probed("p", "no answer")
    row = health.rows(["p"])[0]
    assert row["state"] == "down"
    assert (row["total_requests"], row["total_errors"], row["consec_errors"]) == (0, 0, 0)
    assert row["avg_latency_ms"] == 0
    health.probed("p", None)
    assert state_of(health) == "healthy"
    assert health.available("p")


def test_a_good_probe_does_not_excuse_bad_traffic(health):
    fail(health, 5)
    health.probed("p", None)
    assert not health.available("p")


def test_the_window_forgets_and_the_average_does_not(health, clock):
    for latency in (100, 200, 300):
        health.answered("p", "m", latency, latency / 10)
    fail(health, 1)
    view = health.views()[0]["p"]
    assert (view.latency_ms, view.ttft_ms, view.error_rate) == (200, 20, 0.25)
    assert health.views()[1]["m"].latency_ms == 200
    clock.advance(301)
    view = health.views()[0]["p"]
    assert (view.latency_ms, view.ttft_ms, view.error_rate) == (0, 0, 0)
    assert view.usual_ms == pytest.approx(100 * 0.81 + 200 * 0.09 + 300 * 0.1)
    assert health.views()[1]["m"].latency_ms == 0


@given(st.lists(st.tuples(st.floats(0, 200), st.booleans(), st.integers(1, 999)), max_size=60))
def test_the_figures_of_a_window_are_those_of_its_last_five_minutes(events):
    window, now, seen = Window(), 1000.0, []
    for wait, good, latency in events:
        now += wait
        if good:
            Window.answered((window,), now, latency, latency / 2)
        else:
            window.failed(now)
        seen.append((int(now / BUCKET_S), good, latency))
        recent = [one for one in seen if one[0] > int(now / BUCKET_S) - BUCKETS]
        times = [ms for _, answer, ms in recent if answer]
        errors = len(recent) - len(times)
        mean = sum(times) / len(times) if len(times) >= MIN_SAMPLES else 0.0
        assert window.rates(now) == pytest.approx((errors / len(recent), mean, mean / 2))


def test_views_that_were_given_out_never_change(health):
    health.answered("p", "m", 100.0)
    before = health.views()[0]
    kept = dict(before)
    fail(health, 5)
    health.views()
    assert before == kept


def test_time_alone_is_reported_by_tick(health, clock):
    fail(health, 5)
    seen = []
    health.on_change(lambda *change: seen.append(change[:3]))
    clock.advance(31)
    health.tick()
    assert seen == [("p", "down", "degraded")]


def test_what_leaves_the_catalog_is_forgotten(health):
    fail(health, 5)
    health.follow(Catalog(version=1, providers={"q": Provider(id="q", type="openai")}, models={}))
    assert health.begin("p")
    assert state_of(health) == "healthy"


class Machine(RuleBasedStateMachine):
    """Any order of events: views agree with what may begin, and trials are single."""

    def __init__(self):
        super().__init__()
        self.clock = ManualClock()
        self.health = Health(self.clock)
        self.running = 0

    @rule(seconds=st.sampled_from([0.1, 1.0, 29.0, 31.0, 61.0, 400.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def begin(self):
        view = self.health.views()[0].get("p")
        begun = self.health.begin("p")
        assert begun == (view is None or not view.closed)
        self.running += begun

    @rule(kind=st.sampled_from(sorted(ATTRIBUTABLE) + INNOCENT + ["rate_limited", "auth"]))
    def fail(self, kind):
        self.health.failed("p", kind, "x", 5.0 if kind == "rate_limited" else None)

    @rule()
    def answer(self):
        self.health.answered("p", "m", 100.0, 10.0)
        assert self.health.rows(["p"])[0]["circuit"] == "closed"

    @rule(error=st.sampled_from([None, "x"]))
    def probe(self, error):
        self.health.probed("p", error)

    @invariant()
    def a_closed_provider_says_until_when(self):
        view = self.health.views()[0].get("p")
        if view is not None and view.closed:
            assert view.retry_ms >= self.clock.now_ms() - 1
            assert not self.health.available("p")
        else:
            assert self.health.available("p")


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
