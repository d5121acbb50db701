"""Secrets by argument, stdin, file, environment and prompt; where they may show and where not."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.unit.tokenhubctl.answers import CHANGES
from tests.unit.tokenhubctl.peer import CTL, environment, reply
from tests.unit.tokenhubctl.terminal import Terminal

from tokenhubctl import __main__ as program

UNLOCK = "POST /admin/v1/vault/unlock"


@pytest.fixture(autouse=True)
def answers(peer):
    peer.answers.update(CHANGES)


@pytest.fixture
def terminal(peer, home):
    return lambda *args, **env: Terminal([str(CTL), *args], environment(peer, home) | env)


@pytest.mark.parametrize(
    "password", ["-x", "-o", "--", "-", "--help", "-hello", "--password=1", "@", "-1", "", "pä ss"]
)
def test_a_password_may_be_anything_from_stdin(ctl, peer, password):
    ran = ctl("vault", "unlock", "-", stdin=password.encode() + b"\n")
    if password:
        assert ran.out == "Vault unlocked.\n"
        assert peer.last.json == {"admin_password": password}
    else:
        assert (ran.code, peer.calls) == (2, [])


@pytest.mark.parametrize("password", ["-x", "-hello", "--password=1", "-1", "--unlock", "-oops"])
def test_a_password_that_begins_with_a_dash_works_as_it_is(ctl, peer, password):
    assert ctl("vault", "unlock", password).out == "Vault unlocked.\n"
    assert peer.last.json == {"admin_password": password}
    assert ctl("vault", "unlock", password, "-o", "json").code == 0
    assert peer.last.json == {"admin_password": password}


def test_one_that_is_an_option_works_after_two_dashes(ctl, peer):
    assert ctl("vault", "rotate", "--", "-o", "--help").code == 0
    assert peer.last.json == {"old_password": "-o", "new_password": "--help"}


def test_options_and_dashes_mix(ctl, peer):
    line = ["vault", "rotate", "--timeout=9", "-old", "-o", "json", "--new"]
    assert ctl(*line).code == 0
    assert peer.last.json == {"old_password": "-old", "new_password": "--new"}
    assert ctl("rotate-admin-token", "-token-of-16-chars").code == 0
    assert peer.last.json == {"token": "-token-of-16-chars"}


def test_a_surplus_word_is_refused_without_repeating_it(ctl, peer):
    ran = ctl("vault", "unlock", "correct", "horse")
    assert (ran.code, peer.calls) == (2, [])
    assert "horse" not in ran.err
    assert "2 were given" in ran.err


def test_only_one_line_break_is_dropped(ctl, peer):
    ctl("vault", "secret", "set", "a", "-", stdin=b"line 1\nline 2\n\n")
    assert peer.last.json == {"value": "line 1\nline 2\n"}


def test_a_file(ctl, peer, tmp_path):
    (tmp_path / "pw").write_text("from file\r\n")
    assert ctl("vault", "unlock", f"@{tmp_path}/pw").code == 0
    assert peer.last.json == {"admin_password": "from file"}


def test_a_literal_at_sign(ctl, peer):
    assert ctl("vault", "unlock", "\\@dmin").code == 0
    assert peer.last.json == {"admin_password": "@dmin"}


@pytest.mark.parametrize("name", ["missing", "", "binary"])
def test_a_file_that_cannot_be_used(ctl, peer, tmp_path, name):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    ran = ctl("vault", "unlock", f"@{tmp_path}/{name}")
    assert (ran.code, peer.calls) == (2, [])
    assert str(tmp_path) in ran.err


def test_the_environment(ctl, peer, monkeypatch):
    monkeypatch.setenv("TOKENHUB_VAULT_PASSWORD", "from env")
    assert ctl("vault", "unlock").code == 0
    assert peer.last.json == {"admin_password": "from env"}
    ctl("vault", "rotate", stdin=b"")
    assert len(peer.calls) == 1, "the new password must not come from the environment"


def test_both_passwords_from_two_lines(ctl, peer):
    assert ctl("vault", "rotate", "-", "-", stdin=b"old one\nnew one\n").code == 0
    assert peer.last.json == {"old_password": "old one", "new_password": "new one"}
    assert ctl("vault", "rotate", "-", "-", stdin=b"only one\n").code == 2


def test_without_a_terminal_a_missing_secret_is_an_error_and_not_a_prompt(spawn, peer):
    ran = spawn("vault", "unlock")
    assert (ran.code, ran.out, peer.calls) == (2, "", [])
    assert "`@file`" in ran.err


def test_a_prompt_does_not_echo(terminal, peer):
    screen = terminal("vault", "unlock")
    screen.until("Vault password: ")
    screen.type("-typed secret\n")
    assert screen.end() == 0
    assert "typed secret" not in screen.seen
    assert "Vault unlocked." in screen.seen
    assert peer.last.json == {"admin_password": "-typed secret"}


def test_a_new_password_is_asked_for_twice(terminal, peer):
    screen = terminal("vault", "rotate")
    for prompt, text in (("Old vault p", "a"), ("New vault password: ", "b"), ("again: ", "c")):
        screen.until(prompt)
        screen.type(f"{text}\n")
    assert screen.end() == 2
    assert "differ" in screen.seen
    assert peer.calls == []


def test_ctrl_c_at_a_prompt(terminal, peer):
    screen = terminal("vault", "unlock")
    screen.until("Vault password: ")
    screen.type("\x03")
    assert screen.end() == 130
    assert "Traceback" not in screen.seen
    assert peer.calls == []


def test_on_a_terminal_the_argument_works_with_one_note(terminal):
    screen = terminal("vault", "unlock", "in argv")
    assert screen.end() == 0
    assert screen.seen.count("note: ") == 1
    assert "history" in screen.seen
    assert "Vault unlocked." in screen.seen


def test_nothing_of_a_secret_from_stdin_is_in_the_process_list(peer, home):
    asked = threading.Event()

    def slow(handler):
        asked.set()
        time.sleep(0.3)
        reply(handler, 200, {"ok": True})

    peer.answers[UNLOCK] = slow
    process = subprocess.Popen(
        [CTL, "vault", "unlock", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(peer, home),
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"very secret\n")
    process.stdin.close()
    assert asked.wait(10)
    places = [Path(f"/proc/{process.pid}/{name}") for name in ("cmdline", "environ")]
    seen = b"".join(place.read_bytes() for place in places)
    assert process.wait(10) == 0
    assert process.stdout is not None
    assert process.stdout.read() == b"Vault unlocked.\n"
    process.stdout.close()
    assert b"very secret" not in seen
    assert peer.last.json == {"admin_password": "very secret"}


def test_debug_shows_no_secret(ctl, peer):
    ran = ctl("apikey", "create", '{"name":"x"}', "--debug")
    assert "POST" in ran.err
    assert "request id req-7" in ran.err
    for secret in (os.environ["TOKENHUB_ADMIN_TOKEN"], "tokenhub_0123"):
        assert secret not in ran.err
    assert ran.out.count("tokenhub_0123") == 1


def test_admin_token_order(peer, home, monkeypatch, capsys):
    monkeypatch.setenv("TOKENHUB_URL", peer.url)
    data = home / ".tokenhub"
    data.mkdir()
    docker = home / "bin"
    docker.mkdir()
    program_file = docker / "docker"
    program_file.write_text('#!/bin/sh\n[ "$2" = tokenhub ] && echo "$* token"\nexit 0\n')
    program_file.chmod(0o755)

    def token() -> str:
        assert program.run(["admin-token"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    monkeypatch.setenv("PATH", str(docker))
    (data / "env").write_text("TOKENHUB_ADMIN_TOKEN=from-env-file\n")
    assert token() == "exec tokenhub cat /data/.admin-token token\n"
    monkeypatch.setenv("PATH", str(home))
    assert token() == "from-env-file\n"
    (data / ".admin-token").write_text("from-file\n")
    assert token() == "from-file\n"
    monkeypatch.setenv("TOKENHUB_ADMIN_TOKEN", "from-environment")
    assert token() == "from-environment\n"


def test_no_admin_token_anywhere(home, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(home))
    assert program.run(["admin-token"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert ".admin-token" in err


def test_a_token_file_that_is_there_is_not_said_to_be_absent(home, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(home))
    file = home / ".tokenhub" / ".admin-token"
    file.mkdir(parents=True)
    for said in ("cannot be read (Is a directory)", "is empty", "is not UTF-8 text"):
        assert program.run(["admin-token"]) == 4
        assert f"{file} {said}" in capsys.readouterr().err
        if file.is_dir():
            file.rmdir()
        file.write_bytes(b"\xff" if file.is_file() else b"")


def test_model_test_never_sends_the_admin_token(ctl, peer, monkeypatch):
    ran = ctl("model-test", "gpt-4o")
    assert (ran.code, peer.calls) == (4, [])
    assert "apikey create" in ran.err
    peer.answers["POST /v1/chat/completions"] = {
        "model": "gpt-4o-2026", "choices": [{"message": {"content": "pong"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }  # fmt: skip
    monkeypatch.setenv("TOKENHUB_API_KEY", "tokenhub_client")
    ran = ctl("model-test", "gpt-4o")
    assert ran.code == 0
    assert "Response:         pong\nTokens:           in=9 out=1\n" in ran.out
    assert peer.last.headers["authorization"] == "Bearer tokenhub_client"
    assert ctl("model-test", "gpt-4o", "-", stdin=b"tokenhub_other\n").code == 0
    assert peer.last.headers["authorization"] == "Bearer tokenhub_other"


@pytest.mark.parametrize(("status", "code"), [(401, 4), (404, 3), (429, 1), (502, 1), (503, 1)])
def test_model_test_fails_by_class(ctl, peer, status, code):
    error = {"error": {"message": "no", "code": "x", "type": "t"}}
    peer.answers["POST /v1/chat/completions"] = (status, error)
    assert ctl("model-test", "m", "tokenhub_k").code == code


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"reasoning_content": "x" * 90}, f"[reasoning] {'x' * 77}..."),
        ({"content": ""}, "(empty)"),
        ({"content": "\x1b[31m"}, "\\x1b[31m"),
    ],
)
def test_model_test_shows_unusual_answers(ctl, peer, message, shown):
    peer.answers["POST /v1/chat/completions"] = {"choices": [{"message": message}]}
    assert f"Response:         {shown}\n" in ctl("model-test", "m", "tokenhub_k").out
