""".npy by region: rows of the file are read where the header says they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.imageio.positioned import PositionedFile
from diinn_fast.inference.sources.base import SampleSource, check_array, file_identity, unreadable


class RowsSource(SampleSource):
    """Row-major samples that begin at byte `start` of a file, uncompressed."""

    def __init__(
        self,
        path: Path,
        start: int,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        icc: bytes | None = None,
        dpi: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(shape, dtype, file_identity(path), icc, dpi)
        self.path = path
        self._start = start
        self._dtype = dtype
        self._file: PositionedFile = PositionedFile(path)

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        channels = self.channels
        try:
            values = self._file.window(
                self._start,
                self.width * channels,
                self._dtype,
                y0,
                y1,
                x0 * channels,
                (x1 - x0) * channels,
            )
        except (OSError, EOFError) as error:
            raise unreadable(self.path, error) from error
        return values.reshape(y1 - y0, x1 - x0, channels)


def npy_source(path: Path) -> RowsSource:
    """ImageError for what is no array of samples or is cut off; nothing but the header is read."""
    try:
        with open(path, "rb") as file:
            major, _ = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[
                major
            ]
            shape, fortran, dtype = read(file)
            start = file.tell()
            size = file.seek(0, 2)
    except (ValueError, KeyError, EOFError) as error:
        raise ImageError(
            f"{path} is no .npy file that holds an array of numbers: save it again."
        ) from error
    full = check_array(path, shape, dtype)
    if fortran and full[:2] != (1, 1):
        raise ImageError(f"{path} is stored column by column: save np.ascontiguousarray of it.")
    if size < start + full[0] * full[1] * full[2] * dtype.itemsize:
        raise ImageError(f"{path} is cut off: fetch or save the file again.")
    return RowsSource(path, start, full, dtype)
