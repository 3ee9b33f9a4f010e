"""NumPy's .npy, written in place: the raw samples behind a header are the file, which only takes
its name.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diinn_fast.imageio.layout import Layout, Progress
from diinn_fast.inference.sinks.base import SampleSink
from diinn_fast.inference.sinks.protocol import SinkOptions
from diinn_fast.inference.sinks.samples import SampleFile


class NpySink(SampleSink):
    """[H, W] for grey, else [H, W, C], little-endian, C order; no metadata. Can be mapped
    (``mmap_mode="r"``).
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        options: SinkOptions,
        *,
        part: Path,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.header = npy_header(layout)
        super().__init__(path, layout, options, part=part, resume=resume, overwrite=overwrite)

    @property
    def _data(self) -> Path:
        return self.final

    def _make_final(self, progress: Progress | None) -> None:
        self._opened().sync()

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        raise NotImplementedError("the samples are the file")


def npy_header(layout: Layout) -> bytes:
    buffer = BytesIO()
    shape = layout.shape[:2] if layout.channels == 1 else layout.shape
    fields = {
        "descr": np.lib.format.dtype_to_descr(layout.stored),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()
