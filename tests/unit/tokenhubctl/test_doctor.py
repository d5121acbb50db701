"""doctor: each thing that can be wrong is found, with its fix."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from tests.unit.tokenhubctl.answers import ANSWERS


@pytest.fixture(autouse=True)
def answers(peer):
    peer.answers.update(ANSWERS)
    peer.answers["GET /admin/v1/info"] = {
        "version": "0.1.0", "vault_locked": False, "vault_initialized": True,
    }  # fmt: skip
    peer.answers["GET /admin/v1/health"] = {"providers": []}


@pytest.fixture
def findings(ctl):
    def run(*words):
        ran = ctl("doctor", "-o", "json", *words)
        found = {item["check"]: item for item in json.loads(ran.out)}
        return ran.code, found

    return run


def test_all_is_well(findings):
    code, found = findings()
    assert code == 0
    assert {item["state"] for item in found.values()} <= {"ok", "warning"}
    assert {"url", "server", "clock", "admin token", "version", "vault", "models"} <= set(found)


def test_no_server(findings):
    code, found = findings("--url", "http://127.0.0.1:9")
    assert code == 1
    assert found["server"]["state"] == "failed"
    assert "tokenhub" in found["server"]["fix"]


@pytest.mark.parametrize(
    "answer", [(404, b"<h1>nginx</h1>"), (200, b"welcome"), (200, {}), (200, []), (200, b"")]
)
def test_something_else_at_that_address(findings, peer, answer):
    """Its word on a token says nothing, so the token is not the thing to mend."""
    peer.answers["GET /healthz"] = answer
    code, found = findings()
    assert (code, found["server"]["state"]) == (1, "failed")
    assert "no TokenHub" in found["server"]["finding"]
    assert "TOKENHUB_URL" in found["server"]["fix"]
    assert "admin token" not in found
    assert [call.target for call in peer.calls] == ["/healthz"]


def test_no_url(findings):
    code, found = findings("--url", "nonsense")
    assert (code, found["url"]["state"]) == (1, "failed")


def test_a_wrong_token(findings, peer):
    peer.token = "another"
    code, found = findings()
    assert (code, found["admin token"]["state"]) == (1, "failed")
    assert "environment variable" in found["admin token"]["finding"]


@pytest.mark.parametrize(
    ("info", "check", "state", "fix"),
    [
        ({"vault_locked": True, "vault_initialized": True}, "vault", "failed", "vault unlock"),
        ({"vault_initialized": False}, "vault", "warning", "creates it"),
        ({"version": "0.1.0"}, "vault", "warning", ""),
        ({"version": "9.9"}, "version", "warning", "make install"),
    ],
)
def test_what_the_server_says_of_itself(findings, peer, info, check, state, fix):
    peer.answers["GET /admin/v1/info"] = info
    code, found = findings()
    assert code == (1 if state == "failed" else 0)
    assert found[check]["state"] == state
    assert fix in found[check]["fix"]


def test_no_provider_and_no_model(findings, peer):
    built_in = {"id": "demo", "type": "demo", "source": "runtime"}
    peer.answers["GET /admin/v1/providers"] = {"items": [built_in]}
    peer.answers["GET /admin/v1/engine/models"] = {"models": [{"id": "m", "enabled": False}]}
    code, found = findings()
    assert code == 1
    assert (found["providers"]["state"], found["models"]["state"]) == ("warning", "failed")


def test_a_provider_that_is_down(findings, peer):
    peer.answers["GET /admin/v1/health"] = ANSWERS["GET /admin/v1/health"]
    _, found = findings()
    assert found["provider health"]["fix"] == "tokenhubctl provider-status local"


def test_a_provider_that_a_probe_found_down(findings, peer):
    probed = {"provider_id": "p", "state": "down", "last_error": "", "last_probe_error": "refused"}
    peer.answers["GET /admin/v1/health"] = {"providers": [probed]}
    assert findings()[1]["provider health"]["finding"] == "p is down: refused"


def test_a_check_the_server_cannot_answer_is_a_warning(findings, peer):
    del peer.answers["GET /admin/v1/health"]
    code, found = findings()
    assert (code, found["provider health"]["state"]) == (0, "warning")


def test_files_others_can_read(findings, home):
    data = home / ".tokenhub"
    data.mkdir(mode=0o700)
    (data / ".admin-token").write_text("x")
    (data / ".admin-token").chmod(0o644)
    code, found = findings()
    assert (code, found["file modes"]["state"]) == (1, "failed")
    assert found["file modes"]["fix"] == f"chmod 600 {data}/.admin-token"
    (data / ".admin-token").chmod(0o600)
    assert findings()[1]["file modes"]["state"] == "ok"


def test_a_folder_nobody_lets_us_into(findings, home, monkeypatch):
    data = home / ".tokenhub"
    data.mkdir()
    look = Path.iterdir

    def refused(path):
        # Root is let in everywhere, and another user's rights would be those of all threads.
        if path == data:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    code, found = findings()
    assert (code, found["file modes"]["state"]) == (1, "failed")
    assert f"cannot look into {data} (Permission denied)" in found["file modes"]["finding"]


def test_a_clock_that_is_off(findings, peer):
    def serve(handler):
        handler.send_response_only(200)
        handler.send_header("Date", "Sun, 01 Mar 2020 10:00:00 GMT")
        body = json.dumps(ANSWERS["GET /healthz"]).encode()
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    peer.answers["GET /healthz"] = serve
    assert findings()[1]["clock"]["state"] == "warning"
