"""TIFF and BigTIFF: by region where only tiles or strips have to be decoded, else as a whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL.TiffImagePlugin import TiffImageFile

from diinn_fast.errors import ImageError
from diinn_fast.formats.base import Decoded
from diinn_fast.formats.heard import libtiff_heard, tifffile_heard
from diinn_fast.formats.layout import Layout, Progress, Read, halve, levels_below
from diinn_fast.formats.pillow import (
    ORIENTATION,
    PillowFormat,
    PillowReader,
    as_array,
    check_bound,
    check_size,
    high_and_low_bytes,
    is_huge,
    pillow_limit_lifted,
)
from diinn_fast.formats.positioned import PositionedFile, StreamFile
from diinn_fast.formats.samples import SampleFile
from diinn_fast.formats.sinks import SampleSink, Sink, SinkOptions, SinkTarget
from diinn_fast.formats.sources import ArraySource, Source, file_identity
from diinn_fast.formats.tiff_job import tiff_job
from diinn_fast.formats.tiff_metadata import fits_rational, metadata_of_page
from diinn_fast.formats.tiff_source import tiff_source
from diinn_fast.formats.tiff_writer import TILE, tiff_bytes, tiff_size, write_tiff
from diinn_fast.metadata import Metadata

_WIDTH = 256
_LENGTH = 257
_BITS = 258
_PHOTOMETRIC = 262
_TILE_WIDTH = 322
_TILE_LENGTH = 323
_PLANES = 284
_COLOUR_MAP = 320
_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT = 339

_BAND = 128


class TiffReader(PillowReader):
    """Looks at the tags that Pillow passes over."""

    picture: TiffImageFile

    def __init__(self, form: PillowFormat, name: str, file: BinaryIO) -> None:
        super().__init__(form, name, file)
        self._orientation = self.picture.tag_v2.get(ORIENTATION, 1)  # loading takes the tag away

    @property
    def bits(self) -> int:
        """See `PillowReader.bits`."""
        return 16 if self.picture.tag_v2.get(_BITS, (1,))[0] == 16 else 8

    def check_frames(self) -> None:
        """Refuse what Pillow would take for something else; `tiff_tags` has refused the rest."""
        tags = self.picture.tag_v2
        bits = tags.get(_BITS, (1,))
        if tags.get(_PLANES, 1) != 1 and (bits[0] == 16 or len(bits) == 2):
            raise ImageError(
                f"{self.name} is a TIFF with separate planes of a kind that is not read: save it "
                "with interleaved channels."
            )
        # Pillow would convert floats to bytes without a word.
        if tags.get(_SAMPLE_FORMAT, (1,))[0] != 1:
            raise ImageError(
                f"{self.name} has float samples in a compression that is not read: save it "
                "uncompressed, or with Deflate."
            )
        _pass_over_surplus_tiles(self.picture)

    def samples(self) -> np.ndarray:
        """See `PillowReader.samples`."""
        said: list[str] = []
        try:
            with libtiff_heard(said), _any_size(self.picture):
                samples = self._samples()
        except Exception as error:
            # Of Pillow there is but a number.
            raise ValueError(said[0] if said else str(error)) from error
        if said:
            raise ValueError(said[0])
        return samples

    def _samples(self) -> np.ndarray:
        if self.picture.mode == "P":
            return _colours(self.picture)
        if self.bits == 8:
            return super().samples()
        if self.picture.mode.startswith("I;16"):
            samples = as_array(self.picture)
            inverted = self.picture.tag_v2.get(_PHOTOMETRIC, 0) == 0
            return 65535 - samples if inverted else samples
        premultiplied = self.picture.tag_v2.get(_EXTRA_SAMPLES, ()) == (1,)
        samples = high_and_low_bytes(self)
        return _divide_out_alpha(samples) if premultiplied else samples

    def stored_size(self) -> tuple[int, int]:
        """See `PillowReader`; of the tags, because Pillow turns its size."""
        tags = self.picture.tag_v2
        return int(tags[_LENGTH]), int(tags[_WIDTH])

    def metadata(self) -> Metadata:
        """See `PillowReader`; of all tags, of which Pillow passes over some."""
        import tifffile

        self.file.seek(0)
        with tifffile_heard(), tifffile.TiffFile(self.file) as tiff:
            return metadata_of_page(tiff, tiff.pages.first)

    def orientation(self) -> object:
        """Of the first page's tag, which Pillow may have removed."""
        return self._orientation

    def upright(self, samples: np.ndarray, orientation: object) -> np.ndarray:
        """The samples as they are: the decoder has turned them."""
        return samples  # Pillow has turned it while loading


class Tiff(PillowFormat):
    """Written without loss, tiled when large; the fingerprint of the job stands in Software."""

    key = "tiff"
    name = "TIFF"
    suffixes = (".tif", ".tiff")
    magics = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    writes = True
    streams = True
    max_side = 2**32 - 1
    dtypes = ("uint8", "uint16", "float32")
    bands = True
    holds = frozenset({"icc", "resolution", "exif", "xmp", "iptc", "geo", "ome", "imagej"})
    reader = TiffReader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return TiffImageFile(file)

    def read(self, name: str, file: BinaryIO, max_bytes: int | None = None) -> Decoded:
        """See `Format.read`."""
        source = tiff_source(name, file, StreamFile(file), "", None)
        # What cannot be read by region is left to Pillow's decoder.
        if source is None:
            return super().read(name, file, max_bytes)
        height = source.height
        width = source.width
        if max_bytes is None:
            check_size(name, width, height)
        else:
            check_bound(name, width, height, source.bits, max_bytes)
        samples = source.samples(0, height, 0, width)
        # Half and double floats become what the network computes in.
        if samples.dtype.kind == "f":
            samples = samples.astype(np.float32)
        return Decoded(samples, source.metadata, bands=source.bands)

    def open(self, path: Path, file: BinaryIO, max_bytes: int | None = None) -> Source:
        """See `Format.open`."""
        positioned = PositionedFile(path)
        try:
            source = tiff_source(str(path), file, positioned, file_identity(path), max_bytes)
            if source is not None:
                return source
        except BaseException:
            positioned.close()
            raise
        positioned.close()
        decoded = super().read(str(path), file, max_bytes)
        return ArraySource(decoded.samples, file_identity(path), decoded.metadata)

    def can_hold(self, entry: str, value: Any) -> bool:
        """See `Format.can_hold`."""
        if entry == "resolution" and not fits_rational(value):
            return False
        return super().can_hold(entry, value)

    def stored(self, channels: int, bits: int) -> tuple[int, int]:
        """Few readers know 16-bit grey + alpha: it is stored as RGB + alpha."""
        return (4 if channels == 2 and bits > 8 else channels), bits

    def write(
        self, name: str, file: BinaryIO, layout: Layout, read: Read, *, quality: int | None
    ) -> None:
        """See `Format.write`."""
        write_tiff(file, layout, read)

    def sink(self, target: SinkTarget) -> Sink:
        """See `Format.sink`."""
        return TiffSink(target)

    def disk_bytes(self, layout: Layout, options: SinkOptions) -> tuple[int, int]:
        """See `Format.disk_bytes`."""
        levels = tiff_levels(layout) if options.pyramid else []
        raw = sum(level.nbytes for level in levels)
        return layout.nbytes + raw, sum(tiff_size(level) for level in [layout, *levels])

    def finish_bytes(self, layout: Layout) -> int:
        """See `Format.finish_bytes`."""
        return tiff_bytes(layout)

    def read_job(self, path: Path) -> str | None:
        """See `Format.read_job`."""
        with open(path, "rb") as file:
            return tiff_job(file)


class TiffSink(SampleSink):
    """Our name and the fingerprint of the job stand in the tag Software."""

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        """See `SampleSink.encode`."""
        with ExitStack() as stack:
            levels: list[tuple[Layout, Read]] = []
            above = samples
            for layout in tiff_levels(self.layout) if self.options.pyramid else []:
                path = self.part / f"samples.{len(levels) + 1}"
                # A level is made of the one above and needed for the one below: from a file, not
                # from memory.
                stack.callback(path.unlink, missing_ok=True)
                above = stack.enter_context(closing(_halved(above, path, layout)))
                levels.append((layout, above.read))
            write_tiff(
                file,
                self.layout,
                samples.read,
                levels=levels,
                compress=self.options.compress,
                progress=progress,
            )


def _any_size(picture: TiffImageFile) -> AbstractContextManager[None]:
    """Within it Pillow loads the picture, whatever its size."""
    return pillow_limit_lifted() if is_huge(picture) else nullcontext()


def tiff_levels(layout: Layout) -> list[Layout]:
    """The reduced copies of a pyramid, largest first."""
    return levels_below(layout, TILE)


def _halved(source: SampleFile, path: Path, layout: Layout) -> SampleFile:
    """Raw samples of half the size in a file of their own, made block by block."""
    target = SampleFile(path, layout, create=True)
    full = source.layout
    for y in range(0, layout.height, _BAND):
        for x in range(0, layout.width, 8 * _BAND):
            bottom = min(2 * (y + _BAND), full.height)
            right = min(2 * (x + 8 * _BAND), full.width)
            target.write(y, x, halve(source.read(2 * y, bottom, 2 * x, right)))
    return target


def _pass_over_surplus_tiles(picture: TiffImageFile) -> None:
    """Drop the tiles of offsets beyond the last one, which Pillow would paint over the first."""
    tags = picture.tag_v2
    if _TILE_WIDTH not in tags or _TILE_LENGTH not in tags:
        return
    width, height = picture.size
    count = -(-width // tags[_TILE_WIDTH]) * -(-height // tags[_TILE_LENGTH])
    planes = 1 if tags.get(_PLANES, 1) == 1 else len(tags.get(_BITS, (1,)))
    picture.tile = picture.tile[: count * planes]


def _colours(picture: TiffImageFile) -> np.ndarray:
    """RGB of palette indices. Maps of 16 bits by the standard, or of 8 by a habit of scanners."""
    picture.load()
    table: np.ndarray = np.array(picture.tag_v2[_COLOUR_MAP], np.uint16).reshape(3, -1).T
    if table.max() > 255:
        table = table >> 8
    indices = np.asarray(picture)
    if indices.max() >= len(table):
        raise ValueError("an index is beyond the palette")
    result: np.ndarray = table.astype(np.uint8)[indices]
    return result


def _divide_out_alpha(samples: np.ndarray) -> np.ndarray:
    """RGB / alpha, rounded half up and at most 65535; 0 under fully transparent pixels."""
    alpha = samples[..., 3:].astype(np.float64)
    colour = np.floor(samples[..., :3] * 65535.0 / np.maximum(alpha, 1) + 0.5)
    samples[..., :3] = np.minimum(colour, 65535)
    return samples
