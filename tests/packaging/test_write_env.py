from __future__ import annotations

import sys

import pytest
from tests.packaging.project import mode

TOKEN = "TOKENHUB_ADMIN_TOKEN=0123456789abcdef\n"


@pytest.fixture
def write_env(shell):
    def run(*words, **variables):
        command = (sys.executable, "tools/write_env.py", "--pause", "0", *words)
        return shell.run(*command, umask=0, **variables)

    return run


@pytest.fixture
def env_file(shell):
    return shell.home / ".tokenhub" / "env"


def test_the_make_target_writes_the_url_and_what_the_container_has(shell, env_file):
    answer = shell.make("_write-env")
    assert answer.returncode == 0, answer.stderr
    assert env_file.read_text() == "TOKENHUB_URL=http://localhost:8080\n" + TOKEN
    assert answer.stdout == f"wrote {env_file}\n"


def test_the_port_of_the_container_is_in_the_url(write_env, env_file):
    write_env(TOKENHUB_PORT="9090")
    assert env_file.read_text().startswith("TOKENHUB_URL=http://localhost:9090\n")


def test_file_and_folder_are_private_whatever_the_umask(write_env, env_file):
    write_env()
    assert mode(env_file) == 0o600
    assert mode(env_file.parent) == 0o700


def test_an_old_file_is_replaced_not_written_into(write_env, env_file):
    env_file.parent.mkdir(mode=0o700)
    env_file.write_text("old")
    env_file.chmod(0o644)
    with env_file.open() as old:
        write_env()
        assert old.read() == "old"
    assert mode(env_file) == 0o600
    assert [path.name for path in env_file.parent.iterdir()] == ["env"]


def test_without_docker_it_says_so_at_once(write_env, env_file, tmp_path):
    answer = write_env(PATH=str(tmp_path))
    assert answer.returncode == 1
    assert "there is no docker here" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not env_file.exists()


def test_a_symbolic_link_is_refused_and_its_target_untouched(write_env, env_file, tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    env_file.parent.mkdir(mode=0o700)
    env_file.symlink_to(target)
    answer = write_env()
    assert answer.returncode == 1
    assert "symbolic link" in answer.stderr
    assert target.read_text() == "precious"
    assert env_file.is_symlink()


def test_a_linked_folder_is_refused(write_env, env_file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    env_file.parent.symlink_to(elsewhere)
    answer = write_env()
    assert answer.returncode == 1
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused(write_env, env_file):
    env_file.parent.mkdir()
    env_file.parent.chmod(0o777)
    answer = write_env()
    assert answer.returncode == 1
    assert "chmod 700" in answer.stderr
    assert not env_file.exists()


def test_a_container_that_is_slow_to_start_is_waited_for(write_env, env_file):
    answer = write_env(STUB_LATE="29")
    assert answer.returncode == 0
    assert answer.stderr == "no token yet; asking the container 29 times more\n"
    assert env_file.exists()


def test_after_thirty_tries_it_warns_and_leaves_the_file_alone(shell, write_env, env_file):
    env_file.parent.mkdir(mode=0o700)
    env_file.write_text("old")
    answer = write_env(STUB_LATE="30")
    assert answer.returncode == 0
    assert "warning" in answer.stderr
    assert env_file.read_text() == "old"
    assert shell.calls().count("compose exec -T tokenhub cat /data/env") == 30


def test_without_compose_the_container_is_asked_by_its_name(write_env, env_file):
    write_env(STUB_NO_COMPOSE="1")
    assert TOKEN in env_file.read_text()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "TOKENHUB_API_KEY=abc\n",
        TOKEN + "PATH=/evil\n",
        TOKEN + "rm -rf ~\n",
        "TOKENHUB_ADMIN_TOKEN=\n",
        "TOKENHUB_ADMIN_TOKEN=a b\n",
        "<html>not an env file</html>\n",
    ],
)
def test_what_is_not_a_list_of_settings_is_never_written(shell, write_env, env_file, content):
    shell.container_env.write_text(content)
    answer = write_env("--tries", "1")
    assert answer.returncode == 0
    assert "warning" in answer.stderr
    assert not env_file.exists()


def test_all_settings_of_the_container_come_along(shell, write_env, env_file):
    shell.container_env.write_text(TOKEN + "\nTOKENHUB_API_KEY=tokenhub_abc\n")
    answer = write_env()
    assert "TOKENHUB_API_KEY=tokenhub_abc\n" in env_file.read_text()
    assert "tokenhub_abc" not in answer.stdout + answer.stderr
