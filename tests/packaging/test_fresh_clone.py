"""The first command of the README, on a clone nobody has touched. It fetches packages."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.packaging.project import NOT_SOURCE, ROOT, mode
from tests.ports import free_port

FIRST_START_S = 240  # an empty cache and a slow line
SECOND_START_S = 10


class Clone:
    """A copy of the project in a path with a space, and a HOME with nothing in it."""

    def __init__(self, folder):
        self.tree = folder / "my clone"
        self.home = folder / "home"
        self.home.mkdir()
        shutil.copytree(ROOT, self.tree, ignore=NOT_SOURCE)
        self.port = free_port()
        kept = {name: text for name, text in os.environ.items() if not name.startswith("TOKENHUB_")}
        self.environment = {
            **kept,
            "HOME": str(self.home),
            "TOKENHUB_LISTEN_ADDR": f"127.0.0.1:{self.port}",
        }
        self.log = folder / "log"

    @contextlib.contextmanager
    def running(self, within):
        """`make run` from its start until its server answers; stopped as by a service manager."""
        with self.log.open("w") as log:
            make = subprocess.Popen(
                ["make", "run"],
                cwd=self.tree,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
            )
        try:
            self.wait_until_alive(make, time.monotonic() + within)
            yield
            os.killpg(make.pid, signal.SIGTERM)
            make.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(make.pid, signal.SIGKILL)
            make.wait()

    def wait_until_alive(self, make, deadline):
        while time.monotonic() < deadline:
            assert make.poll() is None, self.log.read_text()
            if self.alive():
                return
            time.sleep(0.05)
        pytest.fail(f"no answer in time:\n{self.log.read_text()}")

    def alive(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
        except OSError:
            return False
        finally:
            connection.close()
        return answer.status == 200


@pytest.mark.timeout(2 * FIRST_START_S)
def test_make_run_serves_from_nothing_and_again_at_once(tmp_path):
    clone = Clone(tmp_path)
    with clone.running(within=FIRST_START_S):
        data = clone.home / ".tokenhub"
        assert mode(data) == 0o700
        assert all(mode(path) == 0o600 for path in data.iterdir())
        printed = clone.log.read_text()
        assert "making .venv" in printed
        for secret in (".admin-token", ".demo-key"):
            assert (data / secret).read_text().strip() not in printed
    packages = clone.tree.glob(".venv/lib/python*/site-packages/pytest")
    assert not list(packages)
    with clone.running(within=SECOND_START_S):
        assert "making .venv" not in clone.log.read_text()
    program = clone.tree / ".venv/bin/tokenhubctl"
    answer = subprocess.run([program, "version"], capture_output=True, text=True, check=False)
    assert answer.stdout.startswith("tokenhubctl "), answer.stderr


@pytest.fixture
def built(tmp_path):
    """A copy of the project whose environment looks complete."""
    tree = tmp_path / "first"
    shutil.copytree(ROOT, tree, ignore=NOT_SOURCE)
    (tree / ".venv").mkdir()
    (tree / ".venv/.root").write_text(f"{tree}\n")
    (tree / ".venv/.python").write_text(f"{sys.executable}\n")
    for stamp in (".bootstrap", ".run", ".dev"):
        (tree / ".venv" / stamp).touch()
    return tree


def plan(folder, *words):
    environment = {name: text for name, text in os.environ.items() if name != "PYTHON"}
    command = ["make", "--dry-run", "run", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_clone_that_was_moved_builds_its_environment_anew(built, tmp_path):
    assert "-m venv" not in plan(built)
    moved = built.rename(tmp_path / "second")
    assert "-m venv --clear" in plan(moved)


def test_another_python_builds_the_environment_anew(built):
    assert "-m venv" not in plan(built, f"PYTHON={sys.executable}")
    assert "-m venv --clear" in plan(built, f"PYTHON={sys._base_executable}")


def test_a_python_that_cannot_be_used_is_an_error(built):
    (built / ".venv/.python").unlink()
    command = ["make", "run", "PYTHON=/nowhere/python"]
    answer = subprocess.run(command, cwd=built, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "PYTHON=/nowhere/python does not run" in answer.stderr
