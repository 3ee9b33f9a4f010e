"""Row-major samples in a file, written and read by window with pwrite and pread.

Not a memory map: pages of a map count as resident memory of the process, those of a file do not.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from diinn_fast.imageio.layout import Layout


class SampleFile:
    """Samples [H, W, C] of a layout behind `header`; windows may be written by many threads and processes."""

    def __init__(self, path: Path, layout: Layout, *, header: bytes = b"", create: bool = False) -> None:
        """Create the file, sparse (holes read as zeros), or open an existing one of exactly this size.

        Raises:
            OSError: from the system; FileNotFoundError also for a file of another size or header.
        """
        self.path = path
        self.layout = layout
        self._start = len(header)
        self._pixel = layout.channels * layout.stored.itemsize
        self._lock = threading.Lock()  # used where the system has no pwrite (Windows)
        size = len(header) + layout.nbytes
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        self._descriptor = os.open(path, flags, 0o666)
        try:
            if create:
                os.ftruncate(self._descriptor, size)
                self._put(memoryview(header), 0)
            elif os.fstat(self._descriptor).st_size != size or bytes(self._get(len(header), 0)) != header:
                raise FileNotFoundError(f"{path} does not hold samples {layout.shape}")
        except BaseException:
            self.close()
            raise

    def write(self, y: int, x: int, samples: np.ndarray) -> None:
        rows, columns, channels = samples.shape
        layout = self.layout
        inside = 0 <= y <= y + rows <= layout.height and 0 <= x <= x + columns <= layout.width
        if not inside or channels != layout.channels or samples.dtype != np.dtype(layout.dtype):
            raise ValueError(
                f"samples {samples.shape} {samples.dtype} at ({y}, {x}) do not fit into {layout.shape} {layout.dtype}"
            )
        data = np.ascontiguousarray(samples, dtype=layout.stored)
        if columns == layout.width:
            self._put(_bytes_of(data), self._offset(y, 0))
            return
        for row in range(rows):
            self._put(_bytes_of(data[row]), self._offset(y + row, x))

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Samples [y1 - y0, x1 - x0, C] in native byte order."""
        layout = self.layout
        out = np.empty((y1 - y0, x1 - x0, layout.channels), layout.stored)
        if x1 - x0 == layout.width:
            self._fill(_bytes_of(out), self._offset(y0, 0))
        else:
            for row in range(y1 - y0):
                self._fill(_bytes_of(out[row]), self._offset(y0 + row, x0))
        return out.astype(layout.dtype, copy=False)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _offset(self, y: int, x: int) -> int:
        return self._start + (y * self.layout.width + x) * self._pixel

    def _put(self, data: memoryview, offset: int) -> None:
        while data:
            if hasattr(os, "pwrite"):
                done = os.pwrite(self._descriptor, data, offset)
            else:
                with self._lock:
                    os.lseek(self._descriptor, offset, os.SEEK_SET)
                    done = os.write(self._descriptor, data[: 2**30])
            data, offset = data[done:], offset + done

    def _get(self, count: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)

    def _fill(self, target: memoryview, offset: int) -> None:
        while target:
            data = self._get(min(len(target), 2**24), offset)
            if not data:
                raise EOFError(f"{self.path} is shorter than it was")
            target[: len(data)] = data
            target, offset = target[len(data) :], offset + len(data)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
