from __future__ import annotations

import re
import tomllib

from tests.packaging.project import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def phony_targets():
    rules = MAKEFILE.replace("\\\n", " ")
    return set(re.search(r"^\.PHONY:(.*)$", rules, re.MULTILINE)[1].split()) - {"FORCE"}


def test_help_is_the_default_and_lists_every_target_people_call(shell):
    answer = shell.make()
    assert answer.returncode == 0
    listed = set(re.findall(r"^  make (\S+) ", answer.stdout, re.MULTILINE))
    assert listed == phony_targets() - {"_build-native", "_build-container"}


def test_the_manuals_targets_exist():
    assert {"install", "build", "_write-env", "start", "stop", "status", "restart", "logs"} <= (
        phony_targets()
    )


def test_the_version_is_written_the_same_in_both_places():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = (ROOT / "src/tokenhub/__init__.py").read_text()
    assert f'__version__ = "{project["version"]}"' in source


def test_start_brings_the_container_up_then_syncs_its_token(shell):
    answer = shell.make("start")
    assert answer.returncode == 0, answer.stderr
    assert shell.calls() == [
        "info",
        "compose up --detach",
        "compose exec -T tokenhub cat /data/env",
    ]
    assert "TOKENHUB_ADMIN_TOKEN=0123456789abcdef" in (shell.home / ".tokenhub/env").read_text()
    assert "0123456789abcdef" not in answer.stdout + answer.stderr


def test_restart_takes_a_new_image_and_syncs_the_token(shell):
    assert shell.make("restart").returncode == 0
    assert "compose up --detach --force-recreate" in shell.calls()
    assert (shell.home / ".tokenhub/env").exists()


def test_stop_status_and_logs_are_compose_commands(shell):
    for target, call in {
        "stop": "compose down",
        "status": "compose ps",
        "logs": "compose logs --follow --tail 100",
    }.items():
        assert shell.make(target).returncode == 0
        assert shell.calls()[-1] == call


def test_stop_keeps_the_data_volume(shell):
    shell.make("stop")
    assert not any("--volumes" in call or " -v" in call for call in shell.calls())


def test_package_tags_the_version_and_latest(shell):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert shell.make("package").returncode == 0
    assert shell.calls()[-1] == f"build --tag tokenhub:{version} --tag tokenhub:latest ."


def test_without_an_engine_each_container_target_says_what_to_do(shell):
    for target in ("start", "stop", "restart", "status", "logs", "package"):
        answer = shell.make(target, STUB_INFO="1")
        assert answer.returncode != 0
        assert "make run" in answer.stderr
    assert set(shell.calls()) == {"info"}


def test_build_uses_the_container_when_an_engine_answers(shell):
    answer = shell.make("build")
    assert answer.returncode == 0, answer.stderr
    build = "build --target bundle --build-arg BUILD_PYTHONS=3.11 3.12 3.13"
    assert shell.calls() == ["info", f"{build} --output type=local,dest=bin ."]
    assert (shell.tree / "bin/tokenhub").exists()
    assert (shell.tree / "bin/tokenhubctl").exists()


def test_build_is_native_when_no_engine_answers(shell):
    answer = shell.make("--dry-run", "build", STUB_INFO="1")
    assert "tools/bundle.py" in answer.stdout
    assert not any(call.startswith("build") for call in shell.calls())


def test_locks_are_hash_pinned_and_name_no_address():
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        entries = [line for line in text.splitlines() if not line.startswith((" ", "#"))]
        assert entries
        assert all(re.match(r"[A-Za-z0-9._\[\]-]+==\S+", line) for line in entries), lock
        assert text.count("--hash=sha256:") >= len(entries)
        assert "://" not in text
        assert "index" not in text


def test_all_locks_agree_on_the_runtime_packages():
    def pins(name):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    runtime, build, dev = pins("runtime"), pins("build"), pins("dev")
    assert len(runtime) <= 20
    assert {name: dev.get(name) for name in runtime} == runtime
    assert {name: dev.get(name) for name in build} == build


def test_each_runtime_package_has_its_reason():
    decision = (ROOT / "docs/decisions/0002-runtime-dependencies.md").read_text()
    lock = (ROOT / "requirements/runtime.txt").read_text()
    names = re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)
    missing = [name for name in names if f"| {name} |" not in decision]
    assert not missing
