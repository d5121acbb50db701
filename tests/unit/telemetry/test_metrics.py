from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.telemetry.finished import attempt, entry, failed

from tokenhub.core.decision import Filtered
from tokenhub.telemetry.cell import Group
from tokenhub.telemetry.metrics import DURATION_S, LATENCY_MS, MOST_VALUES, Gauge, Metrics


def observe(metrics, one, upstream_s=0.0):
    model, provider = one.model_id, one.provider_id
    if not model and one.attempts:
        model, provider = one.attempts[-1].model_id, one.attempts[-1].provider_id
    counts = metrics.counts(model, provider, one.mode, one.endpoint, one.status, one.error_class)
    counts.add(Group([one]), [upstream_s])


def samples(metrics, *gauges):
    """All samples as the reference parser reads them: (name, labels) → value."""
    text = "".join(metrics.lines(gauges))
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} stands twice"
            found[key] = sample.value
    return found


def value(found, name, /, **labels):
    return found[name, tuple(sorted(labels.items()))]


PAIR = {"model": "m1", "provider": "p1"}


def test_a_good_request_in_every_family():
    metrics = Metrics()
    observe(metrics, entry(0, 250.0, ttft_ms=40.0, cost=3_000_000), 0.2)
    found = samples(metrics)
    assert value(found, "tokenhub_requests_total", mode="normal", status="ok", **PAIR) == 1
    assert value(found, "tokenhub_request_latency_ms_sum", mode="normal", **PAIR) == 250
    for le, count in (("160", 0), ("320", 1), ("+Inf", 1)):
        bucket = {"mode": "normal", "le": le} | PAIR
        assert value(found, "tokenhub_request_latency_ms_bucket", **bucket) == count
    endpoint = {"endpoint": "/v1/chat/completions"}
    how = endpoint | PAIR | {"status": "ok"}
    assert value(found, "tokenhub_request_duration_seconds_count", **how) == 1
    assert value(found, "tokenhub_request_duration_seconds_sum", **how) == 0.25
    assert value(found, "tokenhub_time_to_first_token_seconds_sum", **PAIR) == 0.04
    assert abs(value(found, "tokenhub_overhead_seconds_sum", **endpoint) - 0.05) < 1e-9
    assert value(found, "tokenhub_cost_usd_total", **PAIR) == 0.003
    assert value(found, "tokenhub_tokens_total", direction="input", **PAIR) == 10
    assert value(found, "tokenhub_tokens_total", direction="output", **PAIR) == 20
    assert value(found, "tokenhub_attempts_total", outcome="ok", **PAIR) == 1


def test_failures_name_status_and_who_failed():
    metrics = Metrics()
    observe(metrics, failed(0))
    observe(metrics, failed(0, "cancelled", 499))
    tries = [attempt("m1", "p1", "timeout"), attempt("m2", "p2")]
    observe(metrics, entry(0, model_id="m2", provider_id="p2", attempts=tries), 0.0)
    found = samples(metrics)
    both = {"mode": "normal"} | PAIR
    assert value(found, "tokenhub_request_errors_total", http_status="502", **both) == 1
    assert value(found, "tokenhub_requests_total", status="cancelled", **both) == 1
    assert value(found, "tokenhub_attempts_total", outcome="timeout", **PAIR) == 1
    assert value(found, "tokenhub_attempts_total", outcome="server", **PAIR) == 1
    # The overhead of a request with several tries would hold the waits between them.
    assert not any(name.startswith("tokenhub_overhead") and total for (name, _), total in
                   found.items())  # fmt: skip


def test_skips_are_counted_by_provider_and_rule():
    metrics = Metrics()
    metrics.skipped([Filtered(model_id="m1", provider_id="p1", reason="too_small")] * 3)
    found = samples(metrics)
    assert value(found, "tokenhub_provider_skips_total", provider="p1", reason="too_small") == 3


def test_label_values_are_a_closed_set():
    metrics = Metrics()
    for number in range(MOST_VALUES + 20):
        observe(metrics, entry(0, model_id=f"m{number}", provider_id=f"p{number}"))
    found = samples(metrics)
    models = {dict(labels)["model"] for name, labels in found if name == "tokenhub_requests_total"}
    assert len(models) == MOST_VALUES + 1
    other = {"mode": "normal", "model": "other", "provider": "other", "status": "ok"}
    assert value(found, "tokenhub_requests_total", **other) == 20


@example('one\ntwo \\ "three"\\n', 1.0)
@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_number_come_through_the_parser(text, number):
    if not text.isprintable() and "\n" not in text:
        text = repr(text)
    gauge = Gauge("tokenhub_test", "gauge", "A test.", ("name",), [((text,), number)])
    found = samples(Metrics(), gauge)
    assert value(found, "tokenhub_test", name=text) == number


@given(st.lists(st.floats(0.0, 1e6), max_size=60))
def test_histograms_count_every_value_once(values):
    metrics = Metrics()
    for one in values:
        observe(metrics, entry(0, one))
    found = samples(metrics)
    how = {"endpoint": "/v1/chat/completions", "status": "ok"} | PAIR
    for bound in DURATION_S:
        if values:
            at_most = sum(one / 1000.0 <= bound for one in values)
            name = "tokenhub_request_duration_seconds_bucket"
            assert value(found, name, le=f"{bound:g}", **how) == at_most


def test_the_bounds_of_the_millisecond_histogram_are_kept():
    assert LATENCY_MS == (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)
