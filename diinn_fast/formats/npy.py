"""NumPy's .npy: raw samples behind a header, read and written in place."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.base import Format
from diinn_fast.formats.layout import Layout, Progress
from diinn_fast.formats.positioned import PositionedFile
from diinn_fast.formats.samples import SampleFile
from diinn_fast.formats.sinks import SampleSink, Sink, SinkOptions, SinkTarget
from diinn_fast.formats.sources import RowsSource, Source, check_array, file_identity


class Npy(Format):
    """An array [h, w] or [h, w, 1 to 4] of uint8, uint16 or float in [0, 1]; no metadata."""

    key = "npy"
    name = ".npy"
    suffixes = (".npy",)
    magics = (b"\x93NUMPY",)
    streams = True
    dtypes = ("uint8", "uint16", "float32")

    def open(self, path: Path, file: BinaryIO, max_bytes: int | None = None) -> Source:
        """See `Format.open`."""
        return npy_source(path)

    def sink(self, target: SinkTarget) -> Sink:
        """See `Format.sink`."""
        return NpySink(target)

    def disk_bytes(self, layout: Layout, options: SinkOptions) -> tuple[int, int]:
        """See `Format.disk_bytes`."""
        return 0, layout.nbytes + len(npy_header(layout))

    def finish_bytes(self, layout: Layout) -> int:
        """See `Format.finish_bytes`."""
        return 2**16


class NpySink(SampleSink):
    """[H, W] for grey, else [H, W, C], little-endian, C order; no metadata. Can be mapped
    (``mmap_mode="r"``).
    """

    def __init__(self, target: SinkTarget) -> None:
        self.header = npy_header(target.layout)
        super().__init__(target)

    @property
    def _data(self) -> Path:
        return self.final

    def _make_final(self, progress: Progress | None) -> None:
        self._opened().sync()

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        """See `SampleSink.encode`."""
        raise NotImplementedError("the samples are the file")


def npy_header(layout: Layout) -> bytes:
    """All that stands before the samples, for an array [h, w] or [h, w, c]."""
    buffer = BytesIO()
    shape = layout.shape[:2] if layout.channels == 1 else layout.shape
    fields = {
        "descr": np.lib.format.dtype_to_descr(layout.stored),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def npy_source(path: Path) -> RowsSource:
    """ImageError for what is no array of samples or is cut off; nothing but the header is read."""
    try:
        with open(path, "rb") as file:
            # The header alone: `numpy.load` would map the file, or run a pickle if asked to.
            major, _ = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[
                major
            ]
            shape, fortran, dtype = read(file)
            start = file.tell()
            size = file.seek(0, 2)
    except OSError:
        raise
    except Exception as error:  # a header is Python, and its parser raises what it likes
        raise ImageError(
            f"{path} is no .npy file that holds an array of numbers: save it again."
        ) from error
    full = check_array(path, shape, dtype)
    # Regions of rows would be spread over the whole file.
    if fortran and full[:2] != (1, 1):
        raise ImageError(f"{path} is stored column by column: save np.ascontiguousarray of it.")
    if size < start + full[0] * full[1] * full[2] * dtype.itemsize:
        raise ImageError(f"{path} is cut off: fetch or save the file again.")
    return RowsSource(str(path), PositionedFile(path), start, full, dtype, file_identity(path))
