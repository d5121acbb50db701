"""Syncer: has files synced to the disk, and tells the event loop when they are.

On Linux the kernel's own queue takes the order (``io_submit``), and the loop watches a descriptor
for the end of it. A thread of ours would need the interpreter's lock twice for each sync, in turn
with the loop; it serves where there is no such queue.
"""

from __future__ import annotations

import os
import platform
import queue
import sys
import threading
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    Synced = Callable[[OSError | None], None]

_MOST = 8  # files in one order

# Without the times in the inode, which no reader of ours looks at; macOS has the other one only.
_fdatasync = getattr(os, "fdatasync", os.fsync)

# syscall(2)'s numbers of io_setup, io_destroy, io_submit, io_getevents.
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
# <linux/aio_abi.h> where bytes are little-endian. struct iocb: data, key, rw_flags, opcode,
# priority, descriptor, buffer, length, offset, reserved, flags, descriptor to be told by. struct
# io_event: data, iocb, result (negative: an errno), second result.
_ORDER = Struct("<QIiHhIQQqQII")
_EVENT = Struct("<QQqq")
_FDSYNC = 3
_RESFD = 1  # the flag that the last member counts


class Syncer(Protocol):
    """Makes what was written to files outlive a stop of the machine."""

    def sync(self, descriptors: Sequence[int], done: Synced) -> None:
        """Sync what the files (eight at most) hold by now.

        ``done`` is told on the loop: None, or an error of one of them. One order at a time.
        """
        ...

    def close(self) -> None:
        """Wait for an order under way; its ``done`` is told while the loop runs."""
        ...


def open_syncer(loop: asyncio.AbstractEventLoop) -> Syncer:
    """The kernel's queue, or a thread where the system has none or does not let us use it."""
    try:
        return KernelSyncer(loop)
    except OSError:
        return SyncThread(loop)


class KernelSyncer:
    """A Syncer by the kernel's threads. What a file system does not sync so, a thread of ours does.

    Source: io_setup(2), io_submit(2), io_getevents(2), IOCB_CMD_FDSYNC.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open a queue.

        Raises:
            OSError: this system has none, or it may not be used (as in some sandboxes).
        """
        numbers = _NUMBERS.get(platform.machine())
        if sys.platform != "linux" or numbers is None or sys.maxsize < 1 << 32:
            raise OSError("this system has no queue that we know how to use")
        import ctypes  # noqa: PLC0415  # 0.4 MB, for who has budgets

        self._loop = loop
        self._thread: SyncThread | None = None
        self._done: Synced | None = None
        self._failed: OSError | None = None
        self._pending = 0
        self._setup, self._destroy, self._submit, self._events_of = numbers
        self._errno = ctypes.get_errno
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.argtypes = (ctypes.c_long,) * 6
        self._syscall.restype = ctypes.c_long
        self._orders = ctypes.create_string_buffer(_ORDER.size * _MOST)
        self._events = ctypes.create_string_buffer(_EVENT.size * _MOST)
        first = ctypes.addressof(self._orders)
        places = range(first, first + len(self._orders), _ORDER.size)
        self._places = (ctypes.c_void_p * _MOST)(*places)
        self._places_at = ctypes.addressof(self._places)
        self._events_at = ctypes.addressof(self._events)
        context = ctypes.c_ulong(0)
        self._call(self._setup, _MOST, ctypes.addressof(context))
        self._context = context.value
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._told, self._ready)

    def sync(self, descriptors: Sequence[int], done: Synced) -> None:
        """Give the kernel the order."""
        if self._thread is not None:
            self._thread.sync(descriptors, done)
            return
        self._done = done
        if not descriptors:
            self._loop.call_soon(self._tell)
            return
        for number, descriptor in enumerate(descriptors):
            order = (0, 0, 0, _FDSYNC, 0, descriptor, 0, 0, 0, 0, _RESFD, self._told)
            _ORDER.pack_into(self._orders, number * _ORDER.size, *order)
        try:
            self._pending = self._call(
                self._submit, self._context, len(descriptors), self._places_at
            )
        except OSError:
            self._pending = 0
        if self._pending < len(descriptors):
            self._wait()
            self._done = None
            self._thread = SyncThread(self._loop)
            self._thread.sync(descriptors, done)

    def close(self) -> None:
        """Wait for the kernel, and give its queue back."""
        self._loop.remove_reader(self._told)
        self._wait()
        if self._done is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                self._loop.call_soon(self._tell)
        self._call(self._destroy, self._context)
        os.close(self._told)
        if self._thread is not None:
            self._thread.close()

    def _ready(self) -> None:
        with suppress(BlockingIOError):  # what it counts was waited for meanwhile
            os.eventfd_read(self._told)
        self._take(0)
        if not self._pending:
            self._tell()

    def _tell(self) -> None:
        done, self._done = self._done, None
        failed, self._failed = self._failed, None
        if done is not None:
            done(failed)

    def _wait(self) -> None:
        while self._pending:
            self._take(1)

    def _take(self, least: int) -> None:
        ended = self._call(self._events_of, self._context, least, _MOST, self._events_at)
        self._pending -= ended
        for number in range(ended):
            result = _EVENT.unpack_from(self._events, number * _EVENT.size)[2]
            if result < 0:
                self._failed = OSError(-result, os.strerror(-result))

    def _call(
        self, number: int, first: int, second: int = 0, third: int = 0, fourth: int = 0
    ) -> int:
        result: int = self._syscall(number, first, second, third, fourth, 0)
        if result < 0:
            code = self._errno()
            raise OSError(code, os.strerror(code))
        return result


class SyncThread(threading.Thread):
    """A Syncer that is a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="spool-sync", daemon=True)
        self._orders: queue.SimpleQueue[tuple[Sequence[int], Synced] | None] = queue.SimpleQueue()
        self._loop = loop
        self.start()

    def sync(self, descriptors: Sequence[int], done: Synced) -> None:
        """Give the thread the order."""
        self._orders.put((descriptors, done))

    def close(self) -> None:
        """Wait for the thread's end."""
        self._orders.put(None)
        self.join()

    def run(self) -> None:
        """The thread."""
        while (order := self._orders.get()) is not None:
            descriptors, done = order
            failed = None
            try:
                for descriptor in descriptors:
                    _fdatasync(descriptor)
            except OSError as error:
                failed = error
            with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                self._loop.call_soon_threadsafe(done, failed)
