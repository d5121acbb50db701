"""The command line, in this process or in one of its own, against a peer with fixed answers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from tests.unit.tokenhubctl.peer import CTL, TOKEN, Peer, Ran, environment

from tokenhubctl import __main__ as program


@pytest.fixture(autouse=True)
def ctrl_c():
    """A program started here can be interrupted, even when the tests run in the background.

    A background job ignores SIGINT, and what it starts inherits that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def peer():
    server = Peer()
    yield server
    server.stop()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and an environment without any setting of ours."""
    for name in list(os.environ):
        if name.startswith("TOKENHUB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("TZ", "UTC")
    return tmp_path


@pytest.fixture
def ctl(peer, home, monkeypatch, capsysbinary):
    """Run the command line in this process, as ``ctl("model", "list")``; stdin is a closed pipe."""
    monkeypatch.setenv("TOKENHUB_URL", peer.url)
    monkeypatch.setenv("TOKENHUB_ADMIN_TOKEN", TOKEN)

    def run(*args: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = program.run(list(args))
        out, err = capsysbinary.readouterr()
        return Ran(code, out.decode(), err.decode())

    return run


@pytest.fixture
def spawn(peer, home):
    """Run the installed program in a process of its own."""

    def run(*args: str | bytes, stdin: bytes = b"", **env: str) -> Ran:
        done = subprocess.run(
            [CTL, *args], input=stdin, capture_output=True, env=environment(peer, home) | env,
            timeout=30, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
