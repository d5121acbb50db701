"""The data directory: private files, written whole or not at all, one server at a time.

Everything here refuses what another local user could have planted: symbolic links, FIFOs, hard
links, files of another owner.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING

from tokenhub.storage.database import StorageRefused

if TYPE_CHECKING:
    from pathlib import Path

LOCK_NAME = ".lock"
MAX_FILE = 1024 * 1024  # token and key files are tiny; more than this is a mistake or an attack

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DataDir:
    """The directory with all the server's state, 0700, ours.

    Raises:
        StorageRefused: it is a symbolic link, not a directory, another user's, plainly used by
            others too, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise StorageRefused(_why_not_directory(path, error)) from error
        try:
            self._require_private()
        except BaseException:
            os.close(self._directory)
            raise

    def lock(self) -> None:
        """Hold the directory for this process until ``close`` or exit; remove a crash's leavings.

        Raises:
            StorageRefused: another server holds it.
        """
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StorageRefused(
                f"Another TokenHub server is running on {self.path}. Stop it, or give this one "
                "its own with TOKENHUB_DATA_DIR."
            ) from error
        self._lock = descriptor
        self._sweep()

    def read(self, name: str) -> bytes | None:
        """The content of a file; None when there is none.

        Raises:
            StorageRefused: the file is a link, no regular file, another user's, or over 1 MiB.
        """
        try:
            descriptor = os.open(_checked(name), _READ, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageRefused(_why_not_file(self.path / name, error)) from error
        try:
            _require_own_file(os.fstat(descriptor), self.path / name)
            os.fchmod(descriptor, 0o600)
        except BaseException:
            os.close(descriptor)
            raise
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise StorageRefused(f"{self.path / name} is over 1 MiB, so it is not ours. Remove it.")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Replace a file: afterwards, even after a power cut, it is the old or the new one, whole.

        Raises:
            StorageRefused: something that is not our regular file stands there.
            OSError: the disk is full or broken; the old file stands.
        """
        self._require_replaceable(_checked(name))
        temporary = f".{name}.{secrets.token_hex(8)}.tmp"
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            os.unlink(temporary, dir_fd=self._directory)
            raise
        os.fsync(self._directory)

    def remove(self, name: str) -> None:
        """Remove a file, durably; nothing happens when there is none."""
        try:
            os.unlink(_checked(name), dir_fd=self._directory)
        except FileNotFoundError:
            return
        os.fsync(self._directory)

    def close(self) -> None:
        """Let the directory go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _require_private(self) -> None:
        info = os.fstat(self._directory)
        if info.st_uid != os.geteuid():
            raise StorageRefused(
                f"{self.path} belongs to user {info.st_uid}, the server runs as {os.geteuid()}. "
                "Run it as the owner, or `chown` the directory."
            )
        if stat.S_IMODE(info.st_mode) != 0o700:
            self._refuse_shared(info.st_mode)
            os.fchmod(self._directory, 0o700)

    def _refuse_shared(self, mode: int) -> None:
        # /tmp, / or a home named by mistake would be closed to everybody who needs it. Ours holds
        # no directories; a volume's root has lost+found.
        with os.scandir(self._directory) as entries:
            there = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        others = any(folder and name != "lost+found" for name, folder in there.items())
        if (others or mode & stat.S_ISVTX) and LOCK_NAME not in there:
            raise StorageRefused(
                f"{self.path} looks like a directory that others use too, and TokenHub closes its "
                "own to them. Name one that is TokenHub's alone, or `chmod 700` this one if it is."
            )

    def _sweep(self) -> None:
        # What a crash left between making a temporary file and renaming it may hold a secret.
        for name in os.listdir(self._directory):  # noqa: PTH208  # of the directory we hold
            if _TEMPORARY.fullmatch(name):
                os.unlink(name, dir_fd=self._directory)

    def _require_replaceable(self, name: str) -> None:
        try:
            info = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        _require_own_file(info, self.path / name)

    def _open_lock(self) -> int:
        return open_private(self.path / LOCK_NAME, folder=self._directory)


def open_private(path: Path, *, flags: int = 0, folder: int | None = None) -> int:
    """Open our own regular file to read and write, made 0600 if it is not there; a descriptor.

    ``folder`` is the open directory it lies in, ``flags`` what else to open it with.

    Raises:
        StorageRefused: it is a link, no regular file, another user's, or cannot be opened.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    name = path if folder is None else path.name
    try:
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise StorageRefused(_why_not_file(path, error)) from error
    try:
        _require_own_file(os.fstat(descriptor), path)
        os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_folder(path: Path) -> None:
    """Have the names of a directory outlive a power cut.

    Raises:
        StorageRefused: the disk says no.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise StorageRefused(
            f"{path} cannot be synced: {error.strerror}. Check the disk."
        ) from error
    finally:
        os.close(descriptor)


def require_private(path: Path) -> None:
    """Check that a file, if it is there, is our own regular file, and make it 0600.

    Raises:
        StorageRefused: it is a link, no regular file, or another user's.
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    _require_own_file(info, path)
    if stat.S_IMODE(info.st_mode) != 0o600:
        descriptor = os.open(path, _READ)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _require_own_file(info: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise StorageRefused(f"{path} is a directory, not a file. Name a file, or move it.")
    if not stat.S_ISREG(info.st_mode):
        raise StorageRefused(f"{path} is not a regular file (a link or pipe?). Remove it.")
    if info.st_uid != os.geteuid():
        raise StorageRefused(f"{path} belongs to user {info.st_uid}. Remove it or `chown` it.")
    if info.st_nlink != 1:
        raise StorageRefused(f"{path} has a second name (a hard link). Remove it.")


def _checked(name: str) -> str:
    if not name or "/" in name or name in {".", ".."}:
        raise ValueError(f"not a file name: {name!r}")
    return name


def _why_not_directory(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return f"The data directory {path} is a symbolic link. Name the real directory instead."
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"The data directory {path} cannot be made: a file is in the way. Move it."
    return f"The data directory {path} cannot be used: {error.strerror}. Check its path and owner."


def _why_not_file(path: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{path} is a symbolic link. Remove it."
    return f"{path} cannot be opened: {error.strerror}. Check its owner and mode."
