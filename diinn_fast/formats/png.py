"""PNG of 8 or 16 bits, with alpha and metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngImageFile

from diinn_fast.formats.layout import Layout, Progress, Read
from diinn_fast.formats.pillow import (
    PillowFormat,
    PillowReader,
    as_array,
    as_file,
    high_and_low_bytes,
    set_raw_mode,
)
from diinn_fast.formats.png_codec import (
    GREY_ALPHA,
    PALETTE,
    SIGNATURE,
    check_png,
    png_bytes,
    png_is_whole,
    png_job,
    png_size,
    write_png,
)
from diinn_fast.formats.png_metadata import fits_physical, metadata_of_chunks
from diinn_fast.formats.samples import SampleFile
from diinn_fast.formats.sinks import SampleSink, Sink, SinkOptions, SinkTarget
from diinn_fast.metadata import Metadata


class PngReader(PillowReader):
    """Checks the file's checksums first, and reads 16 bits and the transparent colour."""

    def __init__(self, form: PillowFormat, name: str, file: BinaryIO) -> None:
        self.header = check_png(name, file)
        super().__init__(form, name, file)

    @property
    def bits(self) -> int:
        """See `PillowReader.bits`."""
        return 16 if self.header.depth == 16 else 8

    def metadata(self) -> Metadata:
        """See `PillowReader`; of the chunks themselves, of which Pillow passes over some."""
        icc = self.picture.info.get("icc_profile") or None
        return replace(metadata_of_chunks(self.header.chunks), icc=icc)

    def samples(self) -> np.ndarray:
        """See `PillowReader.samples`."""
        samples = self._samples_16bit() if self.bits == 16 else super().samples()
        if self.header.transparent is None or self.header.colour_type == PALETTE:
            return samples
        return _with_transparent_colour(samples, self.header.transparent, self.header.depth)

    def _samples_16bit(self) -> np.ndarray:
        if self.picture.mode.startswith("I;16"):
            return as_array(self.picture)
        if self.header.colour_type == GREY_ALPHA:  # fits whole into a 32-bit raw mode
            set_raw_mode(as_file(self.picture), lambda raw_mode: "RGBA")
            pairs = np.ascontiguousarray(as_array(self.picture))
            return pairs.view(">u2").astype(np.uint16)
        return high_and_low_bytes(self)


class Png(PillowFormat):
    """Written without loss by strips of rows; the fingerprint of the job is a tEXt chunk."""

    key = "png"
    name = "PNG"
    suffixes = (".png", ".apng")
    magics = (SIGNATURE,)
    writes = True
    streams = True
    dtypes = ("uint8", "uint16")
    holds = frozenset({"icc", "resolution", "exif", "note", "xmp", "texts", "colour"})
    reader = PngReader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return PngImageFile(file)

    def can_hold(self, entry: str, value: Any) -> bool:
        """See `Format.can_hold`."""
        if entry == "resolution" and not fits_physical(value):
            return False
        return super().can_hold(entry, value)

    def write(
        self, name: str, file: BinaryIO, layout: Layout, read: Read, *, quality: int | None
    ) -> None:
        """See `Format.write`."""
        write_png(file, layout, read)

    def sink(self, target: SinkTarget) -> Sink:
        """See `Format.sink`."""
        return PngSink(target)

    def disk_bytes(self, layout: Layout, options: SinkOptions) -> tuple[int, int]:
        """See `Format.disk_bytes`."""
        return layout.nbytes, png_size(layout)

    def finish_bytes(self, layout: Layout) -> int:
        """See `Format.finish_bytes`."""
        return png_bytes(layout)

    def read_job(self, path: Path) -> str | None:
        """See `Format.read_job`."""
        with open(path, "rb") as file:
            job = png_job(file)
            return job if job is not None and png_is_whole(file) else None


class PngSink(SampleSink):
    """Encodes the raw samples by strips of rows."""

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        """See `SampleSink.encode`."""
        write_png(file, self.layout, samples.read, progress)


def _with_transparent_colour(samples: np.ndarray, colour: bytes, depth: int) -> np.ndarray:
    """Append the alpha that tRNS of a grey or RGB PNG stands for: exactly this colour is
    transparent.
    """
    top = np.iinfo(samples.dtype).max
    key = np.frombuffer(colour, ">u2").astype(np.int64) & (2**depth - 1)  # the rest is padding
    if depth < 8:
        key = key * 255 // (2**depth - 1)  # samples were spread to 0..255 by the decoder
    alpha = np.where((samples == key).all(-1, keepdims=True), 0, top).astype(samples.dtype)
    return np.concatenate([samples, alpha], axis=-1)
