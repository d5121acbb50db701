from __future__ import annotations

import http.client
import json
import signal

from tests.e2e.server import Hub

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def set_up(hub, upstream, **provider):
    hub.ok("POST", "/vault/unlock", {"admin_password": "correct horse"})
    row = {"id": "p", "type": "openai", "base_url": upstream, "api_key": "sk-canary-1234567890"}
    hub.ok("POST", "/providers", row | provider)
    model = {"id": "m", "provider_id": "p", "upstream_name": "demo"}
    hub.ok("POST", "/models", model | {"input_per_1k": 0.001, "output_per_1k": 0.002})
    return hub.ok("POST", "/apikeys", {"name": "app"})["key"]


def test_a_wrong_password_changes_nothing(hub, upstream):
    key = set_up(hub, upstream)
    hub.ok("POST", "/vault/lock", {})
    refused = hub.admin("POST", "/vault/unlock", {"admin_password": "wrong horse battery"})
    assert refused.status == 401
    assert refused.json()["code"] == "wrong_password"
    locked = hub.chat(key, ASK)
    assert (locked.status, locked.json()["error"]["code"]) == (503, "vault_locked")
    assert hub.admin("PATCH", "/providers/p", {"api_key": "sk-new"}).status == 503
    hub.ok("POST", "/vault/unlock", {"admin_password": "correct horse"})
    assert hub.chat(key, ASK).status == 200


def test_client_keys_are_checked_while_the_vault_is_locked(hub, upstream):
    set_up(hub, upstream)
    hub.ok("POST", "/vault/lock", {})
    assert hub.chat("tokenhub_" + "0" * 64, ASK).status == 401


def test_the_vault_password_changes_at_once_and_keeps_the_secrets(hub, upstream):
    key = set_up(hub, upstream)
    body = {"old_password": "correct horse", "new_password": "battery staple"}
    hub.ok("POST", "/vault/rotate", body)
    hub.ok("POST", "/vault/lock", {})
    old = hub.admin("POST", "/vault/unlock", {"admin_password": "correct horse"})
    assert old.status == 401
    hub.ok("POST", "/vault/unlock", {"admin_password": "battery staple"})
    assert hub.chat(key, ASK).status == 200


def test_a_headless_server_unlocks_itself(tmp_path, upstream):
    hub = Hub(tmp_path, TOKENHUB_VAULT_PASSWORD="correct horse").start()
    try:
        key = set_up(hub, upstream)
        hub.stop()
        hub.start()
        assert hub.chat(key, ASK).status == 200
    finally:
        hub.stop()


def test_a_key_never_follows_its_provider_to_another_host(hub, upstream):
    set_up(hub, upstream)
    moved = hub.admin("PATCH", "/providers/p", {"base_url": "http://127.0.0.2:9"})
    assert moved.status == 409
    assert moved.json()["code"] == "credential_rebind_required"
    hub.ok("PATCH", "/providers/p", {"base_url": "http://127.0.0.2:9", "api_key": "sk-other"})


def test_deleting_a_provider_takes_models_and_secret_along(hub, upstream):
    set_up(hub, upstream)
    assert hub.ok("DELETE", "/providers/p")["models_deleted"] == ["m"]
    assert hub.admin("GET", "/models/m").status == 404
    hub.ok("POST", "/providers", {"id": "p", "type": "openai", "base_url": upstream})
    assert hub.ok("GET", "/providers/p")["cred_store"] == "none"


def test_a_rotated_token_survives_a_restart_and_the_old_variable(tmp_path):
    old = "first-admin-token-of-the-env"
    hub = Hub(tmp_path, TOKENHUB_ADMIN_TOKEN=old).start()
    try:
        assert hub.admin_token == old
        new = hub.ok("POST", "/admin-token/rotate", {})["token"]
        dead = hub.request("GET", "/admin/v1/info", headers={"Authorization": f"Bearer {old}"})
        assert dead.status == 401
        hub.stop(signal.SIGKILL)
        hub.start()
        assert hub.admin_token == new
        assert hub.admin("GET", "/info").status == 200
    finally:
        hub.stop()


def test_keys_die_on_the_very_next_request(hub, upstream):
    key = set_up(hub, upstream)
    [row] = [one for one in hub.ok("GET", "/apikeys")["keys"] if one["name"] == "app"]
    path = f"/apikeys/{row['id']}"
    assert hub.chat(key, ASK).status == 200
    hub.ok("PATCH", path, {"enabled": False})
    assert hub.chat(key, ASK).status == 401
    hub.ok("PATCH", path, {"enabled": True, "scopes": '["plan"]'})
    assert hub.chat(key, ASK).status == 403
    hub.ok("PATCH", path, {"scopes": ["chat"], "expires_in": "720h"})
    assert hub.chat(key, ASK).status == 200
    fresh = hub.ok("POST", path + "/rotate", {})["key"]
    assert hub.chat(key, ASK).status == 401
    assert hub.chat(fresh, ASK).status == 200
    hub.ok("DELETE", path)
    assert hub.chat(fresh, ASK).status == 401


def test_what_the_vault_refuses_names_the_next_step(hub):
    early = hub.admin("PUT", "/vault/secrets/s", {"value": "v"})
    assert (early.status, early.json()["code"]) == (503, "vault_locked")
    assert early.json()["error"] == "There is no vault yet; its first unlock creates it."
    hub.ok("POST", "/vault/unlock", {"admin_password": "correct horse"})
    hub.ok("PUT", "/vault/secrets/s", {"value": "v"})
    for method in ("GET", "DELETE"):
        unknown = hub.admin(method, "/vault/secrets/t")
        assert (unknown.status, unknown.json()["code"]) == (404, "secret_not_found")
        assert unknown.json()["error"] == "There is no secret `t`."
    hub.ok("POST", "/vault/lock", {})
    assert "unlock" in hub.admin("GET", "/vault/secrets/s").json()["hint"]
    wrong = hub.admin("POST", "/vault/unlock", {"admin_password": "not the password"})
    assert wrong.status == 401
    assert wrong.json()["hint"]


def test_who_listens_is_told_of_each_change_of_the_vault(tmp_path):
    hub = Hub(tmp_path).start()
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {hub.admin_token}"}
        connection.request("GET", "/admin/v1/events?type=vault", headers=headers)
        stream = connection.getresponse()
        passwords = {"old_password": "long-enough", "new_password": "longer-than-that"}
        hub.ok("POST", "/vault/unlock", {"admin_password": "long-enough"})
        hub.ok("POST", "/vault/rotate", passwords)
        hub.ok("POST", "/vault/lock", {})
        seen = []
        while len(seen) < 3:
            line = stream.readline()
            if line.startswith(b"data:") and b'"vault"' in line:
                event = json.loads(line[5:])
                seen.append((event["new_state"], event["reason"]))
        assert seen == [("unlocked", "created"), ("unlocked", "rotated"), ("locked", "admin")]
    finally:
        connection.close()
        hub.stop()
