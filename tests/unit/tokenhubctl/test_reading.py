"""Every reading command: what it prints for people, exactly."""

# ruff: noqa: E501  (tables stand here as they are printed)

from __future__ import annotations

import json
import re

import click
import pytest
from tests.unit.tokenhubctl.answers import ANSWERS, LOGS
from tests.unit.tokenhubctl.peer import reply

from tokenhubctl.cli import root
from tokenhubctl.commands.help import tree

FOUND = tree(click.Context(root, info_name="tokenhubctl", **root.context_settings))
UNANSWERED = {"admin-token", "completion", "help", "events", "top"}  # not one answer, or none
ANSWERED = [item for item in FOUND if item["command"] not in UNANSWERED]

TABLES = {
    "status": """\
Server:           URL
Status:           ok
Adapters:         2
Models:           3
Vault:            locked
Vault initialized: no
""",
    "health": """\
PROVIDER  STATE    CONSEC_ERR  AVG LATENCY  LAST SUCCESS         LAST ERROR
local     down     5           -            -                    connection refused connection refused connection refused ...
openai    healthy  0           812ms        2026-03-01 10:20:30  -
""",
    "provider-status local": """\
Provider:         local
State:            down
Total requests:   5
Total errors:     5
Consec errors:    5
Avg latency:      -
Last success:     never
Last error:       connection refused connection refused connection refused connection refused connection refused
Last error at:    2026-03-01 10:20:30
Cooldown until:   2026-03-01 10:20:30
""",
    "provider list": """\
ID      TYPE    BASE URL                CREDS  ENABLED  MODELS  SOURCE
demo    demo    -                       none   yes      1       runtime
local   vllm    http://10.0.0.5:8000    none   no       1       store
openai  openai  https://api.openai.com  vault  yes      1       store
""",
    "provider discover openai": "MODEL ID  REGISTERED\ngpt-4o    yes\no9        no\n",
    "discover openai": "MODEL ID  REGISTERED\ngpt-4o    yes\no9        no\n",
    "model list": """\
MODEL         PROVIDER  WEIGHT  CONTEXT  IN $/1K   OUT $/1K  ENABLED
Qwen/Qwen2.5  local     3       0        unpriced  unpriced  no
demo          demo      5       32768    free      free      yes
gpt-4o        openai    8       128000   $0.0025   $0.01     yes
""",
    "apikey list": """\
ID  NAME      PREFIX         SCOPES     ENABLED  CREATED              LAST USED            SPENT  RESERVED  BUDGET
k1  batch     tokenhub_cd34  -          no       2026-03-01 10:20:30  2026-03-01 10:20:30  $0.00  $0.00     none
k2  prod-app  tokenhub_ab12  chat,plan  yes      2026-03-01 10:20:30  never                $1.50  $0.00     $50.00
""",
    "logs --limit 50": """\
TIME                 MODEL   PROVIDER  MODE    LATENCY  COST      STATUS
2026-03-01 10:20:30  gpt-4o  openai    cheap   1.2s     $0.00042  200
2026-03-01 10:20:30  demo    demo      -       3ms      free      200
2026-03-01 10:20:30  -       -         normal  0ms      -         429
""",
    "audit": """\
TIME                 ACTION           RESOURCE  REQUEST ID
2026-03-01 10:20:30  provider.upsert  openai    a1
""",
    "audit verify": "Ok:               yes\nRows:             12\n",
    "engine models": """\
Adapters: 2
  demo → -
  openai → https://api.openai.com/v1/models

Models: 3
  MODEL         PROVIDER  WEIGHT  CONTEXT  ENABLED
  Qwen/Qwen2.5  local     3       0        no
  demo          demo      5       32768    yes
  gpt-4o        openai    8       128000   yes
""",
    "vault status": "Enabled:          yes\nInitialized:      yes\nLocked:           no\n",
    "vault secret list": "a\nb\n",
    "vault secret get a": "s3cret\n",
    "alias list": "NAME  VARIANTS         ENABLED  STICKY BY\nfast  gpt-4o:3 demo:1  yes      key\n",
    "prices list": """\
MODEL         IN $/1K   OUT $/1K  CACHED READ  CACHED WRITE  SOURCE     VERSION
Qwen/Qwen2.5  unpriced  unpriced  -            -             unknown    -
gpt-4o        $0.0025   $0.01     $0.00125     -             catalogue  2026-03-01
""",
    "budget show": """\
KEY  NAME      PERIOD   LIMIT   SPENT  RESERVED  REMAINING
k1   batch     2026-03  none    $0.00  $0.00     no limit
k2   prod-app  2026-03  $50.00  $1.50  $0.25     $48.25
""",
    "budget verify": "Ok:               yes\nAccounts:         2\n",
    "spend --by model": "MODEL   REQUESTS  IN  OUT  SPENT\ngpt-4o  3         30  60   $0.0012\n",
}

DOCUMENTS = {
    "routing get": "GET /admin/v1/routing-config",
    "stats": "GET /admin/v1/stats",
    "tsdb metrics": "GET /admin/v1/tsdb/metrics",
    "tsdb prune": "POST /admin/v1/tsdb/prune",
    "tsdb query metric=latency&model_id=gpt-4o&step_ms=60000": (
        "GET /admin/v1/tsdb/query?metric=latency&model_id=gpt-4o&step_ms=60000"
    ),
    "tsdb query metric=latency model_id=gpt-4o step_ms=60000": (
        "GET /admin/v1/tsdb/query?metric=latency&model_id=gpt-4o&step_ms=60000"
    ),
    'simulate {"mode":"cheap","token_count":500}': "POST /admin/v1/routing/simulate",
    "explain r2": "GET /admin/v1/decisions/r2",
    "replay r2": "POST /admin/v1/decisions/r2/replay",
    "provider get openai": "GET /admin/v1/providers/openai",
    "model get Qwen/Qwen2.5": "GET /admin/v1/models/Qwen%2FQwen2.5",
    "apikey get k2": "GET /admin/v1/apikeys/k2",
    "alias get fast": "GET /admin/v1/aliases/fast",
    "prices show gpt-4o": "GET /admin/v1/prices/gpt-4o",
    "api GET /admin/v1/stats": "GET /admin/v1/stats",
}

SYNONYMS = [
    ("provider", "provider list"), ("providers list", "provider list"), ("model", "model list"),
    ("models", "model list"), ("apikey", "apikey list"), ("apikeys list", "apikey list"),
    ("routing", "routing get"), ("engine", "engine models"), ("logs", "logs list"),
    ("logs --limit=2", "logs list --limit 2"), ("audit --limit 3", "audit list --limit=3"),
    ("alias", "alias list"), ("budget", "budget show"), ("prices", "prices list"),
    ("model list -o json", "-o json model list"), ("model -o json", "model list --output=json"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def answers(peer):
    peer.answers.update(ANSWERS)


@pytest.mark.parametrize("line", TABLES)
def test_tables(ctl, peer, line):
    ran = ctl(*line.split())
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == TABLES[line].replace("URL\n", f"{peer.url}\n", line == "status")


@pytest.mark.parametrize("line", DOCUMENTS)
def test_documents_are_indented_json(ctl, line):
    words = line.split(" ", 1) if line.startswith("simulate") else line.split()
    ran = ctl(*words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == json.dumps(ANSWERS[DOCUMENTS[line]], indent=2) + "\n"


def test_rewards_are_a_json_array(ctl):
    assert json.loads(ctl("rewards").out) == [{"request_id": "r2", "reward": 0.5}]


@pytest.mark.parametrize(("short", "full"), SYNONYMS)
def test_synonyms_and_default_verbs(ctl, short, full):
    assert ctl(*short.split()) == ctl(*full.split())


def test_metric_alone_gets_the_hint_about_quoting_on_stderr(ctl):
    ran = ctl("tsdb", "query", "metric=latency")
    assert json.loads(ran.out) == {"series": []}
    assert "unquoted &" in ran.err
    assert "'metric=latency&model_id=gpt-4o&step_ms=60000'" in ran.err


def test_an_unhealthy_server_is_shown_and_not_failed(ctl, peer):
    peer.answers["GET /healthz"] = (503, {"status": "unhealthy", "adapters": 0, "models": 0})
    ran = ctl("status")
    assert ran.code == 0
    assert "Status:           unhealthy\nAdapters:         0\n" in ran.out


@pytest.mark.parametrize(
    ("line", "route", "empty"),
    [
        ("model list", "GET /admin/v1/engine/models", {"models": None}),
        ("health", "GET /admin/v1/health", {"providers": []}),
        ("logs", "GET /admin/v1/logs?limit=50", {"logs": None}),
        ("rewards", "GET /admin/v1/rewards?limit=50", {"rewards": []}),
        ("vault secret list", "GET /admin/v1/vault/secrets", {"secrets": []}),
    ],
)
def test_an_empty_list_is_a_notice_on_stderr(ctl, peer, line, route, empty):
    peer.answers[route] = empty
    ran = ctl(*line.split())
    assert ran.code == 0
    assert ran.out == ("[]\n" if line == "rewards" else "")
    assert ran.err
    assert json.loads(ctl(*line.split(), "-o", "json").out) == []


def test_the_store_instead_of_the_engine(ctl):
    assert ctl("model", "list", "--stored", "-o", "name").out == "gpt-4o\n"


def test_log_filters_become_parameters(ctl, peer):
    target = (
        "/admin/v1/logs?limit=5&since=2026-03-01T00%3A00%3A00Z&model=Qwen%2FQwen2.5"
        "&provider=local&status=5xx&key=k2"
    )
    peer.answers[f"GET {target}"] = {"logs": LOGS}
    words = "logs --limit 5 --since 2026-03-01T00:00:00Z --model Qwen/Qwen2.5 --provider local"
    assert ctl(*words.split(), "--status", "5xx", "--key", "k2").code == 0
    assert peer.last.target == target


def test_one_key_with_its_past(ctl, peer):
    account = {"key_id": "k2", "name": "prod-app", "period": "month", "limit_usd": None,
               "spent_usd": 1, "reserved_usd": 0}  # fmt: skip
    entries = [{"what": "adjust", "amount_usd": -1.5, "reason": "billed twice"}]
    answer = {"key_id": "k2", "accounts": [account], "history": [], "entries": entries}
    peer.answers["GET /admin/v1/budget/k2"] = answer
    assert ctl("budget", "show", "k2").out == (
        "KEY  NAME      PERIOD  LIMIT  SPENT  RESERVED  REMAINING\n"
        "k2   prod-app  month   none   $1.00  $0.00     no limit\n\n"
        "entries:\nWHAT    AMOUNT_USD  REASON\nadjust  -$1.50      billed twice\n"
    )
    assert json.loads(ctl("budget", "show", "k2", "-o", "json").out) == answer


def test_spend_without_a_price_is_not_free(ctl, peer):
    row = {"model_id": "m", "requests": 1, "cost_usd": 0, "unpriced": 1}
    peer.answers["GET /admin/v1/spend?by=model"] = {"spend": [row]}
    assert "unpriced" in ctl("spend", "--by", "model").out


def test_one_request_in_detail(ctl):
    ran = ctl("logs", "show", "r2")
    assert "estimated_cost_usd:  $0.00042\n" in ran.out
    assert ran.out.endswith("attempts:\nNUMBER  MODEL_ID\n1       gpt-4o\n")


def test_hostile_names_cannot_reach_the_terminal(ctl, peer):
    name = "evil\x1b[2J\u202e\x9b\n"
    peer.answers["GET /admin/v1/engine/models"] = {"models": [{"id": name, "provider_id": name}]}
    for form in ("table", "wide", "csv", "name", "json", "jsonl", "yaml"):
        out = ctl("model", "list", "-o", form).out
        assert not set("\x1b\u202e\x9b") & set(out), form
    assert json.loads(ctl("model", "list", "-o", "json").out)[0]["id"] == name


def test_a_broken_chain_ends_with_1(ctl, peer):
    peer.answers["GET /admin/v1/audit/verify"] = {"ok": False, "rows": 3, "broken_at": 2}
    ran = ctl("audit", "verify")
    assert ran.code == 1
    assert "Broken at:        2\n" in ran.out


def test_a_budget_that_is_off_ends_with_1(ctl, peer):
    problem = {"row": 17, "found": "1", "expected": "2"}
    peer.answers["POST /admin/v1/budget/verify"] = {"ok": False, "problems": [problem]}
    ran = ctl("budget", "verify")
    assert ran.code == 1
    assert '"row": 17' in ran.out


def test_a_simulation_without_a_candidate_prints_it_and_ends_with_1(ctl, peer):
    peer.answers["POST /admin/v1/routing/simulate"] = {"error": "none fits", "eligible": []}
    ran = ctl("simulate", "{}")
    assert ran.code == 1
    assert json.loads(ran.out)["error"] == "none fits"


def test_an_unknown_provider_status_is_not_found(ctl):
    ran = ctl("provider-status", "nope")
    assert (ran.code, ran.out) == (3, "")
    assert "local, openai" in ran.err


@pytest.mark.parametrize("item", ANSWERED, ids=lambda item: item["command"])
@pytest.mark.parametrize("answer", [[], None, 3, "x", {}, {"items": 3, "models": "x"}], ids=repr)
def test_an_answer_no_tokenhub_gives_is_no_crash(ctl, peer, tmp_path, item, answer):
    """Another server at the address: each command ends with a code of its own, and says why."""
    (tmp_path / "prices.json").write_text("{}")
    words = {"METHOD": "GET", "PATH": "/x", "JSON": "{}", "FILE": f"{tmp_path}/prices.json"}
    words |= {"DAYS": "3", "AMOUNT": "1", "PARAMETER...": "metric=latency"}
    peer.serve = lambda handler, _call: reply(handler, 200, answer)
    options = ["--reason", "r"] if item["command"] == "budget adjust" else []
    given = [words.get(word, "long-enough") for word in item["arguments"]]
    ran = ctl(*item["command"].split(), *given, *options)
    assert ran.code in {0, 1, 2, 3}
    assert ran.out or ran.err


@pytest.mark.parametrize("answer", [{}, [], {"vault_locked": False}])
@pytest.mark.parametrize("line", ["status", "vault status", "vault secret get k", "prices diff -"])
def test_what_the_server_does_not_say_is_not_shown_as_a_state(ctl, peer, line, answer):
    peer.serve = lambda handler, _call: reply(handler, 200, answer)
    ran = ctl(*line.split(), stdin=b"{}")
    assert (ran.code, ran.out) == (1, "")
    assert "error: The server's answer" in ran.err


PROBED = {"provider_id": "p", "state": "down", "total_requests": 0, "avg_latency_ms": 0.0,
          "last_error": "", "last_error_time": None, "last_probe_at": "2026-03-01T10:20:30.000Z",
          "last_probe_error": "connection refused"}  # fmt: skip


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "connection refused"),
        ({"last_error": "older", "last_error_time": "2026-03-01T10:20:29.000Z"}, "refused"),
        ({"last_error": "newer", "last_error_time": "2026-03-01T10:20:31.000Z"}, "newer"),
        (
            {"last_error": "r", "last_error_time": "2026-01-01T10:00:00Z", "last_probe_error": ""},
            "r",
        ),
    ],
)
def test_what_a_probe_found_is_an_error_too_and_no_latency_is_no_zero(ctl, peer, members, said):
    peer.answers["GET /admin/v1/health"] = {"providers": [PROBED | members]}
    line = ctl("health").out.splitlines()[1]
    assert line.split()[:4] == ["p", "down", "-", "-"]
    assert line.endswith(said)
    status = ctl("provider-status", "p").out
    assert "Avg latency:      -\n" in status
    assert re.search(f"Last error: .*{said}\n", status)
