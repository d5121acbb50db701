from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from tests.packaging.project import ROOT, UV, mode

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def build(out, wheel, pythons=VERSION):
    command = [sys.executable, ROOT / "tools/bundle.py", "--uv", UV, "--wheel", wheel, "--out", out]
    command += ["--lock", ROOT / "requirements/runtime.txt", "--pythons", pythons]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def programs(tmp_path_factory, wheel):
    return build(tmp_path_factory.mktemp("a bin"), wheel)


@pytest.fixture
def run(tmp_path):
    """Runs a program with nothing in its environment but an empty HOME and this Python."""
    home, path = tmp_path / "home", tmp_path / "path"
    home.mkdir()
    path.mkdir()
    (path / "python3").symlink_to(sys._base_executable)

    def run(*command, **variables):
        environment = {"HOME": str(home), "PATH": str(path), "TMPDIR": str(tmp_path)}
        return subprocess.run(
            ["/usr/bin/env", *(str(part) for part in command)],
            env={**environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    run.home = home
    run.path = path
    return run


def cache(run):
    return run.home / ".cache" / "tokenhub"


def test_the_command_line_runs_under_an_empty_home_and_leaves_nothing_there(programs, run):
    answer = run(programs / "tokenhubctl", "version")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("tokenhubctl ")
    assert list(run.home.iterdir()) == []


def test_the_command_line_carries_all_it_imports(programs, run):
    # YAML and JMESPath are what is imported late.
    answer = run(programs / "tokenhubctl", "commands", "-o", "yaml", "--query", "[0]")
    assert answer.returncode == 0, answer.stderr
    assert "admin-token" in answer.stdout


def test_the_server_unpacks_itself_into_a_private_folder_once(programs, run):
    answer = run(programs / "tokenhub", "--version")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("tokenhub ")
    assert mode(cache(run)) == 0o700
    [folder] = cache(run).iterdir()
    assert mode(folder) == 0o700
    marker = folder / "marker"
    marker.touch()
    assert run(programs / "tokenhub", "--version").returncode == 0
    assert [path.name for path in cache(run).iterdir()] == [folder.name]
    assert marker.exists()


def test_the_compiled_packages_come_from_the_file(programs, run):
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--settings']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "import apsw, cryptography.hazmat.primitives.ciphers.aead, httptools, msgspec, uvloop\n"
        "print('FROM', apsw.__file__)\n"
    )
    answer = run(run.path / "python3", "-c", code, programs / "tokenhub")
    assert f"FROM {cache(run)}" in answer.stdout, answer.stderr


def test_a_cache_that_others_can_write_is_not_trusted(programs, run, tmp_path):
    cache(run).mkdir(parents=True)
    cache(run).chmod(0o777)
    answer = run(programs / "tokenhub", "--version")
    assert answer.returncode == 0, answer.stderr
    assert list(cache(run).iterdir()) == []
    assert mode(tmp_path / f"tokenhub-{os.geteuid()}") == 0o700


def test_a_linked_cache_is_not_followed(programs, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    cache(run).parent.mkdir()
    cache(run).symlink_to(elsewhere)
    assert run(programs / "tokenhub", "--version").returncode == 0
    assert list(elsewhere.iterdir()) == []


def test_with_no_private_folder_it_says_which_variable_names_one(programs, run, tmp_path):
    for place in (cache(run), tmp_path / f"tokenhub-{os.geteuid()}"):
        place.mkdir(parents=True)
        place.chmod(0o755)
    answer = run(programs / "tokenhub", "--version")
    assert answer.returncode == 1
    assert "TOKENHUB_CACHE_DIR" in answer.stderr
    named = tmp_path / "named"
    assert run(programs / "tokenhub", "--version", TOKENHUB_CACHE_DIR=str(named)).returncode == 0
    assert mode(named) == 0o700


def test_a_python_it_has_no_packages_for_is_named(programs, run, tmp_path):
    copy = tmp_path / "copy"
    with zipfile.ZipFile(programs / "tokenhub") as old, zipfile.ZipFile(copy, "w") as new:
        about = json.loads(old.read("bundle.json"))
        new.writestr("bundle.json", json.dumps(about | {"pythons": ["3.99"]}))
        new.writestr("__main__.py", old.read("__main__.py"))
    copy.chmod(0o755)
    answer = run(run.path / "python3", copy, "--version")
    assert answer.returncode == 1
    assert "3.99" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_same_sources_give_the_same_bytes(programs, tmp_path, wheel):
    again = build(tmp_path / "again", wheel)
    for name in ("tokenhub", "tokenhubctl"):
        assert (again / name).read_bytes() == (programs / name).read_bytes()


def test_the_single_file_opens_a_store_under_an_empty_home(programs, run):
    answer = run(programs / "tokenhub", "--check")
    assert answer.returncode == 0, answer.stderr
    assert (run.home / ".tokenhub" / "tokenhub.sqlite").exists()
