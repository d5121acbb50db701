"""What the README and the tutorial show works when it is typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest
from tests.e2e.server import Hub
from tests.packaging.project import ROOT
from tests.ports import free_port

from tokenhubctl.cli import root
from tokenhubctl.command import Verb
from tokenhubctl.session import Session

README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
MAKE = re.compile(r"^make .*$", re.MULTILINE)


def blocks(text):
    return re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)


def commands():
    """Every tokenhubctl command in a code block, as words."""
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        for block in blocks(page.read_text()):
            for line in re.findall(r"^tokenhubctl (?:[^'\n]|'[^']*')*", block, re.MULTILINE):
                words = shlex.split(re.split(r" <{1,2}| \| ", line)[0], comments=True)
                yield pytest.param(words[1:], id=line[:60])


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_parses(words, monkeypatch):
    """The command exists, its options and arguments fit, and its JSON is JSON."""
    parsed = []
    monkeypatch.setattr(Verb, "invoke", lambda verb, _: parsed.append(verb.name))
    root.main(words, "tokenhubctl", standalone_mode=False, obj=Session())
    assert parsed
    for word in words:
        if word.startswith("{"):
            json.loads(word)


def run(script, hub, **env):
    return subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        env=hub.env | {"TOKENHUB_URL": hub.url} | env, cwd=ROOT,
        capture_output=True, text=True, timeout=90, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path).start()
    yield server
    server.stop()


def here(text, hub):
    return MAKE.sub("", text).replace("localhost:8080", f"127.0.0.1:{hub.port}")


def test_the_readme_from_top_to_bottom(hub):
    """All but `make`, and the provider's own list, which wants the internet."""
    script = "\n".join(blocks(README))
    script = re.sub(r"^tokenhubctl provider discover.*$", "", here(script, hub), flags=re.MULTILINE)
    done = run(script, hub, TOKENHUB_VAULT_PASSWORD="long-enough")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Hello" in done.stdout
    assert "Model saved.\n" in done.stdout
    assert "  Key:     tokenhub_" in done.stdout


def test_the_tutorial_from_top_to_bottom(hub):
    """One shell; the second server runs in the background, and the key is the one just made."""
    port = free_port()
    script = here("\n".join(blocks(TUTORIAL)), hub).replace(":8999", f":{port}")
    start = f"tokenhub demo-provider --port {port} >/dev/null &\ntrap 'kill %1' EXIT\nsleep 1"
    script = script.replace("tokenhub demo-provider --port 8999", start)
    create = re.search(r"^tokenhubctl apikey create .*$", script, re.MULTILINE)[0]
    kept = f'made=$({create})\necho "$made"'
    key = "$(echo \"$made\" | sed -n 's/^  Key: *//p')"
    script = script.replace(create, kept).replace("tokenhub_...", key)
    done = run(script, hub, TOKENHUB_VAULT_PASSWORD="long-enough")
    assert done.returncode == 0, done.stderr + done.stdout
    answers = [line for line in done.stdout.splitlines() if "chat.completion" in line]
    assert len(answers) == 2
    for said in ("Provider saved.", "Model saved.", "Vault locked.", "Provider deleted."):
        assert said in done.stdout
