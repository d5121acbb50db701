"""The manual, line by line and verbatim, through a pipe and through a terminal.

One server, real traffic, every command of the manual in an order in which a person could type
them. Only host names, passwords, ids and tokens are filled in. Nobody types an answer: a prompt
would stand in the way until the time is up.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading

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
DEFAULTS = (
    """routing set '{"default_mode":"cheap","default_max_budget_usd":0.02,"""
    """"default_max_latency_ms":10000}'"""
)
QWEN = "Qwen/Qwen2.5-Coder-32B-Instruct"
QUERY = "metric=latency&model_id=gpt-4o&step_ms=60000"

# Each line as in the manual, and what its output contains.
BEFORE = [
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
    (f"""model add '{{"id": "{QWEN}", "provider_id": "openai"}}'""", "Model saved.\n"),
    (f"model disable {QWEN}", f"Model {QWEN} disabled.\n"),
    (f"model enable {QWEN}", f"Model {QWEN} enabled.\n"),
    (f"""model edit {QWEN} '{{"weight": 1}}'""", "Model updated.\n"),
    (f"model delete {QWEN}", "Model deleted.\n"),
    ("engine models", "Models: 1\n"),
    ("apikey list", "prod-app  tokenhub_"),
]
WITH_TRAFFIC = [
    ("provider discover openai", "MODEL ID"),
    ("discover openai", "MODEL ID"),
    ("status", "Models:           1\n"),
    ("health", "PROVIDER  STATE    CONSEC_ERR  AVG LATENCY  LAST SUCCESS"),
    ("logs", "gpt-4o  openai"),
    ("logs --limit 1", "gpt-4o"),
    ("audit", "provider.upsert"),
    ("audit --limit 1", "model.patch"),
    ("rewards", '"reward": 0.'),
    ("rewards --limit 1", '"success": '),
    ("stats", '"request_count": '),
    ("engine models", "gpt-4o  openai"),
    ("routing get", '"default_mode": "normal"'),
    (DEFAULTS, "Routing configuration saved.\n"),
    ("""simulate '{"mode":"cheap","token_count":500}'""", '"model_id": "gpt-4o"'),
    (
        """simulate '{"mode":"high_confidence","token_count":2000,"max_budget_usd":0.10}'""",
        '"model_id": "gpt-4o"',
    ),
    ("tsdb metrics", '"latency"'),
    (f"tsdb query '{QUERY}'", '"gpt-4o"'),
    ("tsdb query metric=latency model_id=gpt-4o step_ms=60000", '"gpt-4o"'),
    ("tsdb prune", '"deleted"'),
]
AFTER = [
    ("vault rotate long-enough even-longer", "Vault password rotated.\n"),
    ("vault lock", "Vault locked.\n"),
    ("vault unlock even-longer", "Vault unlocked.\n"),
    ("model delete gpt-4o", "Model deleted.\n"),
    ("provider delete openai", "Provider deleted.\n"),
]
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
NEW_VAULT = "note: a new vault was created; nothing opens it but this password\n"


class Shell:
    """Runs lines through bash; stdin, stdout and stderr are pipes, or one terminal."""

    def __init__(self, hub, kind):
        self.hub = hub
        self.kind = kind
        self.env = {
            "PATH": hub.env["PATH"], "HOME": str(hub.home), "TOKENHUB_URL": hub.url, "TERM": "xterm"
        }  # fmt: skip

    def __call__(self, line):
        """Exit code, stdout, stderr; on a terminal both are one."""
        argv = ["/bin/bash", "-c", line]
        if self.kind == "pipe":
            done = subprocess.run(
                argv, env=self.env, capture_output=True, text=True, timeout=60, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            return done.returncode, done.stdout, done.stderr
        screen = Terminal(argv, self.env)
        return screen.end(), screen.seen, ""

    def expect(self, lines):
        for line, expected in lines:
            code, out, err = self(f"tokenhubctl {line}")
            assert (code, err.replace(NEW_VAULT, "")) == (0, ""), (line, out, err)
            assert expected in out, (line, out)


@pytest.fixture(scope="module", params=["pipe", "terminal"])
def shell(request, tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("home")).start()
    yield Shell(hub, request.param)
    hub.stop()


def test_the_manual_line_by_line(shell, upstream):
    hub = shell.hub
    code, created, _ = shell(f"tokenhubctl {KEY}")
    assert code == 0
    key = created.partition("Key:")[2].split()[0]
    assert key.startswith("tokenhub_")
    assert "Save this key now" in created
    shell.expect(BEFORE)
    move(hub, upstream)
    for stream in (False, True, False):
        reply = hub.chat(key, HELLO | {"model": "gpt-4o", "stream": stream})
        assert reply.status == 200, reply.body
    shell.expect(WITH_TRAFFIC)
    key_id = shell("""tokenhubctl apikey list --query "[?name=='prod-app'].id | [0]" """)[1].strip()
    shell.expect(
        [
            (f"apikey edit {key_id} '{{\"monthly_budget_usd\":60}}'", "API key updated.\n"),
            (f"apikey rotate {key_id}", "  Key:     tokenhub_"),
            (f"apikey delete {key_id}", "API key deleted.\n"),
        ]
    )
    assert hub.chat(key, {"model": "gpt-4o", "messages": []}).status == 401
    shell.expect(AFTER)


def move(hub, upstream):
    """Replace the host name of the manual by one that answers here."""
    hub.ok("PATCH", "/providers/openai", {"base_url": upstream, "api_key": "sk-x"})
    hub.ok("PATCH", "/models/gpt-4o", {"upstream_name": "demo"})


def test_an_unquoted_query_ends_in_a_hint(shell):
    """A shell cuts the line at the ampersands and runs its first part in the background."""
    code, out, err = shell(f"tokenhubctl tsdb query {QUERY}\nwait")
    assert code == 0
    assert "only `metric` arrived" in out + err
    assert f"tokenhubctl tsdb query '{QUERY}'" in out + err


def test_events_until_ctrl_c(shell):
    hub, over = shell.hub, threading.Event()

    def talk():
        while not over.wait(0.05):
            hub.chat(hub.demo_key, HELLO | {"model": "demo"})

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        # A shell that runs no job control starts programs with Ctrl-C switched off.
        line = "exec timeout --foreground --preserve-status -s INT 3 tokenhubctl events"
        code, out, err = shell(line)
    finally:
        over.set()
        talking.join()
    assert code == 130, (out, err)
    assert "route_success  " in out
    assert "Traceback" not in out + err


def test_the_token_lines(tmp_path):
    hub = Hub(tmp_path).start()
    script = """
      set -e
      export TOKENHUB_ADMIN_TOKEN="$(tokenhubctl admin-token)"
      tokenhubctl status -o json
      tokenhubctl rotate-admin-token a-token-of-my-own-choice
      tokenhubctl status
      export TOKENHUB_ADMIN_TOKEN="$(env -u TOKENHUB_ADMIN_TOKEN tokenhubctl admin-token)"
      echo "$TOKENHUB_ADMIN_TOKEN"
      tokenhubctl rotate-admin-token
      tokenhubctl rotate-admin-token --query token
    """
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "TOKENHUB_URL": hub.url}
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    try:
        lines = done.stdout.splitlines()
        assert "a-token-of-my-own-choice" in lines
        assert lines[-1] == hub.admin_token
        # After the first rotation the environment held the old token; the token file helped out.
        assert "the server refused the token from the environment variable" in done.stderr
        assert "a-token-of-my-own-choice" not in done.stderr
    finally:
        hub.stop()


@pytest.mark.parametrize(
    ("line", "method", "path", "expected"),
    [
        (PROVIDER, "POST", "/providers", {"type": "openai", "base_url": "https://api.openai.com"}),
        (MODEL, "POST", "/models", {"weight": 8, "input_per_1k": 0.0025, "output_per_1k": 0.01}),
        (KEY, "POST", "/apikeys", {"name": "prod-app", "monthly_budget_usd": 50.0}),
    ],
)
def test_the_json_of_the_manual_byte_for_byte(hub, line, method, path, expected):
    """As the body of a request, through stdin and through a file: the same bytes, the same row."""
    assert hub.ctl("vault", "unlock", "long-enough").returncode == 0
    if path == "/models":
        hub.ok("POST", "/providers", {"id": "openai", "type": "openai"})
    command, text = line.split("'")[0].split(), line.split("'")[1]
    headers = {"Authorization": f"Bearer {hub.admin_token}"}
    reply = hub.request(method, "/admin/v1" + path, text.encode(), headers=headers)
    assert reply.status == 200, reply.body
    file = hub.home / "body.json"
    file.write_text(text)
    for source, stdin in (("-", text), (f"@{file}", None), (text, None)):
        assert hub.ctl(*command, source, stdin=stdin).returncode == 0
    listed = json.loads(hub.ctl(command[0], "list", "-o", "json").stdout)
    made = [row for row in listed if row.get("name") != "demo"]
    assert made
    for row in made:
        assert {name: row[name] for name in expected} == expected
