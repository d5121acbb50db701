"""Who did what: every action has its row, no change goes without one, and no row changes."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import time
from contextlib import closing

import pytest
from tests.e2e.server import Hub

PROVIDER = {"id": "up", "type": "vllm", "base_url": "http://127.0.0.1:9"}
MODEL = {"id": "m/1", "provider_id": "up", "weight": 5}
SECRET = "value-nobody-may-see"

# Action, method, path, body, and where its effect can be looked at. {key} is an API key's id.
CHANGES = [
    ("provider.upsert", "POST", "/providers", PROVIDER | {"api_key": SECRET}, "/providers"),
    ("provider.patch", "PATCH", "/providers/up", {"enabled": False}, "/providers/up"),
    ("model.upsert", "POST", "/models", MODEL, "/models"),
    ("model.patch", "PATCH", "/models/m/1", {"weight": 7}, "/models/m/1"),
    ("prices.set", "PUT", "/prices/m/1", {"input_per_1k": 1, "output_per_1k": 2}, "/prices/m/1"),
    ("alias.upsert", "PUT", "/aliases/a", {"variants": [{"model_id": "m/1"}]}, "/aliases"),
    ("routing-config.update", "PUT", "/routing-config", {"default_mode": "cheap"},
     "/routing-config"),
    ("apikey.update", "PATCH", "/apikeys/{key}", {"monthly_budget_usd": 3}, "/apikeys/{key}"),
    ("apikey.rotate", "POST", "/apikeys/{key}/rotate", {}, "/apikeys/{key}"),
    ("apikey.budget_paid", "POST", "/apikeys/{key}/paid", {}, "/apikeys/{key}"),
    ("budget.adjust", "POST", "/budget/{key}/adjust", {"amount_usd": "1", "reason": "x"},
     "/budget/{key}"),
    ("vault.secret.set", "PUT", "/vault/secrets/s", {"value": SECRET}, "/vault/secrets"),
    ("tsdb.retention", "PUT", "/tsdb/retention", {"days": 30}, "/tsdb/retention"),
    ("vault.secret.delete", "DELETE", "/vault/secrets/s", None, "/vault/secrets"),
    ("alias.delete", "DELETE", "/aliases/a", None, "/aliases"),
    ("model.delete", "DELETE", "/models/m/1", None, "/models"),
    ("provider.delete", "DELETE", "/providers/up", None, "/providers"),
    ("apikey.create", "POST", "/apikeys", {"name": "second"}, "/apikeys"),
    ("apikey.revoke", "DELETE", "/apikeys/{key}", None, "/apikeys"),
]  # fmt: skip
OTHERS = [
    ("vault.secret.get", "GET", "/vault/secrets/s0", None),
    ("admin_token.rotate", "POST", "/admin-token/rotate", {"token": "another-token-of-mine"}),
    ("tsdb.prune", "POST", "/tsdb/prune", {}),
    ("vault.rotate", "POST", "/vault/rotate",
     {"old_password": "long-enough", "new_password": "even-longer"}),
]  # fmt: skip


@pytest.fixture
def ready(hub):
    """A server with an open vault, one secret and one key; its id."""
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0
    hub.ok("PUT", "/vault/secrets/s0", {"value": SECRET})
    return hub, hub.ok("POST", "/apikeys", {"name": "first", "scopes": ["chat"]})["id"]


def rows(hub, **equal):
    query = "&".join(f"{name}={value}" for name, value in equal.items())
    return hub.ok("GET", f"/audit?limit=1000&{query}")["logs"]


def change(hub, key, spec):
    _, method, path, body = spec[:4]
    return hub.admin(method, path.format(key=key), body)


def state(hub, key, path):
    found = hub.ok("GET", path.format(key=key))
    found.pop("history", None)  # an account that was opened and holds nothing is no change
    return json.dumps(found, sort_keys=True)


def database(hub):
    return closing(sqlite3.connect(hub.data / "tokenhub.sqlite", timeout=10, isolation_level=None))


def test_every_action_has_its_row_with_actor_address_and_both_sides(ready):
    hub, key = ready
    for spec in [*CHANGES, *OTHERS]:
        last = rows(hub)[0]["id"]
        reply = change(hub, key, spec)
        assert reply.status == 200, (spec, reply.body)
        fresh = [row for row in rows(hub) if row["id"] > last]
        assert [row["action"] for row in fresh] == [spec[0]]
        [row] = fresh
        assert (row["actor"], row["address"], row["outcome"]) == ("admin", "127.0.0.1", "ok")
        assert row["request_id"] == reply.headers["x-request-id"]
        assert row["timestamp"].endswith("Z")
        if spec in CHANGES:
            assert row["before"] or row["after"], row
    told = json.dumps(rows(hub))
    for secret in (SECRET, "another-token-of-mine", "even-longer", "long-enough"):
        assert secret not in told
    assert hub.ctl("audit", "verify").returncode == 0


@pytest.mark.parametrize("spec", CHANGES, ids=lambda spec: spec[0])
def test_without_its_row_a_change_does_not_happen(closed, spec):
    hub, prepare = closed
    key = prepare(spec)
    before = state(hub, key, spec[4])
    with database(hub) as db:
        db.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'the audit trail is closed'); END"
        )
        try:
            refused = change(hub, key, spec)
        finally:
            db.execute("DROP TRIGGER refuse")
    assert refused.status >= 500, (spec, refused.body)
    assert b"audit trail is closed" not in refused.body
    assert state(hub, key, spec[4]) == before
    assert change(hub, key, spec).status == 200, "with its row it does"


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A server, and a function that makes what a change needs and a key; the key's id."""
    hub = Hub(tmp_path_factory.mktemp("home")).start()
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0

    def prepare(spec):
        for made in (("POST", "/providers", PROVIDER), ("POST", "/models", MODEL)):
            if spec[0] not in {"provider.upsert", "model.upsert"} or made[1] == "/providers":
                hub.ok(*made)
        hub.ok("PUT", "/aliases/a", {"variants": [{"model_id": "m/1", "weight": 2}]})
        hub.ok("PUT", "/vault/secrets/s", {"value": "old"})
        return hub.ok("POST", "/apikeys", {"name": spec[0], "scopes": ["chat"]})["id"]

    yield hub, prepare
    hub.stop()


def test_what_cannot_be_rolled_back_waits_for_its_row(ready):
    hub, key = ready
    with database(hub) as db:
        db.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        try:
            replies = {spec[0]: change(hub, key, spec) for spec in OTHERS}
        finally:
            db.execute("DROP TRIGGER refuse")
    assert {name: reply.status >= 500 for name, reply in replies.items()} == dict.fromkeys(
        replies, True
    )
    assert SECRET.encode() not in replies["vault.secret.get"].body
    assert hub.admin("GET", "/info").status == 200, "the old token is still the one"
    hub.ok("POST", "/vault/lock", {})
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0, "so is the password"


def test_attempts_that_failed_are_there_too(ready):
    hub, _ = ready
    assert hub.request("GET", "/admin/v1/info").status == 401
    wrong = {"Authorization": "Bearer not-the-admin-token"}
    assert hub.request("GET", "/admin/v1/info", headers=wrong).status == 401
    assert hub.ctl("vault", "unlock", "wrong-password").returncode == 4
    assert hub.ctl("vault", "rotate", "wrong-password", "and-a-new-one").returncode == 4
    assert {row["outcome"] for row in rows(hub, action="login")} == {"missing", "wrong"}
    found = {(row["action"], row["outcome"]) for row in rows(hub)}
    assert ("vault.unlock", "wrong_password") in found
    assert ("vault.rotate", "wrong_password") in found
    assert "not-the-admin-token" not in json.dumps(rows(hub))
    assert "not-the-admin-token" not in hub.log.read_text()
    assert json.loads(hub.log.read_text().splitlines()[-1])["level"]


def test_a_lock_has_one_row_and_says_who_or_why(ready):
    hub, _ = ready
    assert hub.ctl("vault", "lock").returncode == 0
    [row] = rows(hub, action="vault.lock")
    assert (row["actor"], row["address"]) == ("admin", "127.0.0.1")
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0
    hub.stop()
    hub.start()
    newest, _ = rows(hub, action="vault.lock")
    assert (newest["actor"], newest["after"]) == ("tokenhub", {"reason": "shutdown"})


@pytest.mark.parametrize(
    ("tamper", "named", "why"),
    [
        ("UPDATE audit_log SET outcome = 'denied' WHERE seq = 3", 3, "content was changed"),
        ("UPDATE audit_log SET at_ms = at_ms + 1 WHERE seq = 2", 2, "content was changed"),
        ("DELETE FROM audit_log WHERE seq = 3", 4, "row 3 is missing"),
        ("UPDATE audit_log SET previous = digest WHERE seq = 4", 4, "does not follow"),
    ],
)
def test_a_row_that_was_changed_is_named(ready, tamper, named, why):
    hub, _ = ready
    for weight in (1, 2, 3):
        hub.ok("PUT", "/routing-config", {"default_max_latency_ms": weight})
    assert hub.ctl("audit", "verify").returncode == 0
    with database(hub) as db:
        db.execute(tamper)
    verified = hub.ctl("audit", "verify")
    assert verified.returncode == 1
    assert re.search(rf"Broken row: +{named}\n", verified.stdout), verified.stdout
    assert why in verified.stdout


def test_the_vault_locks_itself_when_idle_and_says_so(tmp_path):
    hub = Hub(tmp_path)
    program = (
        "import sys, tokenhub.app as app; app.AUTO_LOCK_MS = 1500\n"
        "from tokenhub.__main__ import main; sys.exit(main([]))"
    )
    hub.start(command=[sys.executable, "-c", program])
    try:
        assert hub.ctl("vault", "unlock", "long-enough").returncode == 0
        deadline = time.monotonic() + 20
        while not (found := rows(hub, action="vault.lock")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (found[0]["actor"], found[0]["after"]) == ("tokenhub", {"reason": "idle"})
        assert hub.ok("GET", "/vault/status")["locked"] is True
    finally:
        hub.stop()
