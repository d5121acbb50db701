"""The data directory: private, atomic, one server, nothing planted is followed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from tokenhub.storage.database import StorageRefused
from tokenhub.storage.files import LOCK_NAME, DataDir


@pytest.fixture
def data(tmp_path):
    directory = DataDir(tmp_path / "hub")
    yield directory
    directory.close()


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_is_written_is_read(data):
    assert data.read("token") is None
    data.write("token", b"one")
    data.write("token", b"two")
    assert data.read("token") == b"two"
    assert [path.name for path in data.path.iterdir()] == ["token"]
    data.remove("token")
    data.remove("token")
    assert data.read("token") is None


def test_everything_is_private_under_umask_000(tmp_path):
    before = os.umask(0)
    try:
        data = DataDir(tmp_path / "deep" / "hub")
        data.lock()
        data.write("token", b"x")
    finally:
        os.umask(before)
    assert mode(data.path) == 0o700
    assert {mode(path) for path in data.path.iterdir()} == {0o600}
    data.close()


def test_a_directory_open_to_others_is_closed_to_them(tmp_path):
    (tmp_path / "hub").mkdir(mode=0o777)
    (tmp_path / "hub").chmod(0o777)
    DataDir(tmp_path / "hub").close()
    assert mode(tmp_path / "hub") == 0o700


def test_a_directory_that_others_use_is_left_open_to_them(tmp_path):
    home = tmp_path / "home"
    (home / "documents").mkdir(parents=True)
    home.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for path, before in ((home, 0o755), (shared, 0o1777)):
        with pytest.raises(StorageRefused, match="that others use"):
            DataDir(path)
        assert mode(path) == before


def test_the_root_of_a_volume_and_what_was_ours_before_are_closed_to_others(tmp_path):
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    (tmp_path / "ours" / "backups").mkdir(parents=True)
    (tmp_path / "ours" / LOCK_NAME).touch()
    for path in (tmp_path / "volume", tmp_path / "ours"):
        path.chmod(0o2775)
        DataDir(path).close()
        assert mode(path) == 0o700


def test_a_directory_in_the_place_of_a_file_is_not_to_be_removed(data):
    (data.path / "token").mkdir()
    with pytest.raises(StorageRefused, match=r"is a directory, not a file\. Name a file"):
        data.read("token")


def test_a_file_open_to_others_is_closed_when_read(data):
    data.write("token", b"x")
    (data.path / "token").chmod(0o644)
    assert data.read("token") == b"x"
    assert mode(data.path / "token") == 0o600


def test_a_symbolic_link_as_directory_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "hub").symlink_to(tmp_path / "real")
    with pytest.raises(StorageRefused, match="symbolic link"):
        DataDir(tmp_path / "hub")


def test_a_file_as_directory_is_refused(tmp_path):
    (tmp_path / "hub").write_text("x")
    for path in (tmp_path / "hub", tmp_path / "hub" / "inside"):
        with pytest.raises(StorageRefused, match="a file is in the way"):
            DataDir(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_others_is_refused(tmp_path):
    (tmp_path / "hub").mkdir()
    os.chown(tmp_path / "hub", 12345, 12345)
    with pytest.raises(StorageRefused, match="belongs to user 12345"):
        DataDir(tmp_path / "hub")
    os.chown(tmp_path / "hub", 0, 0)
    data = DataDir(tmp_path / "hub")
    (data.path / "token").write_text("x")
    os.chown(data.path / "token", 12345, 12345)
    for refused in (lambda: data.read("token"), lambda: data.write("token", b"y")):
        with pytest.raises(StorageRefused, match="belongs to user 12345"):
            refused()
    data.close()


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "hardlink", "directory"])
@pytest.mark.parametrize("act", ["read", "write", "lock"])
def test_planted_things_are_refused_and_their_target_is_untouched(data, tmp_path, kind, act):
    name = LOCK_NAME if act == "lock" else "token"
    target, place = tmp_path / "target", data.path / name
    target.write_bytes(b"precious")
    target.chmod(0o640)
    if kind == "symlink":
        place.symlink_to(target)
    elif kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "hardlink":
        place.hardlink_to(target)
    else:
        place.mkdir()
    acts = {
        "read": lambda: data.read(name),
        "write": lambda: data.write(name, b"new"),
        "lock": data.lock,
    }
    with pytest.raises(StorageRefused):
        acts[act]()
    assert target.read_bytes() == b"precious"
    assert mode(target) == 0o640
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd"])
def test_names_that_lead_elsewhere_are_refused(data, name):
    with pytest.raises(ValueError):
        data.read(name)
    with pytest.raises(ValueError):
        data.write(name, b"x")


def test_a_giant_file_is_refused(data):
    (data.path / "token").write_bytes(b"x" * (1024 * 1024 + 1))
    with pytest.raises(StorageRefused, match="1 MiB"):
        data.read("token")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(data, monkeypatch):
    data.write("token", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        data.write("token", b"new")
    assert data.read("token") == b"old"
    assert [path.name for path in data.path.iterdir()] == ["token"]


def test_a_second_server_is_refused_until_the_first_ends(data):
    data.lock()
    second = DataDir(data.path)
    with pytest.raises(StorageRefused, match="Another TokenHub server"):
        second.lock()
    data.close()
    second.lock()
    second.close()


CHILD = """
import sys, time
from pathlib import Path
from tokenhub.storage.files import DataDir
data = DataDir(Path(sys.argv[1]))
data.lock()
print("ready", flush=True)
n = 0
while True:
    n += 1
    data.write("token", (b"%d" % n) * 5000)
"""


def test_kill_9_in_the_middle_of_writes_leaves_a_whole_file_and_frees_the_lock(tmp_path):
    path = tmp_path / "hub"
    for cycle in range(6):
        command = [sys.executable, "-c", CHILD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.01 + cycle * 0.003)
            child.send_signal(signal.SIGKILL)
        data = DataDir(path)
        data.lock()
        content = data.read("token")
        if content is not None:
            number = content[: len(content) // 5000]
            assert content == number * 5000
        assert {one.name for one in path.iterdir()} <= {"token", LOCK_NAME}
        data.close()
