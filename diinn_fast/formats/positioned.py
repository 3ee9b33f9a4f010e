"""Reads and writes at given offsets of one open file, from any number of threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

_BLOCK = 2**24


class PositionedFile:
    """pread and pwrite, or seek under a lock where the system has neither (Windows). Raises
    OSError.

    Not a memory map: its pages would count as resident memory of the process, and a file that gets
    shorter would end the process by a signal.
    """

    def __init__(self, path: Path, *, write: bool = False, create: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR if write else os.O_RDONLY
        flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        self._lock = threading.Lock()
        self._descriptor = os.open(path, flags, 0o666)
        self._stamp = self._look()

    @property
    def size(self) -> int:
        """Bytes of the file, now."""
        return os.fstat(self._descriptor).st_size

    def changed(self) -> bool:
        """Whether the file has another size or time than when it was opened; one that has taken
        its place under its name is none of ours.
        """
        return self._look() != self._stamp

    def resize(self, size: int) -> None:
        """Cut the file or let it grow, by a hole that reads as zeros."""
        os.ftruncate(self._descriptor, size)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        while data:
            if hasattr(os, "pwrite"):
                done = os.pwrite(self._descriptor, data, offset)
            else:
                with self._lock:
                    os.lseek(self._descriptor, offset, os.SEEK_SET)
                    done = os.write(self._descriptor, data[:_BLOCK])
            data = data[done:]
            offset = offset + done

    def read(self, target: memoryview, offset: int) -> None:
        """Fill `target`; EOFError where the file ends before."""
        while target:
            data = self._some(min(len(target), _BLOCK), offset)
            if not data:
                raise EOFError(f"{self.path} ends too early")
            target[: len(data)] = data
            target = target[len(data) :]
            offset = offset + len(data)

    def exactly(self, count: int, offset: int) -> bytes:
        """``count`` bytes at ``offset``; EOFError if there are fewer."""
        buffer = bytearray(count)
        self.read(memoryview(buffer), offset)
        return bytes(buffer)

    def window(
        self, start: int, row_items: int, dtype: np.dtype, y0: int, y1: int, first: int, count: int
    ) -> np.ndarray:
        """Items [first, first + count) of the rows y0 to y1 of a row-major array at `start`: [y1 -
        y0, count].
        """
        out = np.empty((y1 - y0, count), dtype)
        if count == row_items:
            self.read(bytes_of(out), start + y0 * row_items * dtype.itemsize)
        else:
            for row in range(y1 - y0):
                self.read(
                    bytes_of(out[row]), start + ((y0 + row) * row_items + first) * dtype.itemsize
                )
        return out

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file. Can be called twice."""
        descriptor = self._descriptor
        self._descriptor = -1
        if descriptor >= 0:
            os.close(descriptor)

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def _some(self, count: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)


class StreamFile(PositionedFile):
    """Reads at given offsets of a binary file that somebody else has opened, and will close."""

    def __init__(self, stream: BinaryIO) -> None:
        self.path = Path(str(getattr(stream, "name", "the picture")))
        self._stream = stream
        self._lock = threading.Lock()
        self._descriptor = -1

    @property
    def size(self) -> int:
        """Bytes of the stream, now."""
        with self._lock:
            return self._stream.seek(0, os.SEEK_END)

    def changed(self) -> bool:
        """Never: who has opened it knows of it."""
        return False

    def _some(self, count: int, offset: int) -> bytes:
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(count)


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, not a copy."""
    return array.reshape(-1).view(np.uint8).data
