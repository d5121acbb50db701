"""The spool: what was noted is read again, damage costs what follows it, nothing planted serves."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.spool import FileSpool

RECORDS = [b"one", b"two" * 500, b"\0" * 40]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hub.sqlite"


@pytest.fixture
def spool(path):
    opened = FileSpool(path)
    yield opened
    opened.close()


def files(path):
    return [path.with_name(f"hub.sqlite-spool-{number}") for number in (0, 1)]


def sizes(path):
    return [file.stat().st_size for file in files(path)]


def after_a_kill(path):
    """What the next process would read; the files stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        for file in filter(Path.exists, files(path)):
            shutil.copy(file, folder)
        again = FileSpool(Path(folder) / path.name)
        found = again.read()
        again.close()
    return found


def test_what_was_noted_is_read_again(spool, path):
    for record in RECORDS:
        spool.append(record)
    assert after_a_kill(path) == RECORDS


def test_a_note_outlives_kill_9(path):
    code = (
        "import os, sys; from pathlib import Path; from tokenhub.storage.spool import FileSpool\n"
        "FileSpool(Path(sys.argv[1])).append(b'noted'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert after_a_kill(path) == [b"noted"]


def test_a_note_is_one_write_and_no_sync(spool, monkeypatch):
    writes = []
    monkeypatch.setattr(os, "write", lambda _, data: writes.append(data) or len(data))
    monkeypatch.setattr(os, "fsync", None)
    monkeypatch.setattr(os, "fdatasync", None)
    spool.append(b"x" * 100_000)
    assert len(writes) == 1


def test_the_files_take_turns(spool, path):
    spool.append(b"old")
    spool.switch()
    spool.append(b"new")
    assert sorted(after_a_kill(path)) == [b"new", b"old"]
    spool.drop()
    assert after_a_kill(path) == [b"new"]
    assert sizes(path)[0] == 0
    spool.switch()
    spool.append(b"newer")
    spool.drop()
    assert after_a_kill(path) == [b"newer"]
    assert sizes(path)[1] == 0
    spool.clear()
    assert sizes(path) == [0, 0]


def test_a_file_that_is_still_needed_is_not_reused(spool):
    spool.switch()
    with pytest.raises(RuntimeError, match="switched twice"):
        spool.switch()
    spool.drop()
    with pytest.raises(RuntimeError, match="not switched"):
        spool.drop()


@pytest.mark.parametrize("left", [1, 8, 47])
def test_a_torn_tail_costs_only_itself(spool, path, caplog, left):
    for record in RECORDS:
        spool.append(record)
    os.truncate(files(path)[0], sizes(path)[0] - 48 + left)
    assert after_a_kill(path) == RECORDS[:2]
    assert f"its last {left} of" in caplog.text


def test_any_cut_and_any_changed_byte_leaves_what_stands_before(path):
    spool = FileSpool(path)
    small = [b"a", b"bcd", b"ef"]
    for record in small:
        spool.append(record)
    spool.switch()
    spool.append(b"other")
    file = files(path)[0]
    whole = file.read_bytes()
    ends = [9, 20, 30]
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        assert after_a_kill(path) == [*small[: sum(end <= at for end in ends)], b"other"]
        for flip in (0x01, 0x80, 0xFF):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            assert after_a_kill(path) == [*small[: sum(end <= at for end in ends)], b"other"]
    spool.close()


def test_a_stretch_of_zeros_is_no_record(path, caplog):
    files(path)[0].write_bytes(b"\0" * 64)
    assert after_a_kill(path) == []
    assert "64 of 64" in caplog.text


def test_a_full_disk_is_said_and_what_stood_before_is_kept(spool, path, monkeypatch):
    spool.append(b"before")
    write = os.write

    def half(descriptor, data):
        return write(descriptor, data[: len(data) // 2])

    def none(*_):
        raise OSError(28, "No space left on device")

    for broken in (half, none):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", broken)
            with pytest.raises(StorageFailed, match="No space left"):
                spool.append(b"lost")
        assert after_a_kill(path) == [b"before"]
        assert spool.append(b"before") is None
        assert after_a_kill(path) == [b"before"] * 2
        spool.clear()
        spool.append(b"before")


def test_after_half_a_record_nothing_is_written_that_could_not_be_read(spool, path, monkeypatch):
    spool.append(b"before")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
        with pytest.raises(StorageFailed):
            spool.append(b"lost")
        patch.setattr(os, "write", write)
        patch.setattr(os, "ftruncate", None)
        with pytest.raises(TypeError):
            spool.append(b"after")
    assert after_a_kill(path) == [b"before"]
    spool.append(b"after")
    assert after_a_kill(path) == [b"before", b"after"]


def test_the_files_are_private_and_go_when_empty(path):
    before = os.umask(0)
    try:
        files(path)[1].touch(0o666)
        spool = FileSpool(path)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files(path)] == [0o600, 0o600]
    spool.append(b"kept")
    spool.switch()
    spool.close()
    spool.close()
    assert [file.exists() for file in files(path)] == [True, False]


@pytest.mark.parametrize("plant", ["link", "dangling", "hard link", "pipe", "folder"])
def test_nothing_planted_is_used(path, tmp_path, plant):
    target = tmp_path / "target"
    file = files(path)[1]
    if plant in {"link", "hard link"}:
        target.write_bytes(b"mine")
    if plant in {"link", "dangling"}:
        file.symlink_to(target)
    elif plant == "hard link":
        file.hardlink_to(target)
    elif plant == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(StorageRefused):
        FileSpool(path)
    assert not target.exists() or target.read_bytes() == b"mine"
