"""A file lock that ends with its process, so that OUT.part has one writer."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class FileLock:
    """An exclusive lock, held from `acquire` until `release`, `remove`, or the process's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Make the file and lock it; False if another holds it. OSError as of the system."""
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(descriptor):
                os.close(descriptor)
                return False
            # Whoever held it may have removed the file meanwhile: then the lock is worth nothing.
            if _is_file(descriptor, self.path):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        return True

    def release(self) -> None:
        """Let others have it; the file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Delete the file and let go; where open files can be deleted, in this order."""
        if sys.platform == "win32":
            self.release()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of an existing file."""
    lock = FileLock(path)
    try:
        if not lock.acquire():
            return True
    except OSError:
        return False
    lock.release()
    return False


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
