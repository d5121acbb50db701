from __future__ import annotations

import pytest
from tests.unit.routing.world import ManualClock, catalog, model, query

from tokenhub.core.catalog import Provider
from tokenhub.core.errors import FailureClass, HubError, ProviderError
from tokenhub.routing.retry import RetryBudget, Try, Wait
from tokenhub.routing.router import Router
from tokenhub.routing.rules import RoutingSettings


@pytest.fixture
def clock():
    return ManualClock()


def plan_for(clock, *models, deadline=60.0, router=None, **fields):
    router = router or Router(clock)
    router.update(catalog=catalog(*models))
    decision = router.decide(query(**fields))
    return router.failover(decision, deadline=clock.monotonic() + deadline)


def wrong(kind, status=None, retry_after=None, message="it said no"):
    return ProviderError(kind, message, status=status, retry_after=retry_after)


def fail(plan, kind, **fields):
    step = plan.next()
    assert isinstance(step, Try)
    plan.failed(step, wrong(kind, **fields))
    return step


def stopped(plan):
    with pytest.raises(HubError) as caught:
        plan.next()
    return caught.value


def test_another_provider_comes_first_and_is_free(clock):
    plan = plan_for(clock, model("a", "p"), model("b", "p"), model("c", "q"))
    assert fail(plan, FailureClass.SERVER).candidate.model_id == "a"
    step = plan.next()
    assert isinstance(step, Try)
    assert step.candidate.model_id == "c"


def test_three_attempts_and_no_more(clock):
    plan = plan_for(clock, *(model(f"m{i}", f"p{i}") for i in range(6)))
    for _ in range(3):
        fail(plan, FailureClass.CONNECT)
    error = stopped(plan)
    assert error.status == 502
    assert [one["model"] for one in error.extra["attempts"]] == ["m0", "m1", "m2"]


def test_a_named_model_is_tried_again_after_a_pause(clock):
    plan = plan_for(clock, model("a"), model="a")
    fail(plan, FailureClass.RESET)
    wait = plan.next()
    assert isinstance(wait, Wait)
    assert 0 <= wait.seconds <= 0.1
    clock.advance(wait.seconds)
    assert isinstance(plan.next(), Try)


@pytest.mark.parametrize(
    "kind",
    [
        FailureClass.TIMEOUT,
        FailureClass.AUTH,
        FailureClass.QUOTA,
        FailureClass.RATE_LIMITED,
        FailureClass.MISDIRECTED,
    ],
)
def test_some_failures_are_not_tried_again_at_the_same_place(clock, kind):
    plan = plan_for(clock, model("a"), model="a")
    fail(plan, kind)
    stopped(plan)


def test_no_other_model_is_asked_where_no_api_answers(clock):
    plan = plan_for(clock, model("a", "p", weight=9), model("b", "p", weight=8))
    assert fail(plan, FailureClass.MISDIRECTED, status=302).candidate.model_id == "a"
    error = stopped(plan)
    assert (error.status, error.code) == (502, "provider_misdirected")
    assert "`tokenhubctl provider edit p '{\"base_url\":…}'`" in error.hint


@pytest.mark.parametrize("kind", [FailureClass.CLIENT, FailureClass.CONTENT_FILTER])
def test_what_is_the_requests_own_fault_stops_at_once(clock, kind):
    plan = plan_for(clock, model("a", "p"), model("b", "q"))
    fail(plan, kind, status=422)
    error = stopped(plan)
    assert error.status == 422
    assert len(plan.attempts) == 1


def test_context_overflow_goes_to_a_larger_window_only(clock):
    plan = plan_for(
        clock,
        model("a", "p", max_context_tokens=8000, weight=9),
        model("b", "q", max_context_tokens=8000, weight=8),
        model("c", "p", max_context_tokens=100_000, weight=1),
    )
    assert fail(plan, FailureClass.CONTEXT, status=400).candidate.model_id == "a"
    assert fail(plan, FailureClass.CONTEXT, status=400).candidate.model_id == "c"
    error = stopped(plan)
    assert (error.status, error.code) == (400, "context_length_exceeded")


def test_429_everywhere_says_the_smallest_wait(clock):
    plan = plan_for(clock, model("a", "p"), model("b", "q"))
    fail(plan, FailureClass.RATE_LIMITED, status=429, retry_after=20.0)
    fail(plan, FailureClass.RATE_LIMITED, status=429, retry_after=7.2)
    error = stopped(plan)
    assert error.status == 429
    assert dict(error.headers)[b"retry-after"] == b"8"
    assert dict(error.headers)[b"x-should-retry"] == b"false"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FailureClass.TIMEOUT, 504, "provider_timeout"),
        (FailureClass.AUTH, 502, "provider_auth"),
        (FailureClass.GARBAGE, 502, "provider_garbage"),
        (FailureClass.OVERLOADED, 503, "provider_overloaded"),
    ],
)
def test_the_status_fits_the_failure(clock, kind, status, code):
    router = Router(clock)
    while router.budget.take():
        pass
    plan = plan_for(clock, model("a"), model="a", router=router)
    fail(plan, kind)
    error = stopped(plan)
    assert (error.status, error.code) == (status, code)


def test_the_deadline_ends_everything(clock):
    plan = plan_for(clock, model("a", "p"), model("b", "q"), deadline=5.0)
    step = plan.next()
    clock.advance(5.0)
    plan.failed(step, wrong(FailureClass.TIMEOUT))
    error = stopped(plan)
    assert (error.status, error.code) == (504, "deadline_exceeded")


def test_time_for_the_first_token(clock):
    models = (model("a", "p", first_token_ms=4000, weight=9), model("b", "q"))
    plan = plan_for(clock, *models, stream=True)
    first = plan.next()
    assert (first.first_token_s, first.left_s) == (4.0, 60.0)
    clock.advance(4.0)
    plan.failed(first, wrong(FailureClass.TIMEOUT))
    assert plan.next().first_token_s == 10.0
    assert plan_for(clock, *models).next().first_token_s == 60.0
    assert plan_for(clock, *models, stream=True, max_latency_ms=2500).next().first_token_s == 2.5
    # Half of what is left, so that another provider can still answer.
    assert plan_for(clock, *models, stream=True, deadline=6.0).next().first_token_s == 3.0


def test_a_closed_provider_is_passed_over(clock):
    router = Router(clock)
    plan = plan_for(clock, model("a", "p"), model("b", "q"), router=router)
    router.health.failed("p", FailureClass.RATE_LIMITED, "", retry_after=30)
    assert plan.next().candidate.model_id == "b"


def test_a_provider_that_closes_during_the_pause_is_not_asked(clock):
    router = Router(clock)
    plan = plan_for(clock, model("a"), model="a", router=router)
    fail(plan, FailureClass.SERVER)
    assert isinstance(plan.next(), Wait)
    router.health.failed("p", FailureClass.RATE_LIMITED, "", retry_after=30)
    stopped(plan)


def test_nobody_left_to_ask_is_a_503_that_may_be_retried(clock):
    router = Router(clock)
    plan = plan_for(clock, model("a"), router=router)
    router.health.failed("p", FailureClass.RATE_LIMITED, "", retry_after=30)
    error = stopped(plan)
    assert error.status == 503
    assert dict(error.headers)[b"x-should-retry"] == b"true"


def test_a_cancelled_attempt_says_nothing_about_the_provider(clock):
    router = Router(clock)
    plan = plan_for(clock, model("a"), router=router)
    step = plan.next()
    plan.cancelled(step)
    assert plan.cancelled(step) is None
    row = router.health.rows(["p"])[0]
    assert (row["total_errors"], row["state"]) == (0, "healthy")


def test_a_hedge_goes_to_a_provider_without_an_attempt(clock):
    plan = plan_for(clock, model("a", "p"), model("b", "p"), model("c", "q"))
    first = plan.next()
    second = plan.hedge()
    assert second.candidate.model_id == "c"
    assert plan.hedge() is None
    plan.succeeded(second)
    plan.cancelled(first)
    assert [one.kind for one in plan.attempts] == ["", "cancelled"]


def test_each_attempt_is_recorded_with_its_times(clock):
    plan = plan_for(clock, model("a"), stream=True)
    step = plan.next()
    clock.advance(0.25)
    plan.first_token(step)
    clock.advance(1.0)
    done = plan.succeeded(step, cost=1234)
    assert (done.ttft_ms, done.latency_ms, done.cost) == (250.0, 1250.0, 1234)


def test_three_retries_are_always_allowed(clock):
    budget = RetryBudget(clock)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    clock.advance(11)
    assert budget.take()


def test_a_tenth_of_the_requests_may_be_retried(clock):
    budget = RetryBudget(clock)
    for _ in range(100):
        if clock.monotonic() >= budget.ends:
            budget.turn(clock.monotonic())
        budget.running += 1
        clock.advance(0.1)
    assert sum(budget.take() for _ in range(50)) in {9, 10}


def test_no_pause_that_the_deadline_cannot_hold(clock):
    router = Router(clock)
    plan = plan_for(clock, model("a"), model="a", deadline=1e-7, router=router)
    fail(plan, FailureClass.SERVER)
    stopped(plan)
    assert [router.budget.take() for _ in range(4)] == [True, True, True, False]


UNDER_WAY = [
    (kind, at)
    for kind in (FailureClass.SERVER, FailureClass.AUTH, FailureClass.CLIENT, "gone")
    for at in ("open", "half-open", "on trial")
]


@pytest.mark.parametrize(("kind", "at"), UNDER_WAY)
def test_what_was_under_way_when_a_circuit_opened_neither_prolongs_nor_doubles_a_trial(
    clock, kind, at
):
    router = Router(clock)
    plans = [plan_for(clock, model("a"), router=router, model="a") for _ in range(15)]
    steps = [plan.next() for plan in plans]
    under_way = list(zip(plans, steps, strict=True))

    def end(plan, step):
        if kind == "gone":
            plan.cancelled(step)
        else:
            plan.failed(step, wrong(kind))

    clock.advance(0.1)
    for _ in range(5):
        plan, step = under_way.pop()
        plan.failed(step, wrong(FailureClass.SERVER))
    if at == "open":
        while under_way:
            end(*under_way.pop())
    clock.advance(30)
    if at == "half-open":
        end(*under_way.pop())
    trial = plan_for(clock, model("a"), router=router, model="a")
    step = trial.next()
    assert isinstance(step, Try)
    clock.advance(1)
    while under_way:
        end(*under_way.pop())
    assert not router.health.begin("p")
    trial.succeeded(step)
    assert router.health.begin("p")


def test_many_refused_credentials_at_once_close_a_provider_as_long_as_two(clock):
    router = Router(clock)
    plans = [plan_for(clock, model("a"), router=router, model="a") for _ in range(10)]
    steps = [plan.next() for plan in plans]
    clock.advance(0.1)
    for plan, step in zip(plans, steps, strict=True):
        plan.failed(step, wrong(FailureClass.AUTH, status=401))
    assert not router.health.begin("p")
    clock.advance(30)
    assert router.health.begin("p")


SILENT = ProviderError(FailureClass.TIMEOUT, "The provider sent no token within 1 s.")


def silent(clock, router, **fields):
    """An attempt at a provider that says nothing, given up after the time it has."""
    plan = plan_for(clock, model("a", "p", first_token_ms=5000), router=router, **fields)
    step = plan.next()
    clock.advance(step.first_token_s)
    return plan.failed(step, SILENT), plan


@pytest.mark.parametrize("limit", [1, 1500, 4999])
def test_a_client_in_a_hurry_closes_no_provider_for_the_others(clock, limit):
    router = Router(clock)
    for _ in range(6):
        attempt, plan = silent(clock, router, stream=True, max_latency_ms=limit)
        assert attempt.kind == FailureClass.LATENCY
        error = stopped(plan)
        assert (error.status, error.code) == (504, "latency_limit_exceeded")
    assert router.health.rows(["p"])[0]["state"] == "healthy"
    arms = router.bandit.view(["a"], "small", clock.now_ms())
    assert ("a" in arms) == (limit > 1000)


@pytest.mark.parametrize("fields", [{"max_latency_ms": 5000}, {"max_latency_ms": 60_000}, {}])
def test_silence_for_as_long_as_a_provider_is_given_counts_against_it(clock, fields):
    router = Router(clock)
    for _ in range(5):
        assert silent(clock, router, stream=True, **fields)[0].kind == FailureClass.TIMEOUT
    assert router.health.rows(["p"])[0]["state"] == "down"


def test_a_limit_the_administrator_set_counts_against_a_silent_provider(clock):
    router = Router(clock)
    router.update(settings=RoutingSettings(default_max_latency_ms=1500))
    for _ in range(5):
        assert silent(clock, router, stream=True)[0].kind == FailureClass.TIMEOUT
    assert router.health.rows(["p"])[0]["state"] == "down"


def test_a_provider_that_says_it_timed_out_is_believed_in_a_hurry_too(clock):
    plan = plan_for(clock, model("a"), stream=True, max_latency_ms=100)
    attempt = plan.failed(plan.next(), wrong(FailureClass.TIMEOUT, status=504))
    assert attempt.kind == FailureClass.TIMEOUT


OFF = Provider(id="q", type="openai", enabled=False)


@pytest.mark.parametrize(
    "after",
    [
        catalog(model("a", "p")),
        catalog(model("a", "p"), model("b", "q", enabled=False)),
        catalog(model("a", "p"), model("b", "q"), providers=[OFF]),
        catalog(model("a", "p"), model("b", "r")),
    ],
)
def test_who_was_taken_from_the_catalog_meanwhile_is_not_asked(clock, after):
    router = Router(clock)
    plan = plan_for(clock, model("a", "p"), model("b", "q"), router=router, mode="cheap")
    step = plan.next()
    assert step.candidate.model_id == "a"
    router.update(catalog=after)
    assert plan.hedge() is None
    plan.failed(step, wrong(FailureClass.TIMEOUT))
    assert stopped(plan).code == "provider_timeout"


def test_a_model_disabled_meanwhile_is_not_tried_again(clock):
    router = Router(clock)
    gone = catalog(model("a", enabled=False))
    plan = plan_for(clock, model("a"), router=router, model="a")
    fail(plan, FailureClass.RESET)
    assert isinstance(plan.next(), Wait)
    router.update(catalog=gone)
    assert stopped(plan).code == "provider_unreachable"
    plan = plan_for(clock, model("a"), router=router, model="a")
    step = plan.next()
    router.update(catalog=gone)
    plan.failed(step, wrong(FailureClass.RESET))
    assert stopped(plan).code == "provider_unreachable"
