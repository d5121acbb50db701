from __future__ import annotations

import json

from tests.e2e.server import Hub

FILE = {
    "providers": [
        {"id": "p", "type": "openai", "api_key": "sk-from-the-file"},
        {"id": "broken", "type": "nonsense"},
    ],
    "models": [{"id": "m", "provider_id": "p", "upstream_name": "demo", "weight": 3}],
}


def write(hub, upstream, mode=0o600):
    hub.data.mkdir(mode=0o700, exist_ok=True)
    file = hub.data / "credentials"
    contents = json.loads(json.dumps(FILE))
    contents["providers"][0]["base_url"] = upstream
    file.write_text(json.dumps(contents))
    file.chmod(mode)


def test_it_is_added_once_and_never_undoes_an_edit(tmp_path, upstream):
    hub = Hub(tmp_path, TOKENHUB_VAULT_PASSWORD="correct horse")
    write(hub, upstream)
    hub.start()
    try:
        assert hub.ok("GET", "/providers/p")["cred_store"] == "vault"
        assert "`broken` was not added" in hub.log.read_text()
        key = hub.ok("POST", "/apikeys", {"name": "app"})["key"]
        ask = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        assert hub.chat(key, ask).status == 200
        hub.ok("PATCH", "/models/m", {"weight": 9})
        hub.stop()
        hub.start()
        assert hub.ok("GET", "/models/m")["weight"] == 9
    finally:
        hub.stop()


def test_each_addition_has_its_row_as_an_admins_has(tmp_path, upstream):
    hub = Hub(tmp_path, TOKENHUB_VAULT_PASSWORD="correct horse")
    write(hub, upstream)
    hub.start()
    try:
        rows = hub.ok("GET", "/audit")["logs"]
        imported = {row["action"]: row for row in rows if row["actor"] == "tokenhub"}
        hub.ok("DELETE", "/providers/p")
        hub.ok("POST", "/providers", FILE["providers"][0] | {"base_url": upstream})
        hub.ok("POST", "/models", FILE["models"][0])
        rows = hub.ok("GET", "/audit")["logs"]
        asked = {row["action"]: row for row in rows if row["actor"] == "admin"}
        for action, name in (("provider.upsert", "p"), ("model.upsert", "m")):
            assert imported[action]["resource"] == name
            for side in ("resource", "outcome", "before", "after"):
                assert imported[action][side] == asked[action][side]
        assert imported["provider.upsert"]["after"]["cred_store"] == "vault"
        assert imported["credentials.import"]["after"] == {"reason": "2 added"}
        assert "sk-from-the-file" not in json.dumps(rows)
        assert hub.ok("GET", "/audit/verify")["ok"] is True
    finally:
        hub.stop()


def test_a_file_that_others_can_read_is_not_read(tmp_path, upstream):
    hub = Hub(tmp_path, TOKENHUB_VAULT_PASSWORD="correct horse")
    write(hub, upstream, 0o644)
    hub.start()
    try:
        assert "only its owner can read" in hub.log.read_text()
        assert hub.admin("GET", "/providers/p").status == 404
    finally:
        hub.stop()


def test_without_an_open_vault_its_keys_stay_where_they_are(tmp_path, upstream):
    hub = Hub(tmp_path)
    write(hub, upstream)
    hub.start()
    try:
        assert "`p` was not added" in hub.log.read_text()
        assert hub.admin("GET", "/providers/p").status == 404
    finally:
        hub.stop()
