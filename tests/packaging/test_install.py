from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.packaging.project import ROOT, UV, mode

ASK_BASH = """
source "$1"
COMP_WORDS=(tokenhubctl pro) COMP_CWORD=1
_tokenhubctl_completion tokenhubctl
echo "${COMPREPLY[@]}"
"""
PROGRAMS = ("tokenhub", "tokenhubctl")


class Home:
    """A HOME with a space in its name, and the installer working in it."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home = home
        self.wheel = wheel
        self.bin = home / ".local/bin"
        self.man = home / ".local/share/man/man1"
        self.share = home / ".local/share/tokenhub"

    def run(self, action, *words, umask=-1):
        command = [sys.executable, ROOT / "tools/install.py", action, *words]
        command += ["--bin-dir", self.bin, "--man-dir", self.man, "--share-dir", self.share]
        return subprocess.run(
            [str(part) for part in command],
            env=os.environ | {"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            umask=umask,
        )

    def install(self, lock=ROOT / "requirements/runtime.txt", umask=-1):
        sources = ("--uv", UV, "--wheel", self.wheel, "--lock", lock)
        return self.run("install", *sources, umask=umask)

    def releases(self):
        return sorted(self.share.glob("releases/*"))

    def files(self):
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    """Shared by the tests that only look."""
    home = Home(tmp_path_factory.mktemp("a home"), wheel)
    answer = home.install(umask=0o077)
    assert answer.returncode == 0, answer.stderr
    home.answer = answer
    return home


@pytest.fixture
def home(tmp_path, wheel):
    folder = tmp_path / "a home"
    folder.mkdir()
    return Home(folder, wheel)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_run_under_any_home(installed, program, tmp_path):
    for environment in ({}, {"HOME": str(tmp_path)}, {"HOME": "/nonexistent"}):
        answer = subprocess.run(
            [installed.bin / program, "--version"],
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.stdout.startswith(f"{program} "), answer.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_is_python_itself_and_no_version_manager_stands_between(installed, program):
    interpreter = installed.share.resolve() / "current/bin/python"
    assert "shims" not in str(interpreter.resolve())
    lines = (installed.bin / program).read_text().splitlines()[:2]
    python = str(installed.releases()[0] / "bin/python")
    # The second line is what a path with a space needs: the shell replaces itself by Python.
    assert lines[0] == f"#!{python}" or lines[1] == f"'''exec' '{python}' \"$0\" \"$@\""


def test_only_the_locked_packages_are_installed(installed):
    lock = (ROOT / "requirements/runtime.txt").read_text()
    pinned = {line.split()[0] for line in lock.splitlines() if line[0] not in " #"}
    found = {
        path.name.removesuffix(".dist-info").replace("_", "-").lower()
        for path in installed.releases()[0].glob("lib/python*/site-packages/*.dist-info")
    }
    ours = {name for name in found if name.startswith("tokenhub-")}
    assert len(ours) == 1
    assert found - ours == {pin.replace("==", "-") for pin in pinned}


def test_other_users_can_read_what_was_installed_with_a_closed_umask(installed):
    assert mode(installed.releases()[0] / "bin/tokenhub") & 0o055 == 0o055
    assert mode(installed.man / "tokenhub.1") == 0o644


def test_each_program_has_a_manual_page_with_its_version(installed):
    for program in PROGRAMS:
        page = (installed.man / f"{program}.1").read_text()
        assert page.startswith(f".TH {program.upper()} 1")
        assert "TOKENHUB_ADMIN_TOKEN" in page
    commands = (installed.man / "tokenhubctl.1").read_text()
    for command in ("vault rotate", "provider discover", "apikey create", "tsdb prune"):
        assert f".B {command}" in commands


def test_completions_are_there_for_three_shells(installed):
    share = installed.home / ".local/share"
    for path in (
        "bash-completion/completions/tokenhubctl",
        "zsh/site-functions/_tokenhubctl",
        "fish/vendor_completions.d/tokenhubctl.fish",
    ):
        assert "tokenhubctl" in (share / path).read_text()


def test_completion_in_bash_offers_commands(installed):
    script = installed.home / ".local/share/bash-completion/completions/tokenhubctl"
    answer = subprocess.run(
        ["bash", "-c", ASK_BASH, "bash", script],
        env={"PATH": f"{installed.bin}:/usr/bin:/bin", "HOME": str(installed.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "provider" in answer.stdout.split(), answer.stderr


def test_it_says_when_the_folder_is_not_on_the_path(installed):
    assert f"export PATH='{installed.bin}':$PATH" in installed.answer.stdout


def test_an_upgrade_swaps_releases_and_keeps_one_old(home):
    seen = []
    for _ in range(3):
        assert home.install().returncode == 0
        seen.append((home.share / "current").resolve())
    assert len(set(seen)) == 3
    assert home.releases() == seen[1:]


def test_a_failed_upgrade_leaves_the_old_release_in_use(home, tmp_path):
    assert home.install().returncode == 0
    before = home.files()
    lock = tmp_path / "changed.txt"
    text = (ROOT / "requirements/runtime.txt").read_text()
    lock.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", text))
    answer = home.install(lock=lock)
    assert answer.returncode == 1
    assert "hash" in answer.stderr.lower()
    assert home.files() == before


def test_uninstall_removes_what_install_put_there_and_nothing_else(home):
    (home.home / ".tokenhub").mkdir(parents=True)
    (home.home / ".tokenhub/tokenhub.sqlite").write_text("data")
    home.bin.mkdir(parents=True)
    (home.bin / "other").write_text("somebody else's")
    assert home.install().returncode == 0
    answer = home.run("uninstall")
    assert answer.returncode == 0, answer.stderr
    left = [name for name in home.files() if (home.home / name).is_file()]
    assert left == [".local/bin/other", ".tokenhub/tokenhub.sqlite"]


def test_uninstall_leaves_a_program_of_the_same_name_that_is_not_ours(home):
    home.bin.mkdir(parents=True)
    (home.bin / "tokenhub").write_text("somebody else's")
    assert home.run("uninstall").returncode == 0
    assert (home.bin / "tokenhub").read_text() == "somebody else's"


def test_the_installed_server_gets_signals_itself(installed, tmp_path):
    server = subprocess.Popen(
        [installed.bin / "tokenhub"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TOKENHUB_LISTEN_ADDR": "127.0.0.1:0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with server:
        lines = [server.stdout.readline() for _ in range(6)]
        assert "python" in Path(f"/proc/{server.pid}/exe").readlink().name, lines
        server.terminate()
        assert server.wait(30) == 0
