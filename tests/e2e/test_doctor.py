"""doctor against real set-ups that are broken, and the fixes it names."""

from __future__ import annotations

import json
import stat
import subprocess

import pytest


@pytest.fixture
def doctor(hub):
    def run(*words, **env):
        ran = hub.ctl("doctor", "-o", "json", *words, env=env)
        found = {}
        for item in json.loads(ran.stdout):
            found.setdefault(item["check"], []).append(item)
        return ran.returncode, found

    return run


def test_a_sound_set_up(hub, doctor):
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0
    code, found = doctor()
    assert code == 0
    expected = {"url", "server", "clock", "admin token", "version", "vault", "providers", "models",
                "file modes", "disk"}  # fmt: skip
    assert expected <= set(found)
    assert {item["state"] for items in found.values() for item in items} <= {"ok", "warning"}


@pytest.mark.parametrize("name", ["tokenhub.sqlite", ".admin-token", ".key-pepper", "env", ""])
def test_a_file_that_others_can_read_and_its_fix(hub, doctor, name):
    place = hub.data / name
    place.chmod(place.stat().st_mode | stat.S_IRGRP)
    code, found = doctor()
    [finding] = found["file modes"]
    assert (code, finding["state"]) == (1, "failed")
    assert str(place).rstrip("/") in finding["finding"]
    subprocess.run(["sh", "-c", finding["fix"]], check=True)
    assert doctor()[1]["file modes"][0]["state"] == "ok"


def test_a_locked_vault_and_its_fix(hub, doctor):
    assert doctor()[1]["vault"][0]["state"] == "warning", "none has been made yet"
    hub.ctl("vault", "unlock", "long-enough")
    hub.ctl("vault", "lock")
    code, found = doctor()
    [finding] = found["vault"]
    assert (code, finding["state"], finding["fix"]) == (1, "failed", "tokenhubctl vault unlock")
    assert hub.ctl(*finding["fix"].split()[1:], "long-enough").returncode == 0
    assert doctor()[0] == 0


def test_a_stale_token_is_named_and_the_next_source_used(hub, doctor):
    code, found = doctor(TOKENHUB_ADMIN_TOKEN="a-wrong-admin-token")
    states = [item["state"] for item in found["admin token"]]
    assert (code, states) == (0, ["warning", "ok"])
    assert "environment" in found["admin token"][0]["finding"]
    assert "a-wrong-admin-token" not in json.dumps(found)


def test_a_wrong_token_alone_is_a_failure(hub, doctor, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, found = doctor(HOME=str(elsewhere), TOKENHUB_ADMIN_TOKEN="a-wrong-admin-token")
    [finding] = found["admin token"]
    assert (code, finding["state"]) == (1, "failed")
    assert "tokenhubctl admin-token" in finding["fix"]


def test_a_provider_that_is_down(hub, doctor):
    hub.ok("POST", "/providers", {"id": "up", "type": "vllm", "base_url": "http://127.0.0.1:9"})
    hub.ok("POST", "/models", {"id": "m", "provider_id": "up"})
    key = hub.ok("POST", "/apikeys", {"name": "k"})["key"]
    for _ in range(6):
        hub.chat(key, {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    _, found = doctor()
    [finding] = found["provider health"]
    assert finding["state"] == "warning"
    assert finding["fix"] == "tokenhubctl provider-status up"
    assert hub.ctl(*finding["fix"].split()[1:]).returncode == 0


def test_no_model_is_enabled(hub, doctor):
    hub.ok("POST", "/providers", {"id": "up", "type": "vllm", "base_url": "http://127.0.0.1:9"})
    code, found = doctor()
    assert (code, found["models"][0]["state"]) == (1, "failed")


def test_a_server_that_is_down(hub, doctor):
    hub.stop()
    code, found = doctor()
    [finding] = found["server"]
    assert (code, finding["state"]) == (1, "failed")
    assert "tokenhub" in finding["fix"]
    assert found["file modes"][0]["state"] == "ok", "what needs no server is still checked"
    hub.start()
    assert doctor()[0] == 0
