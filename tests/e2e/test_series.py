"""Statistics, time series and metrics of a real server, over the command line and the wire."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.server import Hub

ROOT = Path(__file__).parents[2]
ASK = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
REFUSED = {"model": "nobody", "messages": [{"role": "user", "content": "Hello"}]}

_NAME = re.compile(r"\btokenhub_[a-z0-9_]+")
_SELECTED = re.compile(r"(tokenhub_[a-z0-9_]+)\{([^}]*)\}")
_LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
_BY = re.compile(r"\bby\s*\(([^)]*)\)")


def exposition(hub, **options):
    reply = hub.request("GET", "/metrics", **options)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server after every kind of traffic that metrics tell apart."""
    hub = Hub(tmp_path_factory.mktemp("busy"), TOKENHUB_METRICS_BUDGETS="true").start()
    # The first adds a provider that nobody answers for: it replaces the built-in one.
    demo = hub.demo_key
    for stream in (False, True, False):
        assert hub.chat(demo, ASK | {"stream": stream}).status == 200
    malformed = ASK | {"stream": True, "demo": {"malformed": True}}
    assert hub.chat(demo, malformed).status == 200
    hub.ok("POST", "/providers", {"id": "dead", "type": "openai", "base_url": "http://127.0.0.1:9"})
    model = {"id": "gone", "provider_id": "dead", "input_per_1k": 0.001, "output_per_1k": 0.002}
    hub.ok("POST", "/models", model | {"enabled": True})
    hub.ok("POST", "/models", model | {"id": "small", "enabled": True, "max_context_tokens": 1})
    key = hub.ok("POST", "/apikeys", {"name": "team", "monthly_budget_usd": 5})["key"]
    assert hub.chat(key, ASK | {"model": "gone"}).status >= 500
    assert hub.chat(key, ASK | {"model": "auto"}).status >= 500
    assert hub.chat(key, REFUSED).status == 404
    yield hub
    hub.stop()


def used_in(expression):
    """The metric names of a PromQL expression, and the label names it relies on for each."""
    names = set(_NAME.findall(expression))
    wanted = {name: set() for name in names}
    for name, selectors in _SELECTED.findall(expression):
        wanted[name] |= set(_LABEL.findall(re.sub(r'"[^"]*"', '""', selectors)))
    for group in _BY.findall(expression):
        for name in names:
            wanted[name] |= {label.strip() for label in group.split(",")}
    return wanted


def missing(expression, found):
    """What an expression names and the exporter does not have."""
    problems = []
    for name, labels in used_in(expression).items():
        if name not in found:
            problems.append(name)
        else:
            have = set.intersection(*(set(one) for one, _ in found[name]))
            problems += [f"{name}{{{label}}}" for label in sorted(labels - have)]
    return problems


def alert_rules():
    rules = yaml.safe_load((ROOT / "deploy/prometheus-alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def board_expressions():
    board = json.loads((ROOT / "deploy/grafana/tokenhub.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]
            ).groups()
            yield variable["name"], f"sum by ({label}) ({metric})"


def test_alerts_and_board_name_only_what_the_exporter_has(busy):
    found = exposition(busy)
    expressions = [(rule["alert"], rule["expr"]) for rule in alert_rules()]
    expressions += board_expressions()
    assert len(expressions) > 40
    assert {title: missing(text, found) for title, text in expressions} == {
        title: [] for title, _ in expressions
    }


def test_the_checker_finds_what_does_not_exist(busy):
    found = exposition(busy)
    wrong = 'sum by (provider_id) (rate(tokenhub_requests_total{colour="red"}[5m])) / tokenhub_nope'
    assert sorted(missing(wrong, found)) == [
        "tokenhub_nope",
        "tokenhub_requests_total{colour}",
        "tokenhub_requests_total{provider_id}",
    ]


def test_quantile_alerts_can_fire(busy):
    """A threshold above the last finite bucket could never be passed."""
    found = exposition(busy)
    checked = 0
    for rule in alert_rules():
        if "histogram_quantile" in rule["expr"]:
            [name] = used_in(rule["expr"])
            threshold = float(rule["expr"].rsplit(">", 1)[1])
            bounds = {float(labels["le"]) for labels, _ in found[name]} - {float("inf")}
            assert min(bounds) < threshold < max(bounds), rule["alert"]
            checked += 1
    assert checked == 3


def test_labels_in_annotations_are_in_the_result():
    for rule in alert_rules():
        text = str(rule["annotations"])
        for label in re.findall(r"\$labels\.(\w+)", text):
            grouped = [name.strip() for by in _BY.findall(rule["expr"]) for name in by.split(",")]
            plain = "sum" not in rule["expr"]
            assert plain or label in grouped, rule["alert"]


def test_every_metric_is_documented_with_its_labels(busy):
    page = (ROOT / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(tokenhub_\w+)` \| \w+ \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    exported = {}
    body = busy.request("GET", "/metrics").body.decode()
    for family in text_string_to_metric_families(body):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = set().union(*(sample.labels for sample in family.samples))
        exported[name] = labels - {"le"}
    assert documented == exported


def test_names_of_the_original_are_there(busy):
    found = exposition(busy)
    for name in (
        "tokenhub_requests_total", "tokenhub_request_latency_ms_bucket", "tokenhub_cost_usd_total",
        "tokenhub_tokens_total", "tokenhub_request_errors_total", "tokenhub_provider_skips_total",
        "tokenhub_provider_health_state", "tokenhub_rate_limited_total",
        "tokenhub_admin_rate_limited_total", "tokenhub_heartbeat_total",
        "tokenhub_store_dropped_total",
    ):  # fmt: skip
        assert name in found, name


def test_events_of_a_stream_that_were_dropped_are_counted(busy):
    [(labels, events)] = exposition(busy)["tokenhub_stream_events_dropped_total"]
    assert (labels, events) == ({"model": "demo", "provider": "demo"}, 1.0)


def test_the_budget_gauge_is_opt_in(busy, hub):
    [(labels, left)] = exposition(busy)["tokenhub_budget_remaining_usd"]
    assert (labels["api_key_name"], labels["period"], left) == ("team", "month", 5.0)
    assert "tokenhub_budget_remaining_usd" not in exposition(hub)


def test_metrics_can_be_closed_to_the_public(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_METRICS_AUTH="true").start()
    try:
        assert hub.request("GET", "/metrics").status == 401
        exposition(hub, headers={"Authorization": f"Bearer {hub.admin_token}"})
    finally:
        hub.stop()


def test_stats_and_series_count_what_happened_and_survive_a_restart(hub):
    for number in range(6):
        assert hub.chat(hub.demo_key, ASK | {"stream": number % 2 == 0}).status == 200
    assert hub.chat(hub.demo_key, REFUSED).status == 404

    def counted():
        return json.loads(hub.ctl("stats").stdout)

    before = counted()
    assert [row["window"] for row in before["global"]] == ["1m", "5m", "1h", "24h"]
    assert all(row["request_count"] == 7 for row in before["global"])
    assert all(row["error_count"] == 1 for row in before["global"])
    [demo] = [row for row in before["by_model"]["1m"] if row["model_id"] == "demo"]
    assert demo["request_count"] == 6
    assert demo["p95_ttft_ms"] > 0
    [key] = before["by_api_key"]["1h"]
    assert key["api_key_name"]
    listed = json.loads(hub.ctl("logs", "-o", "json").stdout)
    rows = listed if isinstance(listed, list) else listed["logs"]
    assert demo["total_tokens"] == sum(row["total_tokens"] for row in rows)

    assert hub.stop(signal.SIGTERM) == 0
    hub.start()
    after = counted()
    assert after["global"][3] == before["global"][3]
    assert after["by_model"]["24h"] == before["by_model"]["24h"]


def test_the_query_line_of_the_manual(hub):
    assert hub.chat(hub.demo_key, ASK).status == 200
    quoted = hub.ctl("tsdb", "query", "metric=latency&model_id=demo&step_ms=60000")
    words = hub.ctl("tsdb", "query", "metric=latency", "model_id=demo", "step_ms=60000")
    assert quoted.returncode == words.returncode == 0
    answer = json.loads(quoted.stdout)
    [series] = answer["series"]
    assert (series["metric"], series["model_id"], series["provider_id"]) == (
        "latency",
        "demo",
        "demo",
    )
    assert series["points"][0]["v"] > 0
    assert answer == json.loads(words.stdout)
    empty = json.loads(hub.ctl("tsdb", "query", "metric=cost&model_id=none").stdout)
    assert empty["series"] == []
    wrong = hub.ctl("tsdb", "query", "metric=latency&colour=red")
    assert wrong.returncode != 0
    assert "`colour`" in wrong.stderr
    metrics = json.loads(hub.ctl("tsdb", "metrics").stdout)["metrics"]
    assert metrics == sorted(metrics)
    assert {"latency", "ttft", "cost", "tokens", "errors", "requests"} == set(metrics)


def test_times_are_unix_ms_or_rfc_3339_and_name_themselves_when_wrong(hub):
    assert hub.chat(hub.demo_key, ASK).status == 200
    now = time.time_ns() // 1_000_000
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1000 - 60))
    for start in (str(now - 60_000), text):
        answer = hub.ok("GET", f"/tsdb/query?metric=requests&step=1000&start={start}")
        assert answer["series"][0]["points"]
    for query, param in (
        ("metric=latency&start=yesterday", "start"),
        ("metric=latency&step_ms=0", "step_ms"),
        ("metric=latency&step_ms=60000&step=60000", "step_ms"),
        ("metric=latency&model=a&model_id=a", "model_id"),
        ("metric=latency&agg=mean", "agg"),
        ("", "metric"),
    ):
        reply = hub.admin("GET", f"/tsdb/query?{query}")
        assert (reply.status, reply.json()["param"]) == (400, param), query


def test_the_retention_is_set_for_good_and_audited(hub):
    assert hub.ok("PUT", "/tsdb/retention", {"days": 30}) == {"ok": True, "retention_days": 30}
    assert hub.admin("PUT", "/tsdb/retention", {"days": 0}).status == 400
    assert hub.admin("PUT", "/tsdb/retention", {"retention_days": 3}).status == 400
    assert hub.ctl("tsdb", "prune").returncode == 0
    hub.stop()
    hub.start()
    assert hub.ok("GET", "/tsdb/retention") == {"retention_days": 30}
    actions = [row["action"] for row in hub.ok("GET", "/audit")["logs"]]
    assert {"tsdb.retention", "tsdb.prune"} <= set(actions)


def test_kill_9_loses_only_what_was_not_written(hub):
    for _ in range(3):
        assert hub.chat(hub.demo_key, ASK).status == 200
    deadline = time.monotonic() + 20
    # The scrape makes the running second old; its three rows (model, key, mode) are then written.
    while exposition(hub)["tokenhub_series_rows_total"][0][1] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.5)  # the three may have fallen into two seconds
    hub.stop(signal.SIGKILL)
    hub.start()
    assert json.loads(hub.ctl("stats").stdout)["global"][3]["request_count"] == 3


def test_top_shows_the_figures(hub):
    assert hub.chat(hub.demo_key, ASK).status == 200
    look = json.loads(hub.ctl("top", "--count", "1").stdout)
    assert look["last_minute"]["request_count"] == 1
