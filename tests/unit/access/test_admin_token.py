"""The admin token: where it comes from, how it is rotated, and that a crash locks nobody out."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import stat

import pytest

from tokenhub.access.admin_token import AdminToken
from tokenhub.core.errors import InvalidRequest
from tokenhub.storage.database import StorageRefused
from tokenhub.storage.files import DataDir

ENV = "environment-token-1"
ENV_2 = "environment-token-2"
GIVEN = "given-token-0123456789"


@pytest.fixture
def data(tmp_path):
    directory = DataDir(tmp_path / "hub")
    yield directory
    directory.close()


def in_file(data):
    return data.read(".admin-token").decode().strip()


def in_env(data):
    return shlex.split(data.read("env").decode())[0].removeprefix("TOKENHUB_ADMIN_TOKEN=")


def valid(admin, *tokens):
    return [token for token in tokens if admin.verify(token.encode())]


def test_without_anything_it_is_random_and_kept(data):
    admin = AdminToken.load(data, None)
    token = in_file(data)
    assert len(token) == 64
    assert in_env(data) == token
    assert admin.verify(token.encode())
    AdminToken.load(data, "")
    assert in_file(data) == token


def test_the_environment_wins_over_the_file(data):
    AdminToken.load(data, None)
    old = in_file(data)
    admin = AdminToken.load(data, ENV)
    assert valid(admin, old, ENV) == [ENV]
    assert in_file(data) == in_env(data) == ENV


@pytest.mark.parametrize(
    "bad", ["short", "x" * 15, "x" * 1025, "with space 0123456789", "ü" * 20, "a\n" * 10]
)
def test_bad_tokens_are_refused_everywhere(data, bad):
    with pytest.raises(InvalidRequest):
        AdminToken.load(data, bad)
    admin = AdminToken.load(data, ENV)
    for token in (bad, ""):
        with pytest.raises(InvalidRequest):
            admin.rotate(token)
    assert valid(admin, ENV) == [ENV]


@pytest.mark.parametrize("presented", [b"", b"\xff", b"x", ENV.encode() + b"x", ENV[:-1].encode()])
def test_only_the_token_itself_is_valid(data, presented):
    assert not AdminToken.load(data, ENV).verify(presented)


def test_rotation_is_effective_at_once_and_after_a_restart(data):
    admin = AdminToken.load(data, None)
    old = in_file(data)
    new = admin.rotate()
    assert valid(admin, old, new) == [new]
    assert in_file(data) == in_env(data) == new
    assert valid(AdminToken.load(data, None), old, new) == [new]


def test_a_given_token_is_taken_and_the_present_one_refused(data):
    admin = AdminToken.load(data, None)
    assert admin.rotate(GIVEN) == GIVEN
    with pytest.raises(InvalidRequest):
        admin.rotate(GIVEN)


def test_rotation_outlives_an_environment_that_still_has_the_old_token(data):
    new = AdminToken.load(data, ENV).rotate()
    again = AdminToken.load(data, ENV)
    assert valid(again, ENV, new) == [new]
    newer = again.rotate()
    assert valid(AdminToken.load(data, ENV), ENV, new, newer) == [newer]


def test_a_new_value_of_the_environment_wins_over_a_rotation(data):
    new = AdminToken.load(data, ENV).rotate()
    assert valid(AdminToken.load(data, ENV_2), ENV, new, ENV_2) == [ENV_2]


def test_rotating_back_to_an_old_token_makes_it_good_again(data):
    admin = AdminToken.load(data, ENV)
    admin.rotate(GIVEN)
    admin.rotate(ENV)
    assert valid(AdminToken.load(data, ENV), ENV, GIVEN) == [ENV]


def test_the_env_file_keeps_other_lines_and_survives_odd_tokens(data):
    data.write("env", b"# mine\nTOKENHUB_URL=http://x\nexport TOKENHUB_ADMIN_TOKEN=old\n")
    odd = "a'b\"c$d`e\\f;g#h!0123"
    AdminToken.load(data, odd)
    lines = data.read("env").decode().splitlines()
    assert lines[1:] == ["# mine", "TOKENHUB_URL=http://x"]
    assert in_env(data) == odd


def test_an_emptied_token_file_is_replaced(data):
    data.write(".admin-token", b"\n")
    AdminToken.load(data, None)
    assert len(in_file(data)) == 64


def test_a_garbled_state_is_refused_not_forgotten(data):
    AdminToken.load(data, ENV).rotate()
    data.write(".admin-token-state", b"{")
    with pytest.raises(StorageRefused, match="damaged"):
        AdminToken.load(data, ENV)


def test_every_file_is_private_and_the_state_holds_no_token(data):
    admin = AdminToken.load(data, ENV)
    new = admin.rotate()
    for path in data.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    state = data.read(".admin-token-state")
    assert ENV.encode() not in state
    assert new.encode() not in state
    assert ENV not in repr(admin)
    assert new not in repr(admin)


class Crash(Exception):
    """The process dies here."""


class CrashingDir(DataDir):
    """Dies before or after the n-th write of a file."""

    def __init__(self, path, steps):
        super().__init__(path)
        self._steps = steps

    def write(self, name, data):
        self._step()
        super().write(name, data)
        self._step()

    def _step(self):
        if self._steps == 0:
            raise Crash
        self._steps -= 1


@pytest.mark.parametrize("env", [None, ENV])
@pytest.mark.parametrize("rotations", [1, 2])
def test_a_crash_between_any_two_steps_of_a_rotation_locks_nobody_out(data, env, rotations):
    for steps in itertools.count():
        for name in (".admin-token", ".admin-token-state", "env"):
            data.remove(name)
        admin = AdminToken.load(data, env)
        for _ in range(rotations - 1):
            admin.rotate()
        old = in_file(data)
        crashing = CrashingDir(data.path, steps)
        admin._data_dir = crashing
        try:
            admin.rotate(GIVEN)
        except Crash:
            crashed = True
        else:
            crashed = False
        crashing.close()
        again = AdminToken.load(data, env)
        held = in_file(data)
        assert valid(again, *{old, GIVEN, ENV}) == [held]
        assert crashed or held == GIVEN
        assert in_env(data) == held
        if not crashed:
            break
    assert steps == 6


@pytest.mark.parametrize("env", [None, ENV_2])
def test_a_crash_between_any_two_steps_of_a_start_locks_nobody_out(data, env):
    for steps in range(5):
        AdminToken.load(data, ENV).rotate(GIVEN)
        crashing = CrashingDir(data.path, steps)
        with contextlib.suppress(Crash):
            AdminToken.load(crashing, env)
        crashing.close()
        again = AdminToken.load(data, env)
        assert valid(again, ENV, ENV_2, GIVEN) == [env or GIVEN] == [in_file(data)]
        for name in (".admin-token", ".admin-token-state", "env"):
            data.remove(name)


def test_a_full_disk_leaves_one_token_that_the_file_holds(data, monkeypatch):
    for steps in range(1, 4):
        admin = AdminToken.load(data, None)
        writes = itertools.count(1)
        write = data.write

        def full(name, content, writes=writes, steps=steps, write=write):
            if next(writes) == steps:
                raise OSError(28, "No space left on device")
            write(name, content)

        monkeypatch.setattr(data, "write", full)
        with pytest.raises(OSError, match="No space"):
            admin.rotate()
        monkeypatch.undo()
        assert admin.verify(in_file(data).encode())
