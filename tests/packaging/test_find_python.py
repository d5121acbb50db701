from __future__ import annotations

import subprocess
import sys

import pytest
from tests.packaging.project import ROOT


@pytest.fixture
def find(tmp_path):
    """Runs the finder with only these programs on PATH, name → shell text."""

    def run(programs, **variables):
        for name, text in programs.items():
            (tmp_path / name).write_text("#!/bin/sh\n" + text)
            (tmp_path / name).chmod(0o755)
        return subprocess.run(
            ["/bin/sh", str(ROOT / "tools/find-python")],
            env={"PATH": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


REAL = f'exec "{sys.executable}" "$@"\n'
SHIM = "echo 'the version is not selected' >&2; exit 127\n"
OLD = "exit 1\n"
NO_VENV = f'case "$2" in *ensurepip*) exit 1;; esac; exec "{sys.executable}" "$@"\n'


def test_a_name_that_cannot_run_is_passed_over(find):
    answer = find({"python3.13": SHIM, "python3.12": OLD, "python3": REAL})
    assert answer.stdout.strip() == sys.executable
    assert answer.stderr == ""


def test_the_newest_that_works_is_taken(find):
    answer = find({"python3.12": REAL, "python3": OLD})
    assert answer.stdout.strip() == sys.executable


def test_one_named_outright_comes_first(find, tmp_path):
    answer = find({"python3.13": OLD, "mine": REAL}, PYTHON=str(tmp_path / "mine"))
    assert answer.stdout.strip() == sys.executable


def test_no_other_is_taken_for_one_named_outright(find, tmp_path):
    answer = find({"python3.13": REAL, "mine": OLD}, PYTHON=str(tmp_path / "mine"))
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"PYTHON={tmp_path / 'mine'} does not run" in answer.stderr


def test_one_newer_than_the_suite_knows_is_better_than_none(find):
    answer = find({"python3": OLD, "python3.14": REAL})
    assert answer.stdout.strip() == sys.executable


def test_a_python_without_venv_is_said_to_need_it(find):
    answer = find({"python3": NO_VENV})
    assert answer.returncode == 1
    assert "python3-venv" in answer.stderr


def test_none_at_all_is_said_clearly(find):
    answer = find({"python3": OLD})
    assert answer.returncode == 1
    assert "Python 3.11 or newer" in answer.stderr
