"""PNG of 8 or 16 bits, encoded from the raw samples by bands of rows (`imageio.png`)."""

from __future__ import annotations

from typing import BinaryIO

from diinn_fast.imageio.layout import Progress
from diinn_fast.imageio.png import write_png
from diinn_fast.inference.sinks.base import SampleSink
from diinn_fast.inference.sinks.samples import SampleFile


class PngSink(SampleSink):
    """The fingerprint of the job stands in a tEXt chunk."""

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        write_png(file, self.layout, samples.read, progress)
