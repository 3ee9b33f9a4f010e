"""TIFF and BigTIFF by region: only the tiles or strips that a window touches are decoded.

tifffile reads the tags; decompression is bounded by the size of a tile (`tiff_segments`).
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import product
from typing import Any, BinaryIO

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import PREMULTIPLIED, Bands
from diinn_fast.formats.heard import reason_of, tifffile_heard
from diinn_fast.formats.pillow import decode_bytes, upright
from diinn_fast.formats.positioned import PositionedFile
from diinn_fast.formats.sources import RowsSource, SampleSource, unreadable
from diinn_fast.formats.tiff_metadata import metadata_of_page
from diinn_fast.formats.tiff_segments import (
    LOSSLESS,
    NO_CODECS_NEEDED,
    NONE,
    PREDICTORS,
    decode_segment,
    most_stored,
)
from diinn_fast.formats.tiff_tags import (
    BLACK_IS_ZERO,
    RGB,
    bands_of_page,
    check_whole,
    picture_page,
)
from diinn_fast.metadata import Metadata

_CONTIGUOUS = 1

_TAG = re.compile(r"TiffTag (\d+) @")
_NEEDED = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284}
    | {317, 320, 322, 323, 324, 325, 338, 339}
)
"""Tags without which a picture would be another one."""

CACHE_BYTES = 2**26
"""Decoded tiles that are kept, for windows that overlap and strips that are wider than a window."""

ENTRY_BYTES = 256
"""Of a decoded tile that is kept, beside its samples: there may be many of a few samples."""


@dataclass(frozen=True)
class Segments:
    """How a TIFF stores its samples: what is needed once its tags are forgotten.

    Attributes:
        shape: (height, width, channels) as stored.
        dtype: in the byte order of the file.
        rows, columns: of a tile, or of a strip (columns are then the width).
        tiled: tiles are whole; the last strip ends with the picture.
        planar: channels lie one behind the other, in tiles or strips of their own.
    """

    shape: tuple[int, int, int]
    bands: Bands | None
    dtype: np.dtype
    compression: int
    predictor: int
    rows: int
    columns: int
    tiled: bool
    planar: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    orientation: int
    metadata: Metadata

    @property
    def across(self) -> int:
        """Tiles or strips in a row of them."""
        return -(-self.shape[1] // self.columns)

    @property
    def per_plane(self) -> int:
        """Tiles or strips of one plane."""
        return self.across * -(-self.shape[0] // self.rows)

    @property
    def segment_bytes(self) -> int:
        """Of one tile or strip, decoded."""
        channels = 1 if self.planar else self.shape[2]
        return self.rows * self.columns * channels * self.dtype.itemsize


def tiff_source(
    name: str,
    stream: BinaryIO,
    file: PositionedFile,
    identity: str,
    max_bytes: int | None,
) -> SampleSource | None:
    """A source of regions, or None where the whole must be decoded at once.

    Read by region: one upright or oriented picture of 8- or 16-bit or float grey or RGB, with or
    without straight alpha, uncompressed or by Deflate, LZW, PackBits or Zstandard; reduced copies
    (pyramids) and masks are passed over.

    Args:
        name: of the file, for messages.
        stream: the file, for its tags.
        file: the same, for its samples; it belongs to the source from now on, if there is one.
        identity: of the file (`Source.identity`).
        max_bytes: most memory to take; None: no bound.

    Raises:
        ImageError: what `tiff_tags` refuses, damage, too large tiles for `max_bytes`.
    """
    found = _read_tags(name, stream)
    if found is None:
        return None
    height, width, channels = found.shape
    whole_rows = not found.tiled and (channels == 1 or not found.planar)
    if not found.offsets or len(found.offsets) > len(found.counts):
        raise ImageError(f"{name} is a damaged or cut off TIFF: fetch or export the file again.")
    if (0, 0) in zip(found.offsets, found.counts, strict=False):
        raise ImageError(
            f"{name} is a sparse TIFF, of which some parts are not stored: write it again with "
            "all of them (gdal_translate -co SPARSE_OK=FALSE)."
        )
    # Strips without gaps are one array: no tile arithmetic, and no cache.
    ends = [start + n for start, n in zip(found.offsets, found.counts, strict=False)]
    adjoining = list(found.offsets[1:]) == ends[: len(found.offsets) - 1]
    if found.compression == NONE and whole_rows and adjoining and found.orientation == 1:
        size = height * width * channels * found.dtype.itemsize
        if found.offsets[0] + size > file.size:
            raise ImageError(f"{name} is cut off: fetch or export the file again.")
        start = found.offsets[0]
        return RowsSource(
            name, file, start, found.shape, found.dtype, identity, found.metadata, found.bands
        )
    if found.compression not in NO_CODECS_NEEDED and not _has_imagecodecs():
        _refuse_without_codecs(name, found, max_bytes)
        return None
    return TiffSource(name, file, found, identity, max_bytes)


class TiffSource(SampleSource):
    """Tiles or strips, decoded when a window touches them and kept while there is room."""

    def __init__(
        self,
        name: str,
        file: PositionedFile,
        stored: Segments,
        identity: str,
        max_bytes: int | None,
    ) -> None:
        height, width, channels = stored.shape
        if stored.orientation in (5, 6, 7, 8):
            height, width = width, height
        shape = height, width, channels
        super().__init__(shape, stored.dtype, identity, stored.metadata, stored.bands)
        self.name = name
        self._stored = stored
        # The smallest unit of reading: as it is in the file, decoded, and in the cache.
        segment = stored.segment_bytes
        if max_bytes is not None and 3 * segment > max_bytes:
            raise ImageError(
                f"{name} is stored in pieces of {segment / 2**20:,.0f} MiB and "
                f"{max_bytes / 2**20:,.0f} are left "
                "within the bound: raise it, or convert the file to a tiled TIFF or Zarr."
            )
        left = CACHE_BYTES if max_bytes is None else max_bytes - 2 * segment
        self._cache_bytes = max(segment, min(CACHE_BYTES, left))
        self.resident_bytes = self._cache_bytes + 2 * segment  # one more as it is, one decoded
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        # Offsets beyond the last tile are passed over, as by libtiff.
        count = stored.per_plane * (channels if stored.planar else 1)
        offsets = stored.offsets[:count]
        sizes = stored.counts[:count]
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=False)]
        if len(ends) != count or min(sizes) < 1 or max(ends) > file.size:
            raise ImageError(f"{name} is damaged or cut off: fetch or export the file again.")
        self._file: PositionedFile = file

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """See `SampleSource.samples`."""
        stored = self._stored
        orientation = stored.orientation
        # The window as it lies in the stored picture.
        if orientation in (2, 3, 6, 7):
            x0, x1 = self.width - x1, self.width - x0
        if orientation in (3, 4, 7, 8):
            y0, y1 = self.height - y1, self.height - y0
        if orientation in (5, 6, 7, 8):
            y0, y1, x0, x1 = x0, x1, y0, y1
        out = np.empty((y1 - y0, x1 - x0, self.channels), stored.dtype.newbyteorder("="))
        planes = range(self.channels) if stored.planar else range(1)
        down = range(y0 // stored.rows, -(-y1 // stored.rows))
        along = range(x0 // stored.columns, -(-x1 // stored.columns))
        for plane, i, j in product(planes, down, along):
            segment = self._segment(plane * stored.per_plane + i * stored.across + j)
            top = i * stored.rows
            left = j * stored.columns
            rows = slice(max(y0, top), min(y1, top + stored.rows))
            columns = slice(max(x0, left), min(x1, left + stored.columns))
            part = segment[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
            target = out[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
            if stored.planar:
                target[..., plane] = part[..., 0]
            else:
                target[...] = part
        return upright(out, orientation)

    def _segment(self, index: int) -> np.ndarray:
        """Decoded tile or strip [rows, columns, C]; kept, while the least recently used go."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            segment = self._decoded(index)
            size = segment.nbytes + ENTRY_BYTES
            while self._cache and self._held + size > self._cache_bytes:
                self._held -= self._cache.popitem(last=False)[1].nbytes + ENTRY_BYTES
            self._cache[index] = segment
            self._held += size
            return segment

    def _decoded(self, index: int) -> np.ndarray:
        stored = self._stored
        rows = stored.rows
        if not stored.tiled:
            top = index % stored.per_plane * stored.rows
            # The last strip ends with the picture, the last tile does not.
            rows = min(rows, stored.shape[0] - top)
        shape = (rows, stored.columns, 1 if stored.planar else self.channels)
        # A damaged count must not make us read gigabytes.
        count = min(stored.counts[index], most_stored(stored.segment_bytes))
        try:
            data = self._file.exactly(count, stored.offsets[index])
            return decode_segment(data, stored.compression, stored.predictor, shape, stored.dtype)
        except (OSError, EOFError) as error:
            raise unreadable(self.name, error) from error
        except Exception as error:  # on damaged input codecs raise nearly every exception there is
            reason = reason_of(error)
            raise ImageError(
                f"{self.name} is damaged ({reason}): fetch or export the file again."
            ) from error


def _read_tags(name: str, stream: BinaryIO) -> Segments | None:
    """How the samples are stored; None where the whole must be decoded at once."""
    import tifffile

    stream.seek(0)
    try:
        with tifffile_heard() as said, tifffile.TiffFile(stream) as tiff:
            page = picture_page(name, tiff)
            # Only the first page: others are copies or masks, or have been refused.
            found = _segments(tiff, page) if _is_simple(page) else None
            if found is None:
                check_whole(name, page)
        for line in said:  # of a tag that was then passed over
            if (tag := _TAG.search(line)) and int(tag[1]) in _NEEDED:
                raise ValueError(f"its tag {tag[1]} is damaged")
        return found
    except ImageError:
        raise
    except Exception as error:  # damaged tags raise nearly every exception there is
        reason = reason_of(error)
        raise ImageError(
            f"{name} is a damaged, cut off or unusual TIFF ({reason}): "
            "export it again as an 8- or 16-bit grey or RGB TIFF."
        ) from error


def _segments(tiff: Any, page: Any) -> Segments:
    height = _whole(page.imagelength)
    width = _whole(page.imagewidth)
    channels = _whole(page.samplesperpixel)
    tiled = page.is_tiled
    rows = _whole(page.tilelength) if tiled else min(_whole(page.rowsperstrip), height)
    columns = _whole(page.tilewidth) if tiled else width
    if min(rows, columns) < 1:
        raise ValueError("its tiles or strips have no rows")
    orientation = _whole(page.tags.valueof(274, 1))
    return Segments(
        shape=(height, width, channels),
        bands=bands_of_page(page),
        dtype=np.dtype(page.dtype).newbyteorder(tiff.byteorder),
        compression=int(page.compression),
        predictor=int(page.predictor),
        rows=rows,
        columns=columns,
        tiled=tiled,
        planar=channels > 1 and page.planarconfig != _CONTIGUOUS,
        offsets=tuple(map(_whole, page.dataoffsets)),
        counts=tuple(map(_whole, page.databytecounts)),
        orientation=orientation,
        metadata=metadata_of_page(tiff, page).upright(orientation, (height, width)),
    )


def _whole(value: Any) -> int:
    """A tag's number, which may be stored as text, or as a fraction."""
    if not isinstance(value, (int, np.integer)):
        raise ValueError("a size or place is no whole number")
    return int(value)


def _is_simple(page: Any) -> bool:
    return (
        page.compression in LOSSLESS
        and page.predictor in PREDICTORS
        and page.dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64)
        and page.bitspersample == 8 * np.dtype(page.dtype).itemsize
        and page.photometric in (BLACK_IS_ZERO, RGB)
        and PREMULTIPLIED not in page.extrasamples
        and page.imagedepth == 1
        and page.fillorder == 1
        and min(page.imagelength, page.imagewidth) > 0
    )


def _refuse_without_codecs(name: str, stored: Segments, max_bytes: int | None) -> None:
    import tifffile

    height, width, _ = stored.shape
    whole = decode_bytes(width, height, 8 * stored.dtype.itemsize)
    if max_bytes is not None and whole > max_bytes:
        codec = tifffile.COMPRESSION(stored.compression).name
        raise ImageError(
            f"{name} is compressed by {codec} and does not fit the bound as a whole: "
            "pip install 'diinn_fast[big]' to read it by region."
        )


def _has_imagecodecs() -> bool:
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        return False
    return True
