"""Prices over the admin API and the command line: shown, set, imported, audited."""

from __future__ import annotations

import json

import pytest

LITELLM = {
    "sample_spec": {"input_cost_per_token": 0},
    "gpt-4o": {"input_cost_per_token": 3e-06, "output_cost_per_token": 1.2e-05},
    "mine": {
        "input_cost_per_token": 1.1e-07,
        "output_cost_per_token": 2.2e-07,
        "cache_read_input_token_cost": 1e-08,
        "input_cost_per_token_above_200k_tokens": 2.2e-07,
    },
    "never-heard-of": {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
}


@pytest.fixture
def priced(hub):
    hub.ok("POST", "/providers", {"id": "openai", "type": "openai"})
    hub.ok("POST", "/providers", {"id": "own", "type": "vllm", "base_url": "http://127.0.0.1:9"})
    hub.ok("POST", "/models", {"id": "gpt-4o", "provider_id": "openai"})
    hub.ok("POST", "/models", {"id": "mine", "provider_id": "own"})
    hub.ok("POST", "/models", {"id": "org/free", "provider_id": "own"})
    free = {"input_per_1k": 0, "output_per_1k": 0}
    hub.ok("PUT", "/prices/org%2Ffree", free)
    return hub


def prices_of(hub):
    return {row["model_id"]: row for row in hub.ok("GET", "/prices")["prices"]}


def test_every_model_with_its_source_and_version(priced):
    rows = prices_of(priced)
    assert rows["gpt-4o"]["source"] == "catalogue"
    assert rows["gpt-4o"]["version"].startswith("20")
    assert rows["gpt-4o"]["input_per_1k"] == 0.0025
    assert rows["gpt-4o"]["cached_read_per_1k"] == 0.00125
    assert rows["mine"]["source"] == "unknown"
    assert rows["mine"]["input_per_1k"] is None
    assert rows["org/free"]["source"] == "manual"
    assert rows["org/free"]["input_per_1k"] == 0
    shown = priced.ctl("prices", "list").stdout
    assert "unpriced" in shown
    assert "free" in shown


def test_one_model_with_all_kinds_registered_or_only_in_the_catalogue(priced):
    own = priced.ok("GET", "/prices/gpt-4o")
    assert (own["registered"], own["provider_id"]) == (True, "openai")
    assert "batch" in own["variants"]
    other = priced.ok("GET", "/prices/gemini-2.5-pro")
    assert other["registered"] is False
    assert other["listed_by"] == "google"
    assert other["tiers"][0]["above_prompt_tokens"] == 200_000
    assert other["tiers"][0]["input_per_1k"] > other["input_per_1k"]
    assert priced.ok("GET", "/prices/anthropic/claude-sonnet-4-5")["listed_by"] == "anthropic"
    reply = priced.admin("GET", "/prices/gpt-4oo")
    assert reply.status == 404
    assert "gpt-4o" in reply.json()["hint"]
    assert json.loads(priced.ctl("prices", "show", "gpt-4o").stdout) == own


def test_a_price_set_by_hand_wins_and_null_gives_it_back(priced):
    mine = {"input_per_1k": 0.0071, "output_per_1k": 0.01, "cached_read_per_1k": 0.001}
    done = priced.ctl("prices", "set", "gpt-4o", json.dumps(mine))
    assert done.returncode == 0, done.stderr
    row = prices_of(priced)["gpt-4o"]
    assert row["source"] == "manual"
    assert {name: row[name] for name in mine} == mine
    # A field left out stays, also across a later change.
    priced.ok("PUT", "/prices/gpt-4o", {"input_per_1k": 0.008})
    assert prices_of(priced)["gpt-4o"]["cached_read_per_1k"] == 0.001
    priced.ok("PUT", "/prices/gpt-4o", {"input_per_1k": None, "output_per_1k": None})
    row = prices_of(priced)["gpt-4o"]
    assert (row["source"], row["cached_read_per_1k"]) == ("catalogue", 0.00125)
    rows = priced.ok("GET", "/audit?action=prices.set")["logs"]
    sets = [row for row in rows if row["resource"] == "gpt-4o"]
    told = [(row["before"]["input_per_1k"], row["after"]["input_per_1k"]) for row in sets]
    assert told == [(0.008, 0.0025), (0.0071, 0.008), (0.0025, 0.0071)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_per_1k": 0.1}, "output_per_1k"),
        ({"output_per_1k": 0.1}, "input_per_1k"),
        ({"cached_read_per_1k": 0.1}, "cached_read_per_1k"),
        ({"input_per_1k": -1, "output_per_1k": 1}, "input_per_1k"),
        ({"input_per_1k": 1e-13, "output_per_1k": 1}, "input_per_1k"),
        ({"input": 1}, "input"),
        ({}, None),
    ],
)
def test_half_a_price_is_refused_by_name(priced, body, param):
    before = prices_of(priced)
    reply = priced.admin("PUT", "/prices/mine", body)
    assert reply.status == 400, reply.body
    assert reply.json().get("param") == param
    assert prices_of(priced) == before


def test_import_says_first_and_does_then(priced, tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps(LITELLM))
    before = prices_of(priced)
    plan = priced.ok("POST", "/prices/import?dry_run=true", LITELLM)
    assert prices_of(priced) == before
    assert (plan["changed"], plan["unchanged"], plan["unknown"]) == (2, 0, 1)
    assert plan["simplified"] == ["mine"]
    assert {"model_id": "mine", "field": "input_per_1k", "old": None, "new": 0.00011} in (
        plan["changes"]
    )
    diff = priced.ctl("prices", "diff", str(file))
    assert diff.returncode == 1, diff.stderr
    assert "gpt-4o" in diff.stdout
    done = priced.ctl("prices", "import", str(file))
    assert (done.returncode, done.stdout) == (0, "Prices imported: 2 changed.\n"), done.stderr
    assert "mine" in done.stderr
    row = prices_of(priced)["mine"]
    assert (row["input_per_1k"], row["output_per_1k"], row["cached_read_per_1k"]) == (
        0.00011, 0.00022, 0.00001,
    )  # fmt: skip
    assert row["source"] == "litellm"
    again = priced.ok("POST", "/prices/import", LITELLM)
    assert (again["changed"], again["unchanged"]) == (0, 2)
    assert priced.ctl("prices", "diff", str(file)).returncode == 0
    rows = priced.ok("GET", "/audit?action=prices.import")["logs"]
    assert len(rows) == 1
    assert set(rows[0]["before"]) == set(rows[0]["after"]) == {"gpt-4o", "mine"}


def test_prices_set_by_hand_stay_unless_asked(priced):
    price = {"org/free": {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}}
    answer = priced.ok("POST", "/prices/import", price)
    assert (answer["changed"], answer["kept"]) == (0, ["org/free"])
    assert prices_of(priced)["org/free"]["input_per_1k"] == 0
    answer = priced.ok("POST", "/prices/import?overwrite=true", price)
    assert (answer["changed"], answer["kept"]) == (1, [])
    assert prices_of(priced)["org/free"]["input_per_1k"] == 0.001


def test_what_the_list_prints_can_be_imported_elsewhere(priced, tmp_path):
    priced.ok("PUT", "/prices/mine", {"input_per_1k": 0.3, "output_per_1k": 0.6})
    file = tmp_path / "export.json"
    file.write_text(priced.ctl("prices", "list", "-o", "json").stdout)
    nothing = priced.ctl("prices", "diff", str(file))
    assert nothing.returncode == 0, (nothing.stdout, nothing.stderr)
    priced.ok("PUT", "/prices/mine", {"input_per_1k": None, "output_per_1k": None})
    assert prices_of(priced)["mine"]["source"] == "unknown"
    assert priced.ctl("prices", "import", str(file)).returncode == 0
    row = prices_of(priced)["mine"]
    assert (row["input_per_1k"], row["output_per_1k"], row["source"]) == (0.3, 0.6, "manual")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"gpt-4o": {"input_cost_per_token": "cheap"}}',
        b'{"prices": [{"input_per_1k": 1}]}',
        b'{"prices": [{"model_id": "mine", "input_per_1k": -1}]}',
        b'{"prices": "all"}',
        b"\xff",
    ],
)
def test_a_bad_list_changes_nothing(priced, body):
    before = prices_of(priced)
    reply = priced.admin("POST", "/prices/import", body)
    assert reply.status == 400, reply.body
    assert prices_of(priced) == before
