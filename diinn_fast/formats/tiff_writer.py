"""TIFF and BigTIFF through tifffile: pure Python, needs NumPy alone, holds one tile at a time and
reads by region.

libvips is as fast, but maps its raw input, which counts as resident memory (205 MiB against 19 for
8192 x 8192). Tiles are compressed here, by threads, so that the bytes do not depend on which codecs
are installed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from diinn_fast.formats.layout import WORKERS, Layout, Progress, Read, in_order
from diinn_fast.formats.tiff_job import put_checksum
from diinn_fast.formats.tiff_metadata import append_directories, extra_tags, resolution_options

TILE = 256
CLASSIC_MAX_BYTES = 2**32 - 2**26
"""Most sample bytes of a TIFF with 32-bit offsets; the rest is for tags and what Deflate adds to
noise.
"""

_UNTILED_SIDE = 1024
_STRIP_BYTES = 2**20
_LEVEL = 5  # of Deflate: on an enlarged photograph about half the time of 6 for 2 % more bytes


def write_tiff(
    file: BinaryIO,
    layout: Layout,
    read: Read,
    *,
    levels: Sequence[tuple[Layout, Read]] = (),
    compress: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write tiles of 256 x 256 (strips up to a side of 1024): memory of `tiff_bytes` and what
    `read` returns.

    Deflate with horizontal prediction of integers; BigTIFF where 32-bit offsets may not reach.

    Args:
        file: new file, open for reading and writing.
        layout, read: the picture.
        levels: reduced pictures, stored as SubIFDs of the first, where viewers look for a pyramid.
        compress: False: raw tiles.
        progress: told of rows, those of the levels included.
    """
    import tifffile

    pages = [(layout, read), *levels]
    rows = sum(page.height for page, _ in pages)
    big = sum(_tiled_bytes(page) for page, _ in pages) > CLASSIC_MAX_BYTES
    done = 0
    # Offsets are 32 bits until the file may grow beyond what they reach.
    with tifffile.TiffWriter(file, bigtiff=big, byteorder="<") as writer:
        for number, (page, page_read) in enumerate(pages):
            options = _page_options(page, compress)
            if number == 0:
                # Reduced copies say nothing of their own.
                options |= _metadata(layout)
                if levels:
                    options["subifds"] = len(levels)
            else:
                options["subfiletype"] = 1
            told = _teller(progress, done, rows)
            writer.write(
                _segments(page, page_read, compress, told),
                shape=page.shape if page.channels > 1 else page.shape[:2],
                dtype=page.stored,
                metadata=None,
                maxworkers=1,
                **options,
            )
            done += page.height
    append_directories(file, layout.metadata, big=big)
    if layout.job:
        put_checksum(file)


def tiff_bytes(layout: Layout) -> int:
    """Most bytes that `write_tiff` holds: 1.1 x the most measured, and the tables of offsets."""
    segment = max(
        TILE * TILE * layout.channels * layout.stored.itemsize, min(_STRIP_BYTES, layout.nbytes)
    )
    tiles = layout.height * layout.width // TILE**2
    return 6 * WORKERS * segment + 150 * tiles + 2**23


def _metadata(layout: Layout) -> dict[str, Any]:
    metadata = layout.metadata
    tags = extra_tags(metadata, layout.dtype, layout.channels, layout.job)
    options: dict[str, Any] = {"software": False, "extratags": tags}
    if metadata.icc is not None:
        options["iccprofile"] = metadata.icc
    return options | resolution_options(metadata)


def _page_options(layout: Layout, compress: bool) -> dict[str, Any]:
    bands = layout.bands
    options: dict[str, Any] = {"photometric": "RGB" if bands.colours == 3 else "MINISBLACK"}
    if layout.channels > 1:
        options["planarconfig"] = "CONTIG"
    if bands.extra:
        options["extrasamples"] = bands.extra
    if compress:
        options |= {"compression": "ADOBE_DEFLATE", "predictor": 2 if _predicted(layout) else None}
    if _is_tiled(layout):
        options["tile"] = (TILE, TILE)
    else:
        options["rowsperstrip"] = _strip_rows(layout)
    return options


def _segments(
    layout: Layout, read: Read, compress: bool, told: Callable[[int], None]
) -> Iterator[bytes]:
    """Encoded tiles or strips in the order of the file."""
    height = layout.height
    width = layout.width
    rows, columns = (TILE, TILE) if _is_tiled(layout) else (_strip_rows(layout), width)

    def encode(place: tuple[int, int]) -> bytes:
        y, x = place
        samples = read(y, min(y + rows, height), x, min(x + columns, width))
        if _is_tiled(layout):
            # Tiles at the border are full: repeated pixels compress best and are never shown.
            below = rows - samples.shape[0]
            right = columns - samples.shape[1]
            samples = np.pad(samples, ((0, below), (0, right), (0, 0)), mode="edge")
        samples = samples.astype(layout.stored, copy=False)
        if not compress:
            return samples.tobytes()
        if _predicted(layout):
            # Differences along a row compress better; predictor 2 of the specification.
            samples = np.diff(samples, axis=1, prepend=samples.dtype.type(0))
        return zlib.compress(samples.tobytes(), _LEVEL)

    places = ((y, x) for y in range(0, height, rows) for x in range(0, width, columns))
    per_row = -(-width // columns)
    for number, segment in enumerate(in_order(encode, places), 1):
        if number % per_row == 0:  # before the last one is taken: nobody asks for more
            told(min(number // per_row * rows, height))
        yield segment


def _teller(progress: Progress | None, before: int, rows: int) -> Callable[[int], None]:
    def told(done: int) -> None:
        if progress is not None:
            progress(before + done, rows)

    return told


def _predicted(layout: Layout) -> bool:
    return layout.stored.kind == "u"


def _is_tiled(layout: Layout) -> bool:
    return max(layout.height, layout.width) > _UNTILED_SIDE


def _strip_rows(layout: Layout) -> int:
    return max(1, min(layout.height, _STRIP_BYTES // layout.row_bytes))


def _tiled_bytes(layout: Layout) -> int:
    """Sample bytes with what fills up the last tiles."""
    if not _is_tiled(layout):
        return layout.nbytes
    rows = -(-layout.height // TILE) * TILE
    columns = -(-layout.width // TILE) * TILE
    return rows * columns * layout.channels * layout.stored.itemsize


def tiff_size(layout: Layout) -> int:
    """Most bytes of the file apart from its levels: Deflate of noise adds 5 bytes per 16 KiB."""
    tables = 32 * (layout.height // TILE + 1) * (layout.width // TILE + 1)
    return int(_tiled_bytes(layout) * 1.001) + tables + layout.metadata.nbytes + 2**16
