"""The Spool port: notes that outlive the process that made them, until the store has what they say.

A write to the database costs an fsync. A note costs one write to a file, without: the kernel has it
when the call returns, and whatever then happens to the process, the next one reads it. Only a stop
of the whole machine may take it along.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.files import open_private

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

_HEAD = Struct("<II")  # the record's length and its CRC-32


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
    """A Spool in two files beside a database, private like it."""

    def __init__(self, database: Path) -> None:
        """Open the files, or make them.

        Raises:
            StorageRefused: one is a link, no regular file, another user's, or cannot be opened.
        """
        folder = database.parent.resolve()
        self._parts = [_Part(folder / f"{database.name}-spool-{number}") for number in range(2)]
        self._switched = False

    def read(self) -> list[bytes]:
        """The records that a dead process left, each file as far as it is whole."""
        return [record for part in self._parts for record in part.read()]

    def append(self, record: bytes) -> None:
        """Note a record with one write."""
        try:
            self._parts[0].append(_HEAD.pack(len(record), zlib.crc32(record)) + record)
        except OSError as error:
            raise _failed(error) from error

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
            self._parts[1].cut(0)
        except OSError as error:
            raise _failed(error) from error

    def clear(self) -> None:
        """Empty both files."""
        self._switched = False
        try:
            for part in self._parts:
                part.cut(0)
        except OSError as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Close both files and remove those that are empty."""
        for part in self._parts:
            part.close()


class _Part:
    """One file: whole records up to ``_size``, and what came of a write that failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = open_private(path, flags=os.O_APPEND)
        self._size = os.fstat(self._descriptor).st_size
        self._torn = False

    def read(self) -> list[bytes]:
        try:
            data = os.pread(self._descriptor, self._size, 0)
        except OSError as error:
            raise StorageRefused(
                f"{self._path} cannot be read: {error.strerror}. Check the disk."
            ) from error
        records, at = [], 0
        while at + _HEAD.size < len(data):
            length, checksum = _HEAD.unpack_from(data, at)
            start = at + _HEAD.size
            record = data[start : start + length]
            # A length of 0 is a stretch of zeros, which a file may have after a power cut.
            if not length or len(record) < length or zlib.crc32(record) != checksum:
                break
            records.append(record)
            at = start + length
        if at < len(data):
            _log.warning(
                "%s is torn: its last %d of %d bytes are dropped.",
                self._path, len(data) - at, len(data),
            )  # fmt: skip
        return records

    def append(self, data: bytes) -> None:
        if self._torn:  # what stands after it would not be read
            self.cut(self._size)
        self._torn = True
        if os.write(self._descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        self._size += len(data)

    def cut(self, size: int) -> None:
        if self._torn or self._size != size:
            os.ftruncate(self._descriptor, size)
            self._size = size
            self._torn = False

    def close(self) -> None:
        if self._descriptor < 0:
            return
        if not os.fstat(self._descriptor).st_size:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def _failed(error: OSError) -> StorageFailed:
    return StorageFailed(
        f"The spool beside the database cannot be written: {error.strerror}.",
        hint="See the server's log and `df`.",
    )
