"""TIFF and BigTIFF by region through tifffile: only the tiles or strips that a window touches are
decoded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.pillow import decode_bytes, upright
from diinn_fast.formats.positioned import PositionedFile
from diinn_fast.formats.sources import RowsSource, SampleSource, file_identity, unreadable

_NONE = 1
_LZW = 5
_DEFLATES = {8, 32946}
_PACKBITS = 32773
_ZSTD = 50000
_LOSSLESS = {_NONE, _LZW, *_DEFLATES, _PACKBITS, _ZSTD}
_NO_CODECS_NEEDED = {_NONE, *_DEFLATES, _PACKBITS}
_MIN_IS_BLACK = 1
_RGB = 2
_CONTIGUOUS = 1
_UNASSOCIATED = 2
_CENTIMETRE = 3
_INCH = 2

CACHE_BYTES = 2**26
"""Decoded tiles that are kept, for windows that overlap and strips that are wider than a window."""


def tiff_source(path: Path, max_bytes: int | None) -> SampleSource | None:
    """A source of regions, or None where the whole must be decoded at once (or refused, by
    the decoder of whole pictures).

    Read by region: one upright or oriented picture of 8- or 16-bit grey or RGB, with or without
    straight alpha, interleaved, uncompressed or by Deflate, LZW, PackBits or Zstandard; reduced
    copies (pyramids) are passed over.
    """
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except Exception:  # the decoder of whole pictures says what is wrong
        return None
    with tiff:
        try:
            page = tiff.pages.first
            if not _is_simple(page) or not all(page.subfiletype & 1 for page in tiff.pages[1:]):  # type: ignore[union-attr]
                return None
            icc = page.iccprofile
            dpi = _dpi(page)
            orientation = int(page.tags.valueof(274, 1))
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
            dtype = np.dtype(page.dtype).newbyteorder(tiff.byteorder)
            if (
                page.compression == _NONE
                and not page.is_tiled
                and page.is_contiguous
                and orientation == 1
            ):
                if (
                    page.dataoffsets[0] + shape[0] * shape[1] * shape[2] * dtype.itemsize
                    > path.stat().st_size
                ):
                    raise ImageError(f"{path} is cut off: fetch or export the file again.")
                return RowsSource(path, page.dataoffsets[0], shape, dtype, icc, dpi)
            if page.compression not in _NO_CODECS_NEEDED and not _has_imagecodecs():
                if (
                    max_bytes is not None
                    and decode_bytes(shape[1], shape[0], 8 * dtype.itemsize) > max_bytes
                ):
                    name = tifffile.COMPRESSION(page.compression).name
                    raise ImageError(
                        f"{path} is compressed by {name} and does not fit the bound as a whole: "
                        "pip install 'diinn_fast[big]' to read it by region."
                    )
                return None
            return TiffSource(
                path, page, shape, dtype.newbyteorder("="), icc, dpi, orientation, max_bytes
            )
        except ImageError:
            raise
        except Exception:
            return None


class TiffSource(SampleSource):
    """Tiles or strips, decoded when a window touches them and kept while there is room."""

    def __init__(
        self,
        path: Path,
        page: Any,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        icc: bytes | None,
        dpi: tuple[float, float] | None,
        orientation: int,
        max_bytes: int | None,
    ) -> None:
        self._orientation = orientation
        turned = orientation in (5, 6, 7, 8)
        height, width, channels = shape
        if turned:
            height, width = width, height
            dpi = dpi and (dpi[1], dpi[0])
        super().__init__((height, width, channels), dtype, file_identity(path), icc, dpi)
        self.path = path
        self._page = page
        self._rows, self._columns = _segment_size(page)
        self._across = -(-shape[1] // self._columns)
        segment = self._rows * self._columns * channels * dtype.itemsize
        if max_bytes is not None and 3 * segment > max_bytes:
            raise ImageError(
                f"{path} is stored in pieces of {segment / 2**20:,.0f} MiB and "
                f"{max_bytes / 2**20:,.0f} are left "
                "within the bound: raise it, or convert the file to a tiled TIFF or Zarr."
            )
        left = CACHE_BYTES if max_bytes is None else max_bytes - 2 * segment
        self._cache_bytes = max(segment, min(CACHE_BYTES, left))
        self.resident_bytes = self._cache_bytes + 2 * segment  # one more as it is, one decoded
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        count = self._across * -(-shape[0] // self._rows)
        self._file: PositionedFile = PositionedFile(path)
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if len(ends) != count or min(page.databytecounts) < 1 or max(ends) > self._file.size:
            self._file.close()
            raise ImageError(f"{path} is damaged or cut off: fetch or export the file again.")

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        channels = self.channels
        if self._orientation in (2, 3, 6, 7):
            x0, x1 = self.width - x1, self.width - x0
        if self._orientation in (3, 4, 7, 8):
            y0, y1 = self.height - y1, self.height - y0
        if self._orientation in (5, 6, 7, 8):
            y0, y1, x0, x1 = x0, x1, y0, y1
        out = np.empty((y1 - y0, x1 - x0, channels), self._page.dtype)
        rows = self._rows
        columns = self._columns
        for i, j in product(
            range(y0 // rows, -(-y1 // rows)), range(x0 // columns, -(-x1 // columns))
        ):
            top = i * rows
            left = j * columns
            segment = self._segment(i * self._across + j)
            a = max(y0, top)
            b = min(y1, top + rows)
            c = max(x0, left)
            d = min(x1, left + columns)
            out[a - y0 : b - y0, c - x0 : d - x0] = segment[a - top : b - top, c - left : d - left]
        return upright(out, self._orientation)

    def _segment(self, index: int) -> np.ndarray:
        """Decoded tile or strip [rows, columns, C], without what fills it up beyond the border."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            try:
                data = self._file.exactly(
                    self._page.databytecounts[index], self._page.dataoffsets[index]
                )
                decoded, _, shape = self._page.decode(data, index)
                segment = np.ascontiguousarray(decoded[0, : shape[1], : shape[2]])
            except (
                Exception
            ) as error:  # on damaged input codecs raise nearly every exception there is
                raise unreadable(self.path, error) from error
            while self._cache and self._held() + segment.nbytes > self._cache_bytes:
                self._cache.popitem(last=False)
            self._cache[index] = segment
            return segment

    def _held(self) -> int:
        return sum(segment.nbytes for segment in self._cache.values())


def _is_simple(page: Any) -> bool:
    channels = page.samplesperpixel
    extra = tuple(page.extrasamples)
    colours = {_MIN_IS_BLACK: 1, _RGB: 3}.get(page.photometric)
    return (
        page.compression in _LOSSLESS
        and page.sampleformat == 1
        and page.bitspersample in (8, 16)
        and page.dtype in (np.uint8, np.uint16)
        and colours is not None
        and channels == colours + len(extra)
        and extra in ((), (_UNASSOCIATED,))
        and (channels == 1 or page.planarconfig == _CONTIGUOUS)
        and page.imagedepth == 1
        and page.fillorder == 1
    )


def _segment_size(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _dpi(page: Any) -> tuple[float, float] | None:
    """Resolution of the stored picture, where the file gives it in inches or centimetres."""
    unit = int(page.tags.valueof(296, _INCH))
    values = [page.tags.valueof(tag) for tag in (282, 283)]
    if (
        unit not in (_INCH, _CENTIMETRE)
        or None in values
        or any(denominator == 0 for _, denominator in values)
    ):
        return None
    factor = 2.54 if unit == _CENTIMETRE else 1.0
    horizontal, vertical = (factor * numerator / denominator for numerator, denominator in values)
    return (horizontal, vertical) if 0 < horizontal < 1e6 and 0 < vertical < 1e6 else None


def _has_imagecodecs() -> bool:
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        return False
    return True
