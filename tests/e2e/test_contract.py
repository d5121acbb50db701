"""The command line against the live server, field by field.

Every command runs once, with real traffic behind it. Each answer of the server is a dictionary
that remembers which members were asked for and were not there: a column whose name differs from
the server's would be found, and so would a command or a route without its counterpart.
"""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
from tests.e2e.server import Hub

from tokenhub.web.match import Matcher
from tokenhubctl import client, view
from tokenhubctl.__main__ import run

HELLO = [{"role": "user", "content": "Hello"}]

# Every command, in an order in which it works. {...} is filled in.
LINES = [
    ["version"], ["help"], ["help", "output"], ["commands"], ["completion", "bash"],
    ["admin-token"], ["status"], ["health"], ["provider-status", "up"],
    ["vault", "status"], ["vault", "secret", "set", "s", "value"], ["vault", "secret", "list"],
    ["vault", "secret", "get", "s"], ["vault", "secret", "delete", "s"],
    ["provider", "list"], ["provider", "get", "up"], ["provider", "edit", "up", '{"enabled":true}'],
    ["provider", "discover", "up"], ["discover", "up"],
    ["model", "list"], ["model", "list", "--stored"], ["model", "get", "m"],
    ["model", "edit", "m", '{"weight":4}'], ["model", "disable", "m"], ["model", "enable", "m"],
    ["model-test", "m", "{api_key}"],
    ["routing", "get"], ["routing", "set", '{"default_max_latency_ms":0}'],
    ["simulate", '{"mode":"cheap","token_count":10}'], ["explain", "{request}"],
    ["replay", "{request}"],
    ["alias", "set", "a", '{"variants":[{"model_id":"m","weight":1}]}'], ["alias", "list"],
    ["alias", "get", "a"], ["alias", "delete", "a"],
    ["apikey", "create", '{"name":"other"}'], ["apikey", "list"], ["apikey", "get", "{key}"],
    ["apikey", "edit", "{key}", '{"monthly_budget_usd":9}'],
    ["budget", "show"], ["budget", "adjust", "{key}", "0.5", "--reason", "test"],
    ["budget", "show", "{key}"], ["budget", "verify"],
    ["spend"], ["spend", "--by", "model"], ["spend", "--by", "provider"], ["spend", "--by", "day"],
    ["prices", "list"], ["prices", "show", "m"],
    ["prices", "set", "m", '{"input_per_1k":0.003,"output_per_1k":0.004}'],
    ["prices", "diff", "{prices}", "--overwrite"], ["prices", "import", "{prices}", "--overwrite"],
    ["logs", "list"], ["logs", "show", "{request}"], ["logs", "show", "{failed}"],
    ["audit", "list"], ["audit", "verify"], ["rewards"], ["stats"], ["engine", "models"],
    ["tsdb", "metrics"], ["tsdb", "query", "metric=latency&model_id=m&step_ms=60000"],
    ["tsdb", "prune"], ["tsdb", "retention", "30"],
    ["top", "--count", "1"], ["doctor"], ["api", "GET", "/admin/v1/prices/m"],
    ["vault", "rotate", "long-enough", "even-longer"], ["vault", "lock"],
    ["vault", "unlock", "even-longer"],
    ["apikey", "paid", "{key}"], ["apikey", "rotate", "{key}"], ["apikey", "delete", "{key}"],
    ["model", "add", '{"id":"n","provider_id":"up"}'], ["model", "delete", "n"],
    ["provider", "add", '{"id":"two","type":"openai","base_url":"https://api.openai.com"}'],
    ["provider", "delete", "two"], ["rotate-admin-token"],
]  # fmt: skip
FORMS = ("wide", "json")

# Members that an answer has only when there is something to say.
OPTIONAL = {
    "engine models": {"health_endpoint"},  # a provider inside the process has none
    "provider list": {"cred_store", "type"},  # of a runtime-only provider, from its adapter
    "doctor": {"cred_store", "type"},
    "vault lock": {"already_locked"},
    "apikey create": {"warning"},
    "apikey rotate": {"warning"},
    "provider add": {"warning"},
    "provider edit": {"warning"},
    "spend": {"api_key_name", "name"},  # the first of several names that is there
    "simulate": {"error"},
    "prices import": {"kept", "simplified"},
    "prices diff": {"kept", "simplified"},
}
# Commands that are not run here, with the test that runs them.
ELSEWHERE = {"events": "test_manual.py"}
# Routes without a command of their own, with the reason. `api` can call every one of them.
NO_COMMAND = {
    "POST /v1/chat": "for clients",
    "GET /v1/models": "for clients",
    "GET /v1/models/{id:path}": "for clients",
    "GET /livez": "for orchestrators; tokenhub --healthcheck asks it",
    "GET /readyz": "for orchestrators",
    "GET /metrics": "for Prometheus",
    "GET /admin/v1/events": "events, run by test_manual.py",
    "GET /admin/v1/tsdb/retention": "what `tsdb retention DAYS` answers",
}


RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
MOMENT = re.compile(r"(^|_)timestamp$|_at$|_until$|_time$")


class Watched(dict):
    """A dictionary that remembers which absent members were asked for."""

    missed: set[str]

    def get(self, name, default=None):
        if name not in self:
            self.missed.add(name)
        return super().get(name, default)


def watch(value, missed):
    if isinstance(value, list):
        return [watch(item, missed) for item in value]
    if isinstance(value, dict):
        found = Watched({name: watch(item, missed) for name, item in value.items()})
        found.missed = missed
        return found
    return value


class Ran:
    def __init__(self, code, out, err, missed):
        self.code, self.out, self.err, self.missed = code, out, err, missed


class Line:
    """Runs command lines in this process and notes what they ask for."""

    def __init__(self, patch):
        self.asked = set()
        self.missed = set()
        self.answers = []
        call, send, show = client.Client.call, client.Client._send, view.Column.show

        def seen(this, method, target, *rest):
            answer = call(this, method, target, *rest)
            self.answers.append((target.partition("?")[0], answer))
            return watch(answer, self.missed)

        patch.setattr(client.Client, "call", seen)

        def noted(this, method, target, *rest):
            self.asked.add((method, target.partition("?")[0]))
            return send(this, method, target, *rest)

        patch.setattr(client.Client, "_send", noted)
        patch.setattr(
            view.Column, "show", lambda column, row: show(column, watch(dict(row), self.missed))
        )

    def __call__(self, words):
        self.missed.clear()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(words)
        return Ran(code, out.getvalue(), err.getvalue(), set(self.missed))


@pytest.fixture(scope="module")
def live(upstream, tmp_path_factory):
    """A server with everything in it that commands show; the words for the placeholders."""
    home = tmp_path_factory.mktemp("home")
    hub = Hub(home).start()
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0
    provider = {"id": "up", "type": "openai", "base_url": upstream, "api_key": "sk-x"}
    hub.ok("POST", "/providers", provider)
    model = {"id": "m", "provider_id": "up", "upstream_name": "demo", "input_per_1k": 0.001,
             "output_per_1k": 0.002}  # fmt: skip
    hub.ok("POST", "/models", model)
    key = hub.ok("POST", "/apikeys", {"name": "k", "scopes": ["chat"], "monthly_budget_usd": 5})
    ids = {"key": key["id"], "api_key": key["key"], "prices": str(home / "prices.json")}
    for stream in (True, False):
        body = {"model": "auto", "messages": HELLO, "stream": stream}
        ids["request"] = hub.chat(key["key"], body).headers["x-request-id"]
    refused = hub.chat(key["key"], {"model": "nope", "messages": HELLO})
    ids["failed"] = refused.headers["x-request-id"]
    listed = {"prices": [{"model_id": "m", "input_per_1k": 0.001, "output_per_1k": 0.002}]}
    (home / "prices.json").write_text(json.dumps(listed["prices"]))
    patch = pytest.MonkeyPatch()
    for name in ("TOKENHUB_ADMIN_TOKEN", "TOKENHUB_API_KEY", "TOKENHUB_OUTPUT"):
        patch.delenv(name, raising=False)
    patch.setenv("HOME", str(home))
    patch.setenv("TOKENHUB_URL", hub.url)
    yield Line(patch), ids
    patch.undo()
    hub.stop()


@pytest.fixture(scope="module")
def ran(live):
    """Every command, run: name → its runs; and what was asked of the server."""
    line, ids = live
    runs = {}
    tree = {item["command"] for item in json.loads(line(["commands", "-o", "json"]).out)}
    for words in LINES:
        filled = [re.sub(r"^\{(\w+)\}$", lambda match: ids[match[1]], word) for word in words]
        name = next(found for size in (3, 2, 1) if (found := " ".join(words[:size])) in tree)
        runs.setdefault(name, []).append(line(filled))
        if changes_nothing(words):
            runs[name] += [line([*filled, "-o", form]) for form in FORMS]
    return tree, runs, line


def changes_nothing(words):
    return words[-1] in {"list", "show"} or words[0] in {
        "status", "health", "provider-status", "spend", "rewards", "stats", "discover", "doctor",
    }  # fmt: skip


def test_every_command_runs(ran):
    _, runs, _ = ran
    for name, found in runs.items():
        for one in found:
            expected = {0, 1} if name == "prices diff" else {0}
            assert one.code in expected, (name, one.out, one.err)
    tree, runs, _ = ran
    assert tree - set(runs) == set(ELSEWHERE)


def test_no_member_is_asked_for_that_the_server_does_not_send(ran):
    _, runs, _ = ran
    missed = {
        name: gone
        for name, found in runs.items()
        if (gone := set().union(*(one.missed for one in found)) - OPTIONAL.get(name, set()))
    }
    assert missed == {}


def test_every_route_has_a_command_and_every_command_a_route(ran, tmp_path):
    asked = ran[2].asked
    matcher, left = Matcher(), {}
    for method, path in table():
        matcher.add(method, path, f"{method} {path}")
        left[f"{method} {path}"] = True
    for method, path in asked:
        found, _ = matcher.match(method, path)
        left.pop(found, None)
    assert set(left) == set(NO_COMMAND)


def test_every_moment_is_rfc_3339(ran):
    found = []
    for target, answer in ran[2].answers:
        found += [(target, *one) for one in moments(answer)]
    assert {name for _, name, _ in found} >= {"timestamp", "created_at", "last_used_at"}
    for one in found:
        assert one[2] is None or RFC_3339.fullmatch(str(one[2])), one


def moments(value, name=""):
    """Members that are points in time by their names, except in stored rows of the audit trail."""
    if isinstance(value, list):
        return [one for item in value for one in moments(item)]
    if isinstance(value, dict):
        shown = [(name, item) for name, item in value.items() if name not in {"before", "after"}]
        return [one for name, item in shown for one in moments(item, name)]
    numbered = name == "at" or name.endswith(("at_ms", "started_ms"))
    return [(name, value)] if numbered or MOMENT.search(name) else []


def test_rewards_are_in_the_words_of_the_api(ran):
    rewards = next(answer for target, answer in ran[2].answers if target.endswith("/rewards"))
    for row in rewards["rewards"]:
        assert set(row) == {
            "timestamp", "request_id", "attempt", "model_id", "provider_id", "mode",
            "estimated_tokens", "token_bucket", "latency_budget_ms", "latency_ms", "ttft_ms",
            "cost_usd", "success", "error_class", "reward", "propensity", "feedback",
        }  # fmt: skip
        assert row["success"] is (row["error_class"] == "")
        assert 0 <= row["cost_usd"] < 1


def table():
    """Method and path of every route."""
    from tools.make_docs import url_table

    return [(route.method, route.path) for route in url_table()]
