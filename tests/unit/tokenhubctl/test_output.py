"""Output forms, queries and the shape of errors."""

from __future__ import annotations

import csv
import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.tokenhubctl.answers import ANSWERS, MODELS

from tokenhubctl import output, table

BY_ID = sorted(MODELS, key=lambda model: model["id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def answers(peer):
    peer.answers.update(ANSWERS)


def test_json(ctl):
    assert json.loads(ctl("model", "list", "-o", "json").out) == BY_ID


def test_jsonl(ctl):
    lines = ctl("model", "list", "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == BY_ID


def test_yaml(ctl):
    assert yaml.safe_load(ctl("model", "list", "-o", "yaml").out) == BY_ID


def test_csv(ctl):
    found = list(csv.DictReader(io.StringIO(ctl("model", "list", "-o", "csv").out)))
    assert [row["id"] for row in found] == ["Qwen/Qwen2.5", "demo", "gpt-4o"]
    assert [row["input_per_1k"] for row in found] == ["", "0", "0.0025"]
    assert [row["enabled"] for row in found] == ["false", "true", "true"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("model list", ["Qwen/Qwen2.5", "demo", "gpt-4o"]),
        ("provider list", ["demo", "local", "openai"]),
        ("apikey list", ["k1", "k2"]),
        ("alias list", ["fast"]),
        ("health", ["local", "openai"]),
        ("logs", ["r2", "r1", "r0"]),
        ("vault secret list", ["a", "b"]),
    ],
)
def test_names(ctl, line, names):
    assert ctl(*line.split(), "-o", "name").out.split() == names


def test_wide_has_more_columns_and_no_headers_leaves_them_out(ctl):
    narrow, wide = (ctl("model", "list", "-o", form).out for form in ("table", "wide"))
    assert "PRICES FROM" in wide
    assert "PRICES FROM" not in narrow
    bare = ctl("model", "list", "--no-headers").out
    assert [line.split() for line in bare.splitlines()] == [
        line.split() for line in narrow.splitlines()[1:]
    ]
    assert "id,provider" not in ctl("model", "list", "-o", "csv", "--no-headers").out


def test_the_environment_sets_the_form_and_the_option_outranks_it(ctl, monkeypatch):
    monkeypatch.setenv("TOKENHUB_OUTPUT", "name")
    assert ctl("model", "list").out == "Qwen/Qwen2.5\ndemo\ngpt-4o\n"
    assert ctl("model", "list", "-o", "table").out.startswith("MODEL ")
    monkeypatch.setenv("TOKENHUB_OUTPUT", "xml")
    ran = ctl("model", "list")
    assert ran.code == 2
    assert "TOKENHUB_OUTPUT" in ran.err


def test_options_work_before_and_after_the_command_and_the_last_one_wins(ctl):
    assert ctl("-o", "name", "model", "list").out == "Qwen/Qwen2.5\ndemo\ngpt-4o\n"
    assert ctl("-o", "json", "model", "list", "-o", "name").out.startswith("Qwen/Qwen2.5\n")


@pytest.mark.parametrize(
    ("query", "form", "out"),
    [
        ("[?enabled].id", "jsonl", '"demo"\n"gpt-4o"\n'),
        ("[?id=='gpt-4o'].weight | [0]", "json", "8\n"),
        ("[0].id", None, "Qwen/Qwen2.5\n"),
        ("[].id", None, "Qwen/Qwen2.5\ndemo\ngpt-4o\n"),
        ("[].{name: id, w: weight}[:1]", None, "NAME          W\nQwen/Qwen2.5  3\n"),
        ("[0].nothing", None, ""),
        ("length(@)", None, "3\n"),
    ],
)
def test_queries(ctl, query, form, out):
    assert ctl("model", "list", "--query", query, *(["-o", form] if form else [])).out == out


def test_a_document_as_a_table(ctl):
    assert ctl("routing", "get", "-o", "table").out == "default_mode:  cheap\nstored:        -\n"


def test_moments_are_local_in_tables_and_rfc_3339_in_machine_forms(ctl, peer):
    alias = {"name": "a", "variants": [], "created_at": 1_772_360_430_000, "weight_ms": 5}
    peer.answers["GET /admin/v1/aliases"] = {"items": [alias]}
    assert "2026-03-01 10:20:30" in ctl("alias", "list", "-o", "wide").out
    for form in ("json", "jsonl", "yaml", "csv"):
        out = ctl("alias", "list", "-o", form).out
        assert "2026-03-01T10:20:30.000Z" in out
        assert "1772360430000" not in out


@given(JSON)
def test_json_forms_keep_every_value_and_no_control_character(value):
    for text in (output.as_json(value), output.as_json(value, indent=2)):
        assert json.loads(text) == value
        assert not table.UNSAFE.search(text.replace("\n", ""))


@given(JSON)
def test_yaml_keeps_every_value_and_no_control_character(value):
    text = output.serialise(value, "yaml")
    assert not table.UNSAFE.search(text.replace("\n", ""))
    assert yaml.safe_load(text) == value


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text(), max_size=3), max_size=3))
def test_csv_has_one_line_per_item_whatever_they_hold(items):
    text = output.serialise(items, "csv", headings=False)
    expected = len(items) if any(items) else 0
    assert len(list(csv.reader(io.StringIO(text)))) == (expected or len(text.splitlines()))


ERRORS = [
    (400, "invalid", 1), (401, "invalid_admin_token", 4), (403, "forbidden", 4),
    (404, "model_not_found", 3), (409, "conflict", 5), (413, "request_too_large", 1),
    (422, "x", 1), (423, "x", 5), (429, "rate_limited", 1), (500, "x", 1), (502, "x", 1),
    (503, "vault_locked", 5), (503, "unavailable", 1),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code", "exit_code"), ERRORS)
def test_exit_codes_and_errors_for_people_and_programs(ctl, peer, status, code, exit_code):
    body = {"error": "it\x1b[31m failed", "code": code, "hint": "do this"}
    peer.answers["GET /admin/v1/models/m"] = (status, body)
    ran = ctl("model", "get", "m")
    assert (ran.code, ran.out) == (exit_code, "")
    assert "it\\x1b[31m failed\nhint: do this\nrequest id: req-7\n" in ran.err
    ran = ctl("model", "get", "m", "-o", "json")
    assert (ran.code, ran.out) == (exit_code, "")
    error = json.loads(ran.err)["error"]
    assert (error["code"], error["exit_code"], error["hint"]) == (code, exit_code, "do this")
    assert error["request_id"] == "req-7"


@pytest.mark.parametrize("words", [["-o", "json"], ["--output=jsonl"], ["-ojson"]])
def test_usage_errors_are_json_too_when_asked_for(ctl, words):
    ran = ctl("model", "nope", *words)
    assert ran.code == 2
    assert json.loads(ran.err)["error"]["code"] == "usage"


def test_an_unreachable_server_is_6(ctl):
    ran = ctl("status", "--url", "http://127.0.0.1:9", "-o", "json")
    assert (ran.code, ran.out) == (6, "")
    assert json.loads(ran.err)["error"]["retryable"] is True


@pytest.mark.parametrize(
    "line", ["explain r9", "budget show", "prices list", "tsdb prune", "alias list", "vault lock"]
)
def test_a_route_the_server_does_not_have_is_said_plainly(ctl, peer, line):
    peer.answers.clear()
    ran = ctl(*line.split())
    assert ran.code == 3
    assert "This server has no " in ran.err
    assert "older than this tokenhubctl" in ran.err


def test_a_thing_that_does_not_exist_is_not_taken_for_a_route(ctl, peer):
    missing = {"error": "There is no model `m`.", "code": "model_not_found", "hint": "model list"}
    peer.answers["GET /admin/v1/models/m"] = (404, missing)
    ran = ctl("model", "get", "m")
    assert ran.code == 3
    assert "This server has no" not in ran.err


@pytest.mark.parametrize("form", ["table", "json"])
def test_the_locale_changes_no_byte(spawn, peer, form):
    peer.answers["GET /admin/v1/engine/models"] = {"models": [{"id": "模型-😀"}]}
    usual = spawn("model", "list", "-o", form, LC_ALL="C.UTF-8")
    plain = spawn("model", "list", "-o", form, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert "模型-😀" in plain.out
    assert plain == usual
