"""The Spool port: notes that outlive the process that made them, until the store has what they say.

A commit costs the database a transaction and an fsync. A note costs one write to a file: the kernel
has it when the call returns, and whatever then happens to the process, the next one reads it. Only
a stop of the whole machine may take it along, unless it was synced.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import zlib
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.files import open_private, sync_folder
from tokenhub.storage.syncer import open_syncer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenhub.storage.syncer import Syncer

    Synced = Callable[[StorageFailed | None], None]

_log = logging.getLogger(__name__)

_MARK = b"TokenHub spool 2"
_HEAD = Struct("<III")  # generation, the record's length, its CRC-32 begun with the generation
_ROOM = 128 * 1024  # bytes that a file has from the start: more than 20 ms bring
_MOST = 16 * 1024 * 1024  # bytes that an emptied file may keep
_MAX_GENERATION = 0xFFFFFFFF


class Spool(Protocol):
    """Records in two parts: what is being brought to the store, and what came since."""

    def read(self) -> list[bytes]:
        """The records that a dead process left; for the start."""
        ...

    def append(self, record: bytes) -> None:
        """Note a record (not empty); on return it outlives this process.

        Raises:
            StorageFailed: it could not be noted; those before it still are.
        """
        ...

    def sync(self, done: Synced) -> None:
        """Make what is noted so far outlive a stop of the machine; ``done`` is told on the loop.

        One at a time. After an error nothing that was noted and not dropped can be relied on, nor
        what is noted behind it.
        """
        ...

    def switch(self) -> None:
        """Begin the other part: what is noted so far goes with the next ``drop``."""
        ...

    def drop(self) -> None:
        """Forget what was noted before the last ``switch``.

        Raises:
            StorageFailed: it still stands, and goes with the next but one.
        """
        ...

    def clear(self) -> None:
        """Forget everything.

        Raises:
            StorageFailed: something still stands.
        """
        ...

    def close(self) -> None:
        """Let go of it; nothing is left behind unless something is noted."""
        ...


class FileSpool:
    """A Spool in two files beside a database, private like it.

    A file is written over from its start rather than cut and grown: to sync a write that changes
    neither size nor place costs the disk one write, not also those of the file system's journal.
    """

    def __init__(self, database: Path) -> None:
        """Open the files, or make them.

        Raises:
            StorageRefused: one is a link, no regular file, another user's, of another release, or
                cannot be opened.
        """
        folder = database.parent.resolve()
        self._parts: list[_Part] = []
        self._switched = False
        self._syncer: Syncer | None = None
        try:
            for number in range(2):
                self._parts.append(_Part(folder / f"{database.name}-spool-{number}"))
            sync_folder(folder)  # a file that is synced outlives a power cut only if its name does
        except BaseException:
            self.close()
            raise

    def read(self) -> list[bytes]:
        """The records that a dead process left, each file as far as it is whole."""
        return [record for part in self._parts for record in part.left]

    def append(self, record: bytes) -> None:
        """Note a record with one write."""
        try:
            self._parts[0].append(record)
        except OSError as error:
            raise _failed(error) from error

    def sync(self, done: Synced) -> None:
        """Sync while the loop goes on; to be called on the loop."""
        if self._syncer is None:
            self._syncer = open_syncer(asyncio.get_running_loop())
        unsynced = [part for part in self._parts if part.unsynced]
        for part in unsynced:
            part.unsynced = False
        self._syncer.sync(
            [part.descriptor for part in unsynced],
            lambda error: done(None if error is None else _failed(error)),
        )

    def switch(self) -> None:
        """Begin the other file."""
        if self._switched:
            raise RuntimeError("the spool was switched twice: the other file is still needed")
        self._switched = True
        self._parts.reverse()

    def drop(self) -> None:
        """Empty the file before the last ``switch``."""
        if not self._switched:
            raise RuntimeError("the spool was not switched: there is nothing to drop")
        self._switched = False
        try:
            self._parts[1].empty()
        except OSError as error:
            raise _failed(error) from error

    def clear(self) -> None:
        """Empty both files."""
        self._switched = False
        try:
            for part in self._parts:
                part.empty()
        except OSError as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Close both files and remove those that are empty."""
        if self._syncer is not None:
            self._syncer.close()
            self._syncer = None
        for part in self._parts:
            part.close()


class _Part:
    """One file: a mark, the records of one generation one behind the other, then what is older.

    Attributes:
        left: the records that were in it when it was opened, until it is emptied.
        unsynced: something was written since the last sync.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = open_private(path)
        self.unsynced = False
        self.left: list[bytes] = []
        self._generation = 0
        self._end = len(_MARK)
        try:
            self._open()
        except OSError as error:
            os.close(self.descriptor)
            raise StorageRefused(
                f"{path} cannot be used: {error.strerror}. Check the disk."
            ) from error
        except BaseException:
            os.close(self.descriptor)
            raise

    def append(self, record: bytes) -> None:
        checksum = zlib.crc32(record, self._generation)
        data = _HEAD.pack(self._generation, len(record), checksum) + record
        self.unsynced = True
        if os.pwrite(self.descriptor, data, self._end) < len(data):
            # What got there is no record, and the next one is written over it.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += len(data)

    def empty(self) -> None:
        self.left = []
        if self._end == len(_MARK):
            return
        os.pwrite(self.descriptor, bytes(_HEAD.size), len(_MARK))
        if self._end > _MOST:
            os.ftruncate(self.descriptor, _ROOM)
        self._end = len(_MARK)
        self._generation = self._generation % _MAX_GENERATION + 1

    def close(self) -> None:
        if self.descriptor < 0:
            return
        if self._end == len(_MARK):
            self._path.unlink(missing_ok=True)
        os.close(self.descriptor)
        self.descriptor = -1

    def _open(self) -> None:
        size = os.fstat(self.descriptor).st_size
        data = os.pread(self.descriptor, size, 0)
        if not data.startswith(_MARK):
            if data.strip(b"\0"):
                raise StorageRefused(
                    f"{self._path} is of another release, or damaged at its start. Start the "
                    "release that wrote it once, and stop it, so that what it holds is booked; "
                    "or move the file away."
                )
            data = b""
            os.pwrite(self.descriptor, _MARK, 0)
        self.left, generation, self._end = self._records(data)
        # Not 1: behind what is written first may stand what another life of the file has left.
        self._generation = generation or int.from_bytes(os.urandom(4)) or 1
        if size < _ROOM:
            start = max(size, len(_MARK))
            os.pwrite(self.descriptor, bytes(_ROOM - start), start)
            self.unsynced = True

    def _records(self, data: bytes) -> tuple[list[bytes], int, int]:
        """The whole records of the first generation, its number (0 = there is none), their end."""
        records: list[bytes] = []
        generation, at = 0, len(_MARK)
        while head := data[at : at + _HEAD.size].rstrip(b"\0"):
            found, length, checksum = _HEAD.unpack(head.ljust(_HEAD.size, b"\0"))
            if generation and found != generation:
                break
            start = at + _HEAD.size
            record = data[start : start + length]
            # A length of 0 may be what a power cut has left of a head.
            if not length or len(record) < length or zlib.crc32(record, found) != checksum:
                _log.warning("%s is torn: what it has from byte %d on is dropped.", self._path, at)
                break
            records.append(record)
            generation, at = found, start + length
        return records, generation, at


def _failed(error: OSError) -> StorageFailed:
    return StorageFailed(
        f"The spool beside the database cannot be written: {error.strerror}.",
        hint="Check the disk with `df`; the server's log says more.",
    )
