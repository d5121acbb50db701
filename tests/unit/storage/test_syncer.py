"""Syncing: files are on the disk when it is said, and what went wrong is said too."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import sys
import threading
from pathlib import Path

import pytest

from tokenhub.storage import syncer
from tokenhub.storage.syncer import KernelSyncer, SyncThread, open_syncer

LINUX = sys.platform == "linux" and platform.machine() in syncer._NUMBERS
needs_linux = pytest.mark.skipif(not LINUX, reason="the queue is one of Linux's")
SYSTEM = pytest.param(KernelSyncer, marks=needs_linux, id="kernel")
KINDS = [SYSTEM, pytest.param(SyncThread, id="thread")]
CACHESTAT = 451  # the same number everywhere, from Linux 6.5 on


@pytest.fixture(params=KINDS)
async def made(request):
    opened = request.param(asyncio.get_running_loop())
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path):
    opened = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(8)]
    yield opened
    for descriptor in opened:
        os.close(descriptor)


async def synced(by, descriptors):
    done = asyncio.get_running_loop().create_future()
    by.sync(descriptors, done.set_result)
    return await done


def held():
    """What this process holds open, and its threads."""
    return sorted(Path("/proc/self/fd").iterdir()), threading.active_count()


def unwritten(descriptor):
    """Pages of a file that the disk does not have."""
    whole = (ctypes.c_uint64 * 2)(0, 0)
    counts = (ctypes.c_uint64 * 5)()
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    if syscall(ctypes.c_long(CACHESTAT), descriptor, whole, counts, 0):
        pytest.skip("this kernel cannot say what is on the disk")
    _cached, dirty, writeback, _evicted, _recently = counts
    return dirty + writeback


async def test_it_is_on_the_disk_when_it_is_said(made, files):
    for descriptor in files:
        os.pwrite(descriptor, bytes(100_000), 0)
    if not any(map(unwritten, files)):
        pytest.skip("this file system keeps nothing back, or tells nothing")
    assert await synced(made, files) is None
    assert [unwritten(descriptor) for descriptor in files] == [0] * len(files)


async def test_one_order_after_the_other(made, files):
    for number in range(200):
        os.pwrite(files[0], b"x", number)
        assert await synced(made, files[: 1 + number % 8]) is None


async def test_nothing_to_sync_is_told_too_and_later(made):
    told = asyncio.get_running_loop().create_future()
    made.sync([], told.set_result)
    assert not told.done()
    assert await told is None


async def test_it_is_told_on_the_loops_thread(made, files):
    told = asyncio.get_running_loop().create_future()
    made.sync(files, lambda _: told.set_result(threading.get_ident()))
    assert await told == threading.get_ident()


@pytest.mark.parametrize("whole", [0, 3])
async def test_what_cannot_be_synced_is_told_and_the_next_one_is_synced(made, files, whole):
    reads, writes = os.pipe()
    try:
        error = await synced(made, [*files[:whole], writes])
        assert error is not None
        assert error.errno == errno.EINVAL
        for _ in range(3):
            assert await synced(made, files) is None
    finally:
        os.close(reads)
        os.close(writes)


async def test_closing_waits_and_the_end_is_told(files):
    for kind in [KernelSyncer, SyncThread] if LINUX else [SyncThread]:
        told = []
        opened = kind(asyncio.get_running_loop())
        os.pwrite(files[0], bytes(1_000_000), 0)
        opened.sync(files, told.append)
        opened.close()
        if os.fstat(files[0]).st_size:
            assert unwritten(files[0]) == 0
        await asyncio.sleep(0)
        assert told == [None]


@needs_linux
async def test_an_error_of_the_disk_is_told_once(files):
    """What the kernel would say of a broken disk, in place of what it says of this one."""
    opened = KernelSyncer(asyncio.get_running_loop())
    call = opened._call

    def broken(number, *words):
        ended = call(number, *words)
        if number == opened._events_of and ended:
            event = (0, 0, -errno.EIO, 0)
            syncer._EVENT.pack_into(opened._events, 0, *event)
        return ended

    opened._call = broken
    error = await synced(opened, files[:1])
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    opened._call = call
    assert await synced(opened, files[:1]) is None
    opened.close()


@needs_linux
async def test_nothing_is_left_open(files):
    opened = KernelSyncer(asyncio.get_running_loop())  # ctypes is loaded by the first
    opened.close()
    before = held()
    opened = KernelSyncer(asyncio.get_running_loop())
    assert await synced(opened, files) is None
    assert threading.active_count() == before[1]
    opened.close()
    assert held() == before


@needs_linux
async def test_the_system_has_it(files):
    opened = open_syncer(asyncio.get_running_loop())
    assert isinstance(opened, KernelSyncer)
    opened.close()


@pytest.mark.parametrize("numbers", [{}, {platform.machine(): (100_000,) * 4}])
async def test_where_there_is_no_queue_a_thread_syncs(monkeypatch, files, numbers):
    """A machine we do not know, and a sandbox that answers ENOSYS."""
    monkeypatch.setattr(syncer, "_NUMBERS", numbers)
    opened = open_syncer(asyncio.get_running_loop())
    assert isinstance(opened, SyncThread)
    assert await synced(opened, files) is None
    opened.close()
