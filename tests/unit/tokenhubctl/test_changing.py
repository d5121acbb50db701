"""Every changing command: what it sends, and the line it prints."""

from __future__ import annotations

import json

import pytest
from tests.unit.tokenhubctl.answers import CHANGES
from tests.unit.tokenhubctl.peer import TOKEN

PROVIDER = '{\n  "id": "openai",\n  "api_key": "sk-...",\n  "n": 0.10000000000000000001\n}'
CASES = [
    (["vault", "unlock", "password1"], "POST /admin/v1/vault/unlock",
     {"admin_password": "password1"}, "Vault unlocked.\n"),
    (["vault", "lock"], "POST /admin/v1/vault/lock", {}, "Vault locked.\n"),
    (["vault", "rotate", "old", "new"], "POST /admin/v1/vault/rotate",
     {"old_password": "old", "new_password": "new"}, "Vault password rotated.\n"),
    (["vault", "secret", "set", "a", "v"], "PUT /admin/v1/vault/secrets/a", {"value": "v"},
     'Secret "a" saved.\n'),
    (["vault", "secret", "delete", "a"], "DELETE /admin/v1/vault/secrets/a", None,
     'Secret "a" deleted.\n'),
    (["provider", "edit", "openai", '{"base_url":"https://x"}'],
     "PATCH /admin/v1/providers/openai", {"base_url": "https://x"}, "Provider updated.\n"),
    (["provider", "delete", "openai"], "DELETE /admin/v1/providers/openai", None,
     "Provider deleted.\n"),
    (["model", "add", '{"id":"m"}'], "POST /admin/v1/models", {"id": "m"}, "Model saved.\n"),
    (["model", "edit", "Qwen/Qwen2.5", '{"weight": 9}'], "PATCH /admin/v1/models/Qwen%2FQwen2.5",
     {"weight": 9}, "Model updated.\n"),
    (["model", "enable", "Qwen/Qwen2.5"], "PATCH /admin/v1/models/Qwen%2FQwen2.5",
     {"enabled": True}, "Model Qwen/Qwen2.5 enabled.\n"),
    (["model", "disable", "Qwen/Qwen2.5"], "PATCH /admin/v1/models/Qwen%2FQwen2.5",
     {"enabled": False}, "Model Qwen/Qwen2.5 disabled.\n"),
    (["model", "delete", "Qwen/Qwen2.5"], "DELETE /admin/v1/models/Qwen%2FQwen2.5", None,
     "Model deleted.\n"),
    (["routing", "set", '{"default_mode":"cheap"}'], "PUT /admin/v1/routing-config",
     {"default_mode": "cheap"}, "Routing configuration saved.\n"),
    (["alias", "set", "fast", '{"variants":[]}'], "PUT /admin/v1/aliases/fast",
     {"variants": []}, "Alias fast saved.\n"),
    (["alias", "delete", "fast"], "DELETE /admin/v1/aliases/fast", None, "Alias fast deleted.\n"),
    (["apikey", "edit", "k2", "{}"], "PATCH /admin/v1/apikeys/k2", {}, "API key updated.\n"),
    (["apikey", "delete", "k2"], "DELETE /admin/v1/apikeys/k2", None, "API key deleted.\n"),
    (["apikey", "paid", "k2"], "POST /admin/v1/apikeys/k2/paid", {},
     "Budget period started afresh.\n"),
    (["apikey", "create", r'{"name":"prod-app","scopes":"[\"chat\",\"plan\"]"}'],
     "POST /admin/v1/apikeys", {"name": "prod-app", "scopes": '["chat","plan"]'},
     "API key created.\n  ID:      k9\n  Key:     tokenhub_0123\n\nKeep it safe.\n"),
    (["apikey", "rotate", "k2"], "POST /admin/v1/apikeys/k2/rotate", {},
     ("API key rotated.\n  ID:      k2\n  Key:     tokenhub_4567\n\n"
     "Save this key now: it will not be shown again.\n")),
    (["rotate-admin-token"], "POST /admin/v1/admin-token/rotate", {},
     ("Admin token rotated.\nnew-token\n\n"
     "Update TOKENHUB_ADMIN_TOKEN where you have set it, or run: make _write-env\n")),
    (["prices", "set", "gpt-4o", '{"input_per_1k": 0}'], "PUT /admin/v1/prices/gpt-4o",
     {"input_per_1k": 0}, "Prices of gpt-4o saved.\n"),
    (["budget", "adjust", "k2", "-1.25", "--reason", "billed twice"],
     "POST /admin/v1/budget/k2/adjust", {"amount_usd": "-1.25", "reason": "billed twice"},
     "Spent amount of k2 adjusted by -1.25 USD.\n"),
    (["tsdb", "retention", "30"], "PUT /admin/v1/tsdb/retention", {"days": 30},
     "Points are kept for 30 days.\n"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def answers(peer):
    retention = {"PUT /admin/v1/tsdb/retention": {"ok": True, "retention_days": 30}}
    peer.answers.update(CHANGES | retention)


@pytest.mark.parametrize(("words", "route", "body", "out"), CASES, ids=lambda case: str(case)[:40])
def test_changes(ctl, peer, words, route, body, out):
    ran = ctl(*words)
    assert (ran.code, ran.out, ran.err) == (0, out, "")
    [call] = peer.calls
    assert f"{call.method} {call.target}" == route
    assert (call.json if call.body else None) == body
    assert call.headers["authorization"] == f"Bearer {TOKEN}"


def test_json_is_sent_byte_for_byte(ctl, peer):
    assert ctl("provider", "add", PROVIDER).out == "Provider saved.\n"
    assert peer.last.body == PROVIDER.encode()


def test_machine_output_of_a_change_is_the_answer(ctl):
    assert json.loads(ctl("apikey", "create", '{"name":"x"}', "-o", "json").out)["id"] == "k9"
    assert ctl("apikey", "create", '{"name":"x"}', "--query", "key").out == "tokenhub_0123\n"


def test_a_new_vault_is_said_to_be_new_on_stderr(ctl, peer):
    peer.answers["POST /admin/v1/vault/unlock"] = {"ok": True, "created": True}
    ran = ctl("vault", "unlock", "password1")
    assert ran.out == "Vault unlocked.\n"
    assert "a new vault was created" in ran.err


def test_what_was_booked_as_paid_is_shown(ctl, peer):
    peer.answers["POST /admin/v1/apikeys/k2/paid"] = {"ok": True, "paid_usd": 1.5}
    assert ctl("apikey", "paid", "k2").out.endswith("afresh. $1.50 booked as paid.\n")


def test_a_vault_that_was_locked_already_is_said_so(ctl, peer):
    peer.answers["POST /admin/v1/vault/lock"] = {"ok": True, "already_locked": True}
    assert ctl("vault", "lock").out == "Vault was already locked.\n"


@pytest.mark.parametrize("answer", [{}, {"ok": False}, [], "fine", {"status": "done"}])
def test_an_unconfirmed_change_fails(ctl, peer, answer):
    peer.answers["POST /admin/v1/models"] = answer
    ran = ctl("model", "add", "{}")
    assert (ran.code, ran.out) == (1, "")
    assert "did not confirm" in ran.err


@pytest.mark.parametrize("line", ["apikey create {}", "apikey rotate k2", "rotate-admin-token"])
def test_a_missing_secret_in_the_answer_is_an_error(ctl, peer, line):
    for route in ("apikeys", "apikeys/k2/rotate", "admin-token/rotate"):
        peer.answers[f"POST /admin/v1/{route}"] = {"ok": True}
    assert ctl(*line.split()).code == 1


def test_a_price_list_from_a_file_and_from_stdin(ctl, peer, tmp_path):
    file = tmp_path / "prices.json"
    file.write_text('{"gpt-4o": {"input_cost_per_token": 2e-06}}')
    assert ctl("prices", "import", str(file)).out == "Prices imported: 7 changed.\n"
    assert peer.last.body == file.read_bytes()
    assert ctl("prices", "import", "-", stdin=b"{}").code == 0
    assert peer.last.body == b"{}"


def test_a_price_list_that_is_not_there(ctl, peer, tmp_path):
    for words in (f"{tmp_path}/none.json", f"@{tmp_path}/none.json"):
        ran = ctl("prices", "diff", words)
        assert (ran.code, peer.calls) == (2, [])
        assert ran.err == (
            f"error: Cannot read the price list from {tmp_path}/none.json: "
            "No such file or directory.\n"
        )


def test_a_diff_shows_the_changes_and_ends_with_1(ctl, peer, tmp_path):
    (tmp_path / "p").write_text("{}")
    ran = ctl("prices", "diff", str(tmp_path / "p"))
    assert ran.out == "MODEL   FIELD         NOW      NEW\ngpt-4o  input_per_1k  $0.0025  $0.002\n"
    assert ran.code == 1
    peer.answers["POST /admin/v1/prices/import?dry_run=true"] = {"changes": []}
    assert ctl("prices", "diff", str(tmp_path / "p")).code == 0
