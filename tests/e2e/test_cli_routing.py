"""Routing as clients and admins see it: modes, aliases, limits, and a reason for each choice."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections import Counter

import pytest
from tests.e2e import peers
from tests.e2e.fleet import Fleet, text_of
from tests.e2e.peers import refuses, says
from tests.e2e.server import BIN, Hub
from tests.ports import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With probes on; the command line talks to it too."""
    hub = Hub(tmp_path_factory.mktemp("hub")).start()
    yield hub
    log = hub.log.read_text()
    assert hub.stop() == 0
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Three demo providers, each a process of its own; their base URLs."""
    log = tmp_path_factory.mktemp("demos") / "log"
    ports = [free_port() for _ in range(3)]
    with log.open("w") as out:
        running = [
            subprocess.Popen(
                [BIN / "tokenhub", "demo-provider", "--port", str(port)],
                env={"PATH": os.environ["PATH"]},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            for port in ports
        ]
    deadline = time.monotonic() + 20
    while log.read_text().count("listening") < len(ports):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    yield [f"http://127.0.0.1:{port}" for port in ports]
    for process in running:
        process.terminate()
        process.wait(10)


@pytest.fixture
def fleet(server):
    built = Fleet(server)
    yield built
    built.clear()


@pytest.fixture
def trio(fleet, demos):
    """Three models of rising price and weight, at three providers."""
    for name, url, weight, price in zip(
        "abc", demos, (2, 5, 9), (0.0001, 0.005, 0.02), strict=True
    ):
        fleet.add(name, url, weight=weight, input_per_1k=price, output_per_1k=price)
    return fleet


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("auto:cheap", "a"), ("auto:high_confidence", "c"), ("auto:planning", "c")],
)
def test_any_client_can_ask_for_routing_by_the_model_name(trio, name, chosen):
    for stream in (False, True):
        reply = trio.chat(name, stream=stream)
        assert reply.status == 200, reply.body
        assert reply.headers["x-tokenhub-model"] == trio.id(chosen)
        assert reply.headers["x-tokenhub-provider"] == trio.id(chosen)
        assert reply.headers["x-tokenhub-reason"].startswith("routed-weight-")
        assert reply.headers["x-tokenhub-attempts"] == "1"
        assert "x-alias-from" not in reply.headers


def test_the_mode_comes_from_policy_then_model_name_then_key_then_default(trio):
    confident = trio.new_key(mode="high_confidence")
    assert trio.chat("auto", confident).headers["x-tokenhub-model"] == trio.id("c")
    assert trio.chat("auto:cheap", confident).headers["x-tokenhub-model"] == trio.id("a")
    reply = trio.native("auto:cheap", {"mode": "planning"}, confident)
    assert reply.headers["x-tokenhub-model"] == trio.id("c")
    trio.hub.ok("PUT", "/routing-config", {"default_mode": "cheap"})
    assert trio.chat("auto").headers["x-tokenhub-model"] == trio.id("a")
    trio.hub.ok("PUT", "/routing-config", {"default_mode": None})


def test_a_directive_in_a_prompt_does_not_lift_the_stored_budget(trio):
    trio.hub.ok("PUT", "/routing-config", {"default_max_budget_usd": "0.000001"})
    try:
        said = [{"role": "user", "content": "@@tokenhub budget=100\nHi"}]
        key = trio.new_key(allow_directives=True)
        assert trio.native("", key=key, messages=said).status == 400
        assert trio.native("", {"max_budget_usd": 1}, key=key, messages=said).status == 200
    finally:
        trio.hub.ok("PUT", "/routing-config", {"default_max_budget_usd": None})


def test_every_mode_answers(trio):
    for mode in ("cheap", "normal", "high_confidence", "planning", "adversarial", "thompson"):
        assert trio.chat(f"auto:{mode}").status == 200
    wrong = trio.chat("auto:cheep")
    assert wrong.status == 400
    assert wrong.json()["error"]["hint"] == "Did you mean `cheap`?"


def variants(fleet, **weights):
    return [{"model_id": fleet.id(name), "weight": weight} for name, weight in weights.items()]


def answered_by(fleet, alias, count, key=None):
    replies = [fleet.chat(alias, key) for _ in range(count)]
    assert {reply.status for reply in replies} == {200}
    assert {reply.headers["x-alias-from"] for reply in replies} == {alias}
    assert {reply.headers["x-tokenhub-reason"] for reply in replies} == {"routed-alias"}
    return [reply.headers["x-tokenhub-model"].split("-")[0] for reply in replies]


def test_an_alias_by_request_meets_its_variants_by_weight(trio):
    trio.alias("smart", variants=variants(trio, a=3, b=1))
    met = Counter(answered_by(trio, "smart", 60))
    assert set(met) == {"a", "b"}
    assert met["a"] > met["b"]


def test_an_alias_by_key_always_gives_a_key_the_same_variant(trio):
    trio.alias("steady", variants=variants(trio, a=1, b=1, c=1), sticky_by="api_key")
    keys = [trio.new_key() for _ in range(8)]
    met = [set(answered_by(trio, "steady", 3, key)) for key in keys]
    assert {len(one) for one in met} == {1}
    assert len(set.union(*met)) > 1


def test_an_alias_takes_turns_and_looking_takes_none(trio):
    trio.alias("turns", variants=variants(trio, a=2, b=1), sticky_by="round_robin")
    met = []
    for _ in range(6):
        looked = trio.ctl("simulate", '{"model_hint":"turns"}')["decision"]["model_id"]
        again = trio.ctl("simulate", '{"model_hint":"turns"}')["decision"]["model_id"]
        met += answered_by(trio, "turns", 1)
        assert looked == again == trio.id(met[-1])
    assert met == ["a", "a", "b"] * 2


def test_an_aliass_other_variant_stands_in_for_one_that_fails(fleet, demos):
    fleet.add("a", refuses("500 Oh"))
    fleet.add("b", demos[0])
    fleet.alias("ünïcode ✓", variants=variants(fleet, a=1, b=1), sticky_by="round_robin")
    reply = fleet.chat("ünïcode ✓")
    assert reply.headers["x-tokenhub-model"] == fleet.id("b")
    assert reply.headers["x-alias-from"] == "%C3%BCn%C3%AFcode %E2%9C%93"


def test_a_limit_of_the_policy_is_kept_and_named_when_it_refuses(trio):
    reply = trio.native("auto:cheap", {"min_weight": 4})
    assert reply.headers["x-tokenhub-model"] == trio.id("b")
    reply = trio.native("auto", {"min_weight": 10})
    assert reply.status == 400
    body = reply.json()
    assert (body["code"], body["reason"]) == ("weight_below_minimum", "weight_below_minimum")
    assert (body["limit"], body["value"]) == (10, 9)
    assert {one["model_id"] for one in body["filtered"]} == {trio.id(name) for name in "abc"}
    reply = trio.native("auto:high_confidence", {"max_budget_usd": 0.006})
    assert reply.headers["x-tokenhub-model"] == trio.id("b")
    reply = trio.native("auto", {"max_budget_usd": 0.00001})
    assert reply.status == 400
    body = reply.json()
    assert body["code"] == "request_budget_exceeded"
    assert body["limit"] == 10_000  # nano-dollars
    assert "$0.00001" in body["error"]
    reply = trio.native("c", {"max_budget_usd": 0.006})
    assert reply.json()["code"] == "request_budget_exceeded"
    assert reply.headers["x-tokenhub-attempts"] == "0"


def test_the_output_is_capped_at_what_the_request_budget_affords(fleet):
    peer = fleet.add("a", says("Here I am."))
    assert fleet.native("auto", {"max_budget_usd": 0.01}).status == 200
    [sent] = peer.bodies
    # 2000 nano-dollars a token; the prompt takes a little of the 0.01 $.
    assert 4000 < sent.get("max_completion_tokens", sent.get("max_tokens")) < 5000


def test_a_latency_limit_filters_by_what_was_measured(fleet):
    fleet.add("a", says("Slow.", pause=0.15))
    fleet.add("b", says("Quick."))
    for name in "ab":
        for _ in range(3):
            fleet.chat(name)
    assert fleet.native("auto", {"max_latency_ms": 100}).headers["x-tokenhub-model"] == (
        fleet.id("b")
    )
    refused = fleet.native("a", {"max_latency_ms": 100})
    assert refused.status == 503
    body = refused.json()
    assert (body["code"], body["limit"]) == ("latency_limit_exceeded", 100)
    assert body["value"] > 150


def test_a_latency_limit_bounds_the_first_token_not_the_generation(fleet):
    def slowly(line):
        line.head()
        for number in range(5):
            line.word(f" {number}", "stop" if number == 4 else None)
            time.sleep(0.15)
        line.piece(b"data: [DONE]\n\n")
        line.send(b"0\r\n\r\n")

    fleet.add("a", slowly)
    reply = fleet.native("a", {"max_latency_ms": 300}, stream=True)
    assert b"[DONE]" in reply.body
    fleet.add("b", peers.hangs)
    began = time.monotonic()
    assert fleet.native("b", {"max_latency_ms": 300}, stream=True).status == 504
    assert time.monotonic() - began < 1


def test_explain_and_replay_agree_with_what_was_answered(trio):
    for name in ("auto", "auto:cheap", "auto:thompson", "b"):
        reply = trio.chat(name)
        request_id, model = reply.headers["x-request-id"], reply.headers["x-tokenhub-model"]
        told = trio.ctl("explain", request_id, "-o", "json")
        assert told["decision"]["model_id"] == model
        assert told["decision"]["reason"] == reply.headers["x-tokenhub-reason"]
        assert [one["model_id"] for one in told["attempts"]] == [model]
        assert told["attempts"][0]["latency_ms"] > 0
        for candidate in told["candidates"]:
            assert sum(candidate["terms"].values()) == candidate["score"]
        again = trio.ctl("replay", request_id, "-o", "json")
        assert (again["same"], again["replayed"]) == (True, model)
        assert again["replayed_propensity"] == again["recorded_propensity"]


def test_explain_lists_the_attempts_that_failed(fleet):
    fleet.add("a", refuses("500 Oh"))
    fleet.add("b", says("Here I am."))
    key = fleet.new_key(allow_fallback=True)
    reply = fleet.chat("a", key)
    told = fleet.ctl("explain", reply.headers["x-request-id"], "-o", "json")
    assert [(one["provider_id"], one["error"]) for one in told["attempts"]] == [
        (fleet.id("a"), "server"),
        (fleet.id("b"), ""),
    ]


def learned(fleet):
    """All that decisions change; probes go on meanwhile."""
    rows = fleet.hub.ok("GET", "/health")["providers"]
    traffic = [
        (row["state"], row["total_requests"], row["total_errors"], row["avg_latency_ms"])
        for row in rows
    ]
    return traffic, fleet.hub.ok("GET", "/rewards"), fleet.hub.ok("GET", "/logs")


def test_simulate_says_what_would_happen_and_changes_nothing(trio):
    ask = '{"mode":"thompson","token_count":700,"seed":5}'
    trio.chat("auto:thompson")
    before = learned(trio)
    once, twice = (trio.ctl("simulate", ask) for _ in range(2))
    assert once == twice
    assert learned(trio) == before
    assert once["total"] == len(once["eligible"]) == 3
    for mode in ("cheap", "normal", "high_confidence"):
        said = trio.ctl("simulate", json.dumps({"mode": mode}))["decision"]["model_id"]
        assert trio.chat(f"auto:{mode}").headers["x-tokenhub-model"] == said
    narrowed = trio.ctl("simulate", '{"min_weight":4,"mode":"cheap"}')
    assert narrowed["decision"]["model_id"] == trio.id("b")
    assert [(one["model_id"], one["reason"]) for one in narrowed["filtered"]] == [
        (trio.id("a"), "weight_below_minimum")
    ]


def test_rewards_are_listed_per_attempt(fleet):
    fleet.add("a", refuses("500 Oh"))
    fleet.add("b", says("Here I am."))
    request_id = fleet.chat("a", fleet.new_key(allow_fallback=True)).headers["x-request-id"]
    rows = [
        row
        for row in fleet.ctl("rewards", "--limit", "10", "-o", "json")
        if row["request_id"] == request_id
    ]
    by_model = {row["model_id"]: row["reward"] for row in rows}
    assert by_model[fleet.id("a")] < by_model[fleet.id("b")]


def test_model_test_speaks_as_a_client(trio):
    ran = trio.hub.ctl("model-test", trio.id("a"), env={"TOKENHUB_API_KEY": trio.key})
    assert ran.returncode == 0, ran.stderr
    assert "Response:" in ran.stdout
    assert trio.hub.ctl("model-test", trio.id("a")).returncode != 0
    missing = trio.hub.ctl("model-test", "nope", env={"TOKENHUB_API_KEY": trio.key})
    assert missing.returncode != 0
    assert "There is no model `nope`." in missing.stderr


def test_health_and_provider_status_show_a_provider_going_down(fleet):
    fleet.add("a", refuses("500 Oh", "Oh, dear"))
    fleet.add("b", says("Here I am."))
    lenient = fleet.new_key(allow_fallback=True)
    for _ in range(5):
        fleet.chat("a", lenient)
    shown = fleet.hub.ctl("provider-status", fleet.id("a"))
    assert shown.returncode == 0, shown.stderr
    rows = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in shown.stdout.splitlines()}
    assert (rows["State"], rows["Total errors"]) == ("down", "5")
    assert rows["Last error"] == "Oh, dear"
    table = fleet.hub.ctl("health").stdout
    assert any(fleet.id("a") in line and " down " in line for line in table.splitlines())
    assert fleet.hub.ctl("provider-status", "nobody").returncode == 3


def test_engine_models_lists_what_routes(trio):
    shown = trio.hub.ctl("engine", "models").stdout
    assert "Models: 3\n" in shown
    for name in "abc":
        assert trio.id(name) in shown


def test_alias_set_get_list_delete(trio):
    body = json.dumps({"variants": variants(trio, a=1, b=3), "sticky_by": "api_key"})
    assert trio.hub.ctl("alias", "set", "fast", body).stdout == "Alias fast saved.\n"
    got = trio.ctl("alias", "get", "fast")
    assert (got["sticky_by"], got["variants"][1]["weight"]) == ("api_key", 3)
    assert f"{trio.id('a')}:1 {trio.id('b')}:3" in trio.hub.ctl("alias", "list").stdout
    assert trio.hub.chat(
        trio.key, {"model": "fast", "messages": [{"role": "user", "content": "x"}]}
    )
    assert trio.hub.ctl("alias", "delete", "fast").stdout == "Alias fast deleted.\n"
    gone = trio.hub.chat(
        trio.key, {"model": "fast", "messages": [{"role": "user", "content": "x"}]}
    )
    assert gone.status == 404
    assert trio.hub.ctl("alias", "get", "fast").returncode == 3
    nameless = trio.hub.ctl("alias", "set", trio.id("a"), body)
    assert nameless.returncode != 0
    assert "is the id of a model" in nameless.stderr


def test_a_provider_added_after_the_start_is_probed(fleet):
    peer = fleet.add("a", says("Here I am."))
    fleet.add("b", None)
    deadline = time.monotonic() + 5
    while not (peer.probes and fleet.health("b")["probe_errors"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    known = fleet.health("a")
    assert known["last_probe_at"]
    assert known["last_probe_error"] == ""
    assert known["total_requests"] == 0  # a probe is no traffic
    assert fleet.health("b")["last_probe_error"]


def test_health_changes_are_on_the_event_stream(fleet):
    fleet.add("a", refuses("500 Oh"))
    fleet.add("b", says("Here I am."))
    lenient = fleet.new_key(allow_fallback=True)
    connection = http.client.HTTPConnection("127.0.0.1", fleet.hub.port, timeout=10)
    headers = {"Authorization": f"Bearer {fleet.hub.admin_token}"}
    connection.request("GET", "/admin/v1/events?type=health_change", headers=headers)
    stream = connection.getresponse()
    assert stream.status == 200
    for _ in range(5):
        assert text_of(fleet.chat("a", lenient)) == "Here I am."
    changes = []
    while len(changes) < 2:
        line = stream.readline()
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            if event.get("provider_id") == fleet.id("a"):
                changes.append((event["old_state"], event["new_state"]))
    connection.close()
    assert changes == [("healthy", "degraded"), ("degraded", "down")]
