"""Row-major samples in a file, written and read by window."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diinn_fast.formats.layout import Layout
from diinn_fast.formats.positioned import PositionedFile, bytes_of

_BLOCK = 2**18


class SampleFile:
    """Samples [H, W, C] of a layout behind `header`; windows may be written by many threads and
    processes.
    """

    def __init__(
        self, path: Path, layout: Layout, *, header: bytes = b"", create: bool = False
    ) -> None:
        """Create the file, sparse (holes read as zeros), or open an existing one of exactly this
        size.

        Raises:
            OSError: from the system; FileNotFoundError also for a file of another size or header.
        """
        self.layout = layout
        self._start = len(header)
        self._file = PositionedFile(path, write=True, create=create)
        size = len(header) + layout.nbytes
        try:
            if create:
                self._file.resize(size)
                self._file.write(memoryview(header), 0)
            # Samples of another job in the same place would be taken for ours.
            elif self._file.size != size or not self._begins_with(header):
                raise FileNotFoundError(f"{path} does not hold samples {layout.shape}")
        except BaseException:
            self.close()
            raise

    def _begins_with(self, header: bytes) -> bool:
        """Whether the file has this header, whatever white space stands in it."""
        found = self._file.exactly(len(header), 0)
        return found.replace(b"\t", b" ") == header.replace(b"\t", b" ")

    def put_header(self, header: bytes) -> None:
        """Replace the header by another one of the same length."""
        if len(header) != self._start:
            raise ValueError("the header has another length")
        self._file.write(memoryview(header), 0)

    def checksum(self, before: int = 0) -> int:
        """CRC-32 of all samples as they are stored; ``before``: of what comes before them."""
        with open(self._file.path, "rb") as file:
            file.seek(self._start)
            return checksum_of(file, before)

    def write(self, y: int, x: int, samples: np.ndarray) -> None:
        """Samples [h, w, c] of the window whose upper left corner is at (y, x)."""
        check_window(self.layout, y, x, samples)
        rows, columns, _ = samples.shape
        data = np.ascontiguousarray(samples, dtype=self.layout.stored)
        pixel = self.layout.channels * self.layout.stored.itemsize
        if columns == self.layout.width:
            self._file.write(bytes_of(data), self._start + y * self.layout.row_bytes)
            return
        for row in range(rows):
            self._file.write(
                bytes_of(data[row]), self._start + (y + row) * self.layout.row_bytes + x * pixel
            )

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Samples [y1 - y0, x1 - x0, C] in native byte order."""
        channels = self.layout.channels
        row = self.layout.width * self.layout.channels
        values = self._file.window(
            self._start, row, self.layout.stored, y0, y1, x0 * channels, (x1 - x0) * channels
        )
        return values.reshape(y1 - y0, x1 - x0, channels).astype(self.layout.dtype, copy=False)

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file. Can be called twice."""
        self._file.close()


def checksum_of(file: BinaryIO, checksum: int = 0) -> int:
    """CRC-32 of the rest of a file, behind that of what comes before."""
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    return checksum


def check_window(layout: Layout, y: int, x: int, samples: np.ndarray) -> None:
    """ValueError for samples that are no window of the layout: a programming error."""
    rows, columns, channels = samples.shape
    inside = 0 <= y <= y + rows <= layout.height and 0 <= x <= x + columns <= layout.width
    if not inside or channels != layout.channels or samples.dtype != np.dtype(layout.dtype):
        raise ValueError(
            f"samples {samples.shape} {samples.dtype} at ({y}, {x}) do not fit into "
            f"{layout.shape} {layout.dtype}"
        )
