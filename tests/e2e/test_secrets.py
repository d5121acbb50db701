"""No secret is found in data files, logs or command output after a run through every command."""

from __future__ import annotations

import base64
import json

from tests.e2e.server import Hub

PROVIDER_KEY = "sk-canary-provider-0123456789abcdef"
PASSWORD = "canary password of the vault"
NEW_PASSWORD = "canary password, the second one"
SECRET = "canary-generic-secret-value-42"
PROMPT = "canary prompt about a purple elephant"


def forms(secret):
    raw = secret.encode()
    return {
        raw,
        raw.hex().encode(),
        base64.b64encode(raw).rstrip(b"="),
        secret.encode("utf-16-le"),
        json.dumps(secret).strip('"').encode(),
    }


def test_canaries(tmp_path, upstream):
    hub = Hub(tmp_path, TOKENHUB_LOG_LEVEL="debug").start()
    said = ""
    try:

        def ctl(*args, stdin=None):
            nonlocal said
            done = hub.ctl(*args, stdin=stdin)
            said += done.stdout + done.stderr
            return done

        assert ctl("vault", "unlock", "-", stdin=PASSWORD).returncode == 0
        row = {"id": "p", "type": "openai", "base_url": upstream, "api_key": PROVIDER_KEY}
        assert ctl("provider", "add", "-", stdin=json.dumps(row)).returncode == 0
        model = {"id": "m", "provider_id": "p", "upstream_name": "demo"}
        assert ctl("model", "add", json.dumps(model)).returncode == 0
        assert ctl("vault", "secret", "set", "name", "-", stdin=SECRET).returncode == 0
        key = hub.ok("POST", "/apikeys", {"name": "app"})["key"]
        token = hub.admin_token
        for body in (
            {"model": "m", "messages": [{"role": "user", "content": PROMPT}]},
            {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "stream": True},
            {"model": "m", "messages": [{"role": "user", "content": PROMPT}],
             "demo": {"status": 400}},
        ):  # fmt: skip
            hub.chat(key, body)
        hub.chat(PROVIDER_KEY, {"model": "m", "messages": []})
        rotate = ["vault", "rotate", "@" + str(tmp_path / "old"), "@" + str(tmp_path / "new")]
        (tmp_path / "old").write_text(PASSWORD)
        (tmp_path / "new").write_text(NEW_PASSWORD)
        assert ctl(*rotate).returncode == 0
        (tmp_path / "old").unlink()
        (tmp_path / "new").unlink()
        for command in (
            "status", "health", "provider list", "provider discover p", "provider edit p {}",
            "model list", "model disable m", "model enable m", "apikey list", "routing get",
            "logs", "audit", "rewards", "engine models", "budget", "spend", "vault status",
            "vault secret list", "provider-status p", "vault lock", "doctor",
            "-o json provider list", "-o yaml apikey list", "logs -o json", "audit -o json",
        ):  # fmt: skip
            ctl(*command.split())
        new_token = hub.ok("POST", "/admin-token/rotate", {})["token"]
        ctl("status")
    finally:
        hub.stop()
    haystacks = {"command output": said.encode(), "server log": hub.log.read_bytes()}
    for file in hub.data.iterdir():
        haystacks[file.name] = file.read_bytes()
    secrets = {
        "provider key": PROVIDER_KEY,
        "password": PASSWORD,
        "new password": NEW_PASSWORD,
        "secret": SECRET,
        "prompt": PROMPT,
        "client key": key,
        "old admin token": token,
        "admin token": new_token,
    }
    homes = {"admin token": {".admin-token", "env"}}
    for name, secret in secrets.items():
        for place, hay in haystacks.items():
            if place in homes.get(name, ()):
                continue
            for form in forms(secret):
                assert form not in hay, f"the {name} stands in {place}"
