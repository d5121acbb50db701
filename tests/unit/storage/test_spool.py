"""The spool: what was noted is read again, damage costs what follows it, nothing planted serves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.syncer import SyncThread

RECORDS = [b"one", b"two" * 500, b"\0" * 40]
MARK = 16  # bytes before the first record
HEAD = 12  # bytes before each


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hub.sqlite"


@pytest.fixture
def spool(path):
    opened = FileSpool(path)
    yield opened
    opened.close()


@pytest.fixture
def fdatasync(monkeypatch):
    """Puts a function in the place of the system's, which is then called on a thread."""

    def put(function):
        monkeypatch.setattr("tokenhub.storage.spool.open_syncer", SyncThread)
        monkeypatch.setattr("tokenhub.storage.syncer._fdatasync", function)

    return put


def files(path):
    return [path.with_name(f"hub.sqlite-spool-{number}") for number in (0, 1)]


def content(file):
    return file.read_bytes().rstrip(b"\0")


def after_a_kill(path):
    """What the next process would read; the files stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        for file in filter(Path.exists, files(path)):
            shutil.copy(file, folder)
        again = FileSpool(Path(folder) / path.name)
        found = again.read()
        assert again.read() == found
        again.close()
    return found


async def synced(spool):
    done = asyncio.get_running_loop().create_future()
    spool.sync(done.set_result)
    return await done


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
    monkeypatch.setattr(os, "pwrite", lambda _, data, at: writes.append(at) or len(data))
    monkeypatch.setattr("tokenhub.storage.spool.open_syncer", None)
    spool.append(b"x" * 100_000)
    assert writes == [MARK]


async def test_a_sync_covers_what_was_noted_in_either_file(spool, path, fdatasync):
    """What ``fdatasync`` was given when it was called is what a power cut leaves."""
    safe = {}

    def sync(descriptor):
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        safe[file.name] = content(file)

    fdatasync(sync)
    assert await synced(spool) is None  # the room that was made
    safe.clear()
    assert await synced(spool) is None
    assert safe == {}
    spool.append(b"before the switch")
    spool.switch()
    spool.append(b"behind it")
    assert await synced(spool) is None
    assert safe == {file.name: content(file) for file in files(path)}
    assert b"before the switch" in safe["hub.sqlite-spool-0"]
    safe.clear()
    spool.append(b"later")
    assert await synced(spool) is None
    assert list(safe) == ["hub.sqlite-spool-1"]


async def test_a_sync_that_fails_is_said(spool, fdatasync):
    def broken(_):
        raise OSError(5, "Input/output error")

    spool.append(b"one")
    fdatasync(broken)
    error = await synced(spool)
    fdatasync(lambda _: None)
    assert isinstance(error, StorageFailed)
    assert "Input/output error" in str(error)
    spool.append(b"two")
    assert await synced(spool) is None


async def test_closing_waits_for_a_sync_under_way(path, fdatasync):
    began, ended = threading.Event(), []

    def slow(descriptor):
        began.set()
        time.sleep(0.05)
        ended.append(os.fstat(descriptor).st_size)  # fails on a descriptor that was closed

    fdatasync(slow)
    spool = FileSpool(path)
    spool.append(b"one")
    spool.sync(lambda _: None)
    began.wait()
    spool.close()
    assert len(ended) == 2


def test_the_files_take_turns(spool, path):
    spool.append(b"old")
    spool.switch()
    spool.append(b"new")
    assert sorted(after_a_kill(path)) == [b"new", b"old"]
    spool.drop()
    assert after_a_kill(path) == [b"new"]
    spool.switch()
    spool.append(b"newer")
    spool.drop()
    assert after_a_kill(path) == [b"newer"]
    spool.clear()
    assert after_a_kill(path) == []


def test_what_an_emptied_file_held_is_not_read_behind_what_it_holds_now(spool, path):
    for _ in range(5):
        for record in (b"a1", b"b2", b"c3"):
            spool.append(record)
        spool.switch()
        spool.drop()
        spool.append(b"now")
        spool.switch()
        assert after_a_kill(path) == [b"now"]
        spool.drop()
        spool.append(b"n1")  # as long as what stood there, so that what follows begins a record
        assert after_a_kill(path) == [b"n1"]
        spool.clear()


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from(["switch", "drop"]))))
def test_what_was_not_dropped_is_read_in_order(steps):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenhub.storage.spool._ROOM", 64)  # so that they grow too
        path = Path(folder) / "hub.sqlite"
        spool = FileSpool(path)
        old, new, switched = [], [], False
        for step in steps:
            if step == "switch" and not switched:
                spool.switch()
                old, new, switched = new, [], True
            elif step == "drop" and switched:
                spool.drop()
                old, switched = [], False
            elif isinstance(step, bytes):
                spool.append(step)
                new.append(step)
        assert after_a_kill(path) in (old + new, new + old)
        spool.close()
        again = FileSpool(path)  # and what was read can be written on
        again.append(b"more")
        assert sorted(after_a_kill(path)) == sorted([*old, *new, b"more"])
        again.close()


def test_a_file_that_grew_gives_its_room_back(spool, path):
    size = files(path)[0].stat().st_size
    spool.append(b"x" * (17 << 20))
    assert files(path)[0].stat().st_size > 17 << 20
    spool.clear()
    assert files(path)[0].stat().st_size == size
    spool.append(b"y" * (2 << 20))
    assert after_a_kill(path) == [b"y" * (2 << 20)]


def test_a_file_that_is_still_needed_is_not_reused(spool):
    spool.switch()
    with pytest.raises(RuntimeError, match="switched twice"):
        spool.switch()
    spool.drop()
    with pytest.raises(RuntimeError, match="not switched"):
        spool.drop()


@pytest.mark.parametrize("left", [1, 4, HEAD - 1, HEAD, HEAD + 39])
def test_a_torn_tail_costs_only_itself(spool, path, caplog, left):
    for record in RECORDS[:2]:
        spool.append(record)
    whole = len(content(files(path)[0]))
    spool.append(b"x" * 40)
    os.truncate(files(path)[0], whole + left)
    assert after_a_kill(path) == RECORDS[:2]
    # Less than the first word of a head may be what stood there before.
    assert (f"from byte {whole} on is dropped" in caplog.text) == (left >= 4)


def test_any_cut_and_any_changed_byte_leaves_what_stands_before(path, monkeypatch):
    monkeypatch.setattr("tokenhub.storage.spool._ROOM", 64)  # quicker to make
    spool = FileSpool(path)
    small = [b"a", b"bcd", b"ef"]
    for record in small:
        spool.append(record)
    spool.switch()
    spool.append(b"other")
    file = files(path)[0]
    whole = content(file)
    ends = [MARK + end for end in (13, 28, 42)]
    assert len(whole) == ends[-1]
    for at in range(MARK, len(whole)):
        expected = [*small[: sum(end <= at for end in ends)], b"other"]
        file.write_bytes(whole[:at])
        assert after_a_kill(path) == expected
        for flip in (0x01, 0x80, 0xFF):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            assert after_a_kill(path) == expected
    spool.close()


@pytest.mark.parametrize("at", [0, MARK - 1])
def test_a_file_that_is_not_ours_is_refused_and_kept(path, at):
    spool = FileSpool(path)
    spool.append(b"money")
    spool.close()
    file = files(path)[0]
    damaged = bytearray(file.read_bytes())
    damaged[at] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(StorageRefused, match="another release, or damaged"):
        FileSpool(path)
    assert file.read_bytes() == damaged


def test_what_the_first_release_wrote_is_refused_and_kept(path):
    old = struct.pack("<II", 5, zlib.crc32(b"money")) + b"money"
    files(path)[1].write_bytes(old)
    with pytest.raises(StorageRefused, match="another release"):
        FileSpool(path)
    assert files(path)[1].read_bytes() == old


@pytest.mark.parametrize("size", [0, 5, 64, 1 << 20])
def test_a_stretch_of_zeros_is_no_record(path, caplog, size):
    files(path)[0].write_bytes(b"\0" * size)
    assert after_a_kill(path) == []
    assert not caplog.text
    spool = FileSpool(path)
    spool.append(b"one")
    assert after_a_kill(path) == [b"one"]
    spool.close()


def test_a_full_disk_is_said_and_what_stood_before_is_kept(spool, path, monkeypatch):
    spool.append(b"before")
    write = os.pwrite

    def half(descriptor, data, at):
        return write(descriptor, data[: len(data) // 2], at)

    def none(*_):
        raise OSError(28, "No space left on device")

    for broken in (half, none):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", broken)
            with pytest.raises(StorageFailed, match="No space left"):
                spool.append(b"lost, and longer than what follows")
        assert after_a_kill(path) == [b"before"]
        spool.append(b"after")
        assert after_a_kill(path) == [b"before", b"after"]
        spool.clear()
        spool.append(b"before")


def test_the_names_of_the_files_are_synced(path, monkeypatch):
    """Else a power cut may leave no file with what was synced in it."""
    seen = []

    def fsync(descriptor):
        assert os.path.samestat(os.fstat(descriptor), path.parent.stat())
        seen.append(sorted(file.name for file in path.parent.iterdir()))

    monkeypatch.setattr(os, "fsync", fsync)
    FileSpool(path).close()
    assert seen == [[f"{path.name}-spool-0", f"{path.name}-spool-1"]]


def test_a_disk_that_cannot_sync_the_names_is_said(path, monkeypatch):
    def fsync(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageRefused, match=r"cannot be synced: Input/output error"):
        FileSpool(path)


def test_a_full_disk_at_the_start_is_said(path, monkeypatch):
    def none(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", none)
    with pytest.raises(StorageRefused, match=r"spool-0 cannot be used: No space left"):
        FileSpool(path)


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
