"""The command tree: complete, lazy, documented, and the same in help, man page and code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from tests.unit.tokenhubctl.peer import CTL

import tokenhubctl
from tokenhubctl.cli import root
from tokenhubctl.command import Noun, Verb
from tokenhubctl.commands import LAZY, NAMES, SECTIONS, SYNONYMS, usage
from tokenhubctl.commands.help import tree

REPOSITORY = Path(__file__).parents[3]
LISTED = {synopsis: summary for _, lines in SECTIONS for synopsis, summary in lines}
FOUND = tree(click.Context(root, info_name="tokenhubctl", **root.context_settings))


def name_of(synopsis: str) -> str:
    return " ".join(word for word in synopsis.split() if word == word.lower())


def test_every_command_is_listed_and_every_listed_command_exists():
    assert sorted(map(name_of, LISTED)) == sorted(item["command"] for item in FOUND)


@pytest.mark.parametrize("item", FOUND, ids=lambda item: item["command"])
def test_the_listed_line_says_what_the_command_says(item):
    assert LISTED[item["usage"]] == item["help"]


@pytest.mark.parametrize("item", FOUND, ids=lambda item: item["command"])
def test_every_command_takes_the_common_options_and_documents_all_it_takes(item):
    ctx = click.Context(root, info_name="tokenhubctl", **root.context_settings)
    command = root
    for word in item["command"].split():
        command = command.get_command(ctx, word)
    names = {name for param in command.params for name in param.opts}
    assert {"-o", "--output", "--query", "--no-headers", "--url", "--timeout"} <= names
    assert all(param.help for param in command.params if isinstance(param, click.Option))


def test_every_command_is_a_verb_and_every_group_a_noun():
    for name in NAMES:
        command = root.get_command(click.Context(root), name)
        assert isinstance(command, Verb | Noun), name


@pytest.mark.parametrize("name", LAZY)
def test_help_of_every_command(ctl, peer, name):
    for option in ("-h", "--help"):
        ran = ctl(name, option)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"Usage: tokenhubctl {name} ")
    assert ctl("help", name).out == ran.out
    assert peer.calls == []


def test_help_of_a_verb(ctl):
    assert ctl("help", "vault", "secret", "set").out == ctl("vault", "secret", "set", "-h").out
    assert ctl("help", "model", "nope").code == 2
    assert "Did you mean" in ctl("help", "modle").err


@pytest.mark.parametrize("topic", ["environment", "exit-codes", "output", "arguments"])
def test_topics(ctl, topic):
    ran = ctl("help", topic)
    assert ran.code == 0
    assert len(ran.out) > 300
    assert max(map(len, ran.out.splitlines())) <= 100
    assert topic in usage()


def test_usage_fits_a_terminal_and_names_every_command():
    lines = usage().splitlines()
    assert max(map(len, lines)) <= 100
    for synopsis in LISTED:
        assert any(line.startswith(f"  {synopsis} ") for line in lines), synopsis


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"]])
def test_full_usage_on_stdout(ctl, words):
    assert ctl(*words) == (0, usage(), "")


def test_no_arguments_print_the_usage_on_stderr_and_fail(ctl):
    assert ctl() == (2, "", usage())


@pytest.mark.parametrize("words", [["version"], ["--version"], ["-v"]])
def test_version(ctl, words):
    assert ctl(*words) == (0, f"tokenhubctl {tokenhubctl.__version__}\n", "")


def test_version_as_json(ctl):
    assert ctl("version", "-o", "json").out == f'{{\n  "version": "{tokenhubctl.__version__}"\n}}\n'


def test_the_version_is_the_projects():
    declared = re.search(
        r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert declared is not None
    assert declared[1] == tokenhubctl.__version__


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["modle", "list"], "'model'"),
        (["model", "lits"], "'list'"),
        (["vault"], "unlock, lock, rotate, status, secret"),
        (["vault", "secret"], "list, get, set, delete"),
        (["tsdb"], "metrics, query, prune, retention"),
        (["model", "list", "surplus"], "unexpected extra argument (surplus)"),
        (["model", "get"], "Missing argument 'ID'"),
        (["logs", "--limit", "many"], "'many' is not a valid whole number"),
        (["logs", "--limit", "0"], "0 is not in the range x>=1"),
        (["logs", "--limit"], "requires an argument"),
        (["model", "list", "-o", "xml"], "'xml' is not one of"),
        (["model", "list", "--nope"], "No such option '--nope'"),
        (["logs", "--since", "yesterday"], "'yesterday' is not a time"),
        (["tsdb", "query", "latency"], "name=value"),
        (["tsdb", "retention", "0"], "not in the range"),
        (["budget", "adjust", "k", "1e5", "--reason", "x"], "'1e5' is not an amount"),
        (["budget", "adjust", "k", "1"], "--reason"),
        (["model", "get", ""], "empty"),
        (["model", "list", "--query", "[?"], "JMESPath"),
        (["--url", "nonsense", "status"], "--url is not a usable URL"),
        (["api", "GET", "admin"], "must start with /"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
)
def test_usage_errors_say_what_and_end_with_2(ctl, peer, words, said):
    peer.answers["GET /admin/v1/engine/models"] = {"models": [{"id": "m"}]}
    ran = ctl(*words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err, ran.err
    assert ran.err.startswith("error: ")


def imported(*words: str) -> set[str]:
    code = (
        "import sys; from tokenhubctl.__main__ import run\n"
        f"try: run({list(words)!r})\nexcept SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30,
        env={"TOKENHUB_URL": "http://127.0.0.1:9"},
    )  # fmt: skip
    return set(done.stderr.split())


def commands_in(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith("tokenhubctl.commands.")}


def test_version_and_help_import_neither_click_nor_a_command():
    for word in ("version", "help", "--help"):
        found = imported(word)
        assert "click" not in found
        assert not commands_in(found)


def test_a_command_imports_its_own_file_and_nothing_heavy():
    found = imported("model", "list")
    assert commands_in(found) == {"tokenhubctl.commands.model"}
    heavy = {"ssl", "http", "http.client", "email", "urllib.request", "yaml", "jmespath", "csv"}
    assert not found & heavy
    assert not {name for name in found if name.split(".")[0] == "tokenhub"}


def test_synonyms_are_the_same_command():
    for synonym, name in SYNONYMS.items():
        assert LAZY[synonym] == LAZY[name]


def test_a_closed_pipe_ends_quietly(home):
    done = subprocess.run(
        ["/bin/bash", "-c", '"$0" commands | head -n 1; echo ${PIPESTATUS[0]}', str(CTL)],
        capture_output=True, text=True, check=True, timeout=30, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


def in_bash(line, home):
    """Exit code and stderr of a line in which ``$0`` is the program."""
    done = subprocess.run(
        ["/bin/bash", "-c", line, str(CTL)], capture_output=True, text=True, check=False,
        timeout=30, env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", ["version", "commands", "help", "completion bash"])
def test_a_full_disk_is_an_error_and_no_traceback(home, words):
    said = "error: The output was not written: No space left on device.\n"
    assert in_bash(f'"$0" {words} >/dev/full', home) == (1, said)


@pytest.mark.parametrize("words", ["version", "commands", "help"])
def test_nobody_has_to_want_the_output(home, words):
    assert in_bash(f'"$0" {words} >&-', home) == (0, "")
