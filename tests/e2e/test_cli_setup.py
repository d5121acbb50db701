"""The manual's commands, as a person types them, against a real server."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.e2e.server import BIN, Hub
from tests.unit.tokenhubctl.terminal import Terminal

PROVIDER = """provider add '{
  "id": "openai",
  "type": "openai",
  "base_url": "https://api.openai.com",
  "api_key": "sk-..."
}'"""
MODEL = """model add '{
  "id": "gpt-4o",
  "provider_id": "openai",
  "weight": 8,
  "max_context_tokens": 128000,
  "input_per_1k": 0.0025,
  "output_per_1k": 0.01,
  "enabled": true
}'"""
KEY = (
    r"""apikey create '{"name":"prod-app","scopes":"[\"chat\",\"plan\"]","""
    """"monthly_budget_usd":50.0}'"""
)

# Each line as in the manual, and what its output contains; <...> of the manual is filled in.
LINES = [
    ("version", "tokenhubctl "),
    ("help", "Usage: tokenhubctl"),
    ("status", "Vault initialized: no\n"),
    ("vault unlock long-enough", "Vault unlocked.\n"),
    (PROVIDER, "Provider saved.\n"),
    ("""provider edit openai '{"base_url":"https://api.openai.com"}'""", "Provider updated.\n"),
    ("provider list", "openai  openai  https://api.openai.com  vault  yes      0       store\n"),
    (MODEL, "Model saved.\n"),
    ("""model edit gpt-4o '{"weight": 9}'""", "Model updated.\n"),
    ("model disable gpt-4o", "Model gpt-4o disabled.\n"),
    ("model list", "gpt-4o  openai    9       128000   $0.0025  $0.01     no\n"),
    ("model enable gpt-4o", "Model gpt-4o enabled.\n"),
    (KEY, "  Key:     tokenhub_"),
    ("apikey list", "prod-app  tokenhub_"),
    ("engine models", "Models: 1\n"),
    ("vault rotate long-enough even-longer", "Vault password rotated.\n"),
    ("vault lock", "Vault locked.\n"),
    ("vault unlock even-longer", "Vault unlocked.\n"),
    ("model delete gpt-4o", "Model deleted.\n"),
    ("provider delete openai", "Provider deleted.\n"),
]


@pytest.fixture(scope="module", params=["pipe", "terminal"])
def shell(request, tmp_path_factory):
    """Runs a line through a shell; stdin, stdout and stderr are pipes, or one terminal."""
    home = tmp_path_factory.mktemp("home")
    hub = Hub(home).start()
    env = {"PATH": hub.env["PATH"], "HOME": str(home), "TOKENHUB_URL": hub.url, "TERM": "xterm"}

    def pipe(line):
        done = subprocess.run(
            ["/bin/bash", "-c", line], env=env, capture_output=True, text=True, timeout=60,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def terminal(line):
        screen = Terminal(["/bin/bash", "-c", line], env)
        return screen.end(), screen.seen, ""

    run = {"pipe": pipe, "terminal": terminal}[request.param]
    yield lambda line: run(f"tokenhubctl {line}")
    hub.stop()


def test_the_manual_line_by_line(shell):
    for line, expected in LINES:
        code, out, err = shell(line)
        assert (code, err.replace(NEW_VAULT, "")) == (0, ""), (line, out, err)
        assert expected in out, (line, out)
    query = "[?name=='prod-app'].id | [0]"
    key_id = shell(f'apikey list --query "{query}"')[1].strip()
    for line, expected in (
        (f"apikey edit {key_id} '{{\"monthly_budget_usd\":60}}'", "API key updated.\n"),
        (f"apikey rotate {key_id}", "  Key:     tokenhub_"),
        (f"apikey paid {key_id}", "afresh"),
        (f"apikey delete {key_id}", "API key deleted.\n"),
    ):
        code, out, err = shell(line)
        assert (code, err) == (0, ""), (line, out, err)
        assert expected in out


NEW_VAULT = "note: a new vault was created; nothing opens it but this password\n"


def test_the_token_lines_of_the_manual(tmp_path):
    hub = Hub(tmp_path).start()
    script = """
      set -e
      export TOKENHUB_ADMIN_TOKEN="$(tokenhubctl admin-token)"
      tokenhubctl status -o json
      tokenhubctl rotate-admin-token a-token-of-my-own-choice
      tokenhubctl status
      export TOKENHUB_ADMIN_TOKEN="$(env -u TOKENHUB_ADMIN_TOKEN tokenhubctl admin-token)"
      echo "$TOKENHUB_ADMIN_TOKEN"
      tokenhubctl rotate-admin-token --query token
    """
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "TOKENHUB_URL": hub.url}
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    try:
        lines = done.stdout.splitlines()
        assert lines[-2] == "a-token-of-my-own-choice"
        assert lines[-1] == hub.admin_token
        # After the first rotation the environment held the old token; the token file helped out.
        assert "the server refused the token from the environment variable" in done.stderr
        assert "a-token-of-my-own-choice" not in done.stderr
    finally:
        hub.stop()


IDS = [
    "Qwen/Qwen2.5-Coder-32B-Instruct", "a:b.c", "x%2Fy", "q?r#s", "so many spaces", "käse", "..",
    "'", "-dash",
]  # fmt: skip


def test_ids_of_every_shape_survive_the_way_there_and_back(hub):
    hub.ok("POST", "/providers", {"id": "up", "type": "vllm", "base_url": "http://127.0.0.1:9"})
    accepted = []
    for model_id in IDS:
        body = json.dumps({"id": model_id, "provider_id": "up"})
        added = hub.ctl("model", "add", "-", stdin=body)
        if added.returncode:
            assert added.stderr.startswith("error: "), added.stderr
            continue
        accepted.append(model_id)
        assert hub.ctl("model", "disable", model_id).returncode == 0
        got = hub.ctl("model", "get", model_id)
        assert got.returncode == 0, got.stderr
        shown = json.loads(got.stdout)
        assert (shown["id"], shown["enabled"]) == (model_id, False)
    names = hub.ctl("model", "list", "-o", "name").stdout.splitlines()
    assert sorted(names) == sorted(accepted)
    assert {"Qwen/Qwen2.5-Coder-32B-Instruct", "a:b.c"} <= set(accepted)
    for model_id in accepted:
        assert hub.ctl("model", "delete", model_id).returncode == 0
    assert hub.ctl("model", "delete", accepted[0]).returncode == 3


def test_exit_codes_by_class(hub):
    assert hub.ctl("vault", "unlock", "short").returncode == 4
    assert hub.ctl("vault", "unlock", "-", stdin="long-enough\n").returncode == 0
    wrong = hub.ctl("vault", "unlock", "another-password")
    assert (wrong.returncode, wrong.stdout) == (4, "")
    assert hub.ctl("vault", "lock").returncode == 0
    openai = '{"id":"o","type":"openai","base_url":"https://api.openai.com","api_key":"sk-x"}'
    locked = hub.ctl("provider", "add", openai)
    assert (locked.returncode, "tokenhubctl vault unlock" in locked.stderr) == (5, True)
    assert hub.ctl("model", "get", "nope").returncode == 3
    assert hub.ctl("model", "add", '{"id":"m","provider_id":"nope"}').returncode in {1, 3}
    refused = hub.ctl("status", env={"TOKENHUB_ADMIN_TOKEN": "wrong", "TOKENHUB_URL": hub.url})
    assert refused.returncode == 0, "the token file of this machine is the next source"
    assert hub.ctl("status", "--url", "http://127.0.0.1:9").returncode == 6


def test_model_test_with_the_demo_model(hub):
    ran = hub.ctl("model-test", "demo", "-", stdin=hub.demo_key)
    assert ran.returncode == 0, ran.stderr
    assert "Status:           200\n" in ran.stdout
    assert hub.ctl("model-test", "demo").returncode == 4
    assert hub.ctl("model-test", "nope", "-", stdin=hub.demo_key).returncode != 0
