"""The parts of PNG that Pillow leaves out: checksums on read; on write 16-bit colour and pictures
beyond memory.

No library that installs everywhere writes PNG by rows without the whole picture (Pillow,
imagecodecs) or a map of it (libvips) in memory; what is needed beside zlib are five filters and a
dozen chunk fields.

Source: PNG Specification, Third Edition (W3C), sections 5 (chunks), 9 (filtering), 11 (chunk
    contents).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.layout import WORKERS, Layout, Progress, Read, in_order
from diinn_fast.formats.png_metadata import JOB, MOST_BYTES, Chunk, chunks_of, is_metadata

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 2**16
"""Of metadata, of which pictures have a few."""

_BLOCK = 2**20
_STRIP_BYTES = 2**18
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey + alpha, RGB, RGB + alpha
PALETTE = 3
GREY_ALPHA = 4


@dataclass
class PngHeader:
    """What the decoder cannot be asked for: sample depth (1, 2, 4, 8, 16), colour type, raw tRNS
    data, and the chunks that hold metadata.
    """

    depth: int
    colour_type: int
    transparent: bytes | None
    chunks: list[Chunk]


def check_png(path: str, file: BinaryIO) -> PngHeader:
    """Walk through all chunks of a PNG and compare the checksum of those that make up the picture.

    Pillow decodes pixel data without looking at its CRC. The checksum of the compressed data finds
    most damage; of 1600 flipped bits, three would have passed as a picture without this check.

    Raises:
        ImageError: cut off, or a wrong checksum in a critical chunk or tRNS.
    """
    file.seek(len(SIGNATURE))
    header = b""
    transparent = None
    chunks: list[Chunk] = []
    room = MOST_BYTES
    while True:
        length, name = _unpack(path, file, ">I4s")
        needed = name[:1].isupper() or name == b"tRNS"
        word = name.decode("latin-1")
        noted = is_metadata(word) and length <= room
        wanted = noted or name in (b"IHDR", b"tRNS")
        # Pixel data passes through a small buffer; only what is used later is kept.
        crc, kept = _read_data(path, file, name, length, length if wanted else 0)
        (expected,) = _unpack(path, file, ">I")
        # Damage in metadata costs the entry, damage in the picture refuses the file.
        if needed and crc != expected:
            raise _damaged(path)
        if name == b"IHDR":
            header = kept
        elif name == b"tRNS":
            transparent = kept
        elif name == b"IEND":
            break
        elif is_metadata(word):
            _add(path, chunks, Chunk(word, kept if noted and crc == expected else None))
            room -= len(kept)
    if len(header) != 13:
        raise _damaged(path)
    return PngHeader(header[8], header[9], transparent, chunks)


def _add(path: str, chunks: list[Chunk], chunk: Chunk) -> None:
    if len(chunks) == MOST_CHUNKS:
        raise ImageError(f"{path} has too many chunks: export it again as PNG.")
    chunks.append(chunk)


def _read_data(path: str, file: BinaryIO, name: bytes, length: int, most: int) -> tuple[int, bytes]:
    crc = zlib.crc32(name)
    kept = b""
    while length > 0:
        block = file.read(min(length, _BLOCK))
        if not block:
            raise _damaged(path)
        crc = zlib.crc32(block, crc)
        kept += block[: most - len(kept)]
        length -= len(block)
    return crc, kept


def _unpack(path: str, file: BinaryIO, layout: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise _damaged(path)
    return struct.unpack(layout, data)


def _damaged(path: str) -> ImageError:
    return ImageError(f"{path} is a damaged or cut off PNG: fetch or export the file again.")


def write_png(file: BinaryIO, layout: Layout, read: Read, progress: Progress | None = None) -> None:
    """Write 8 or 16 bits by strips of rows: memory of `png_bytes` and what `read` returns.

    Strips are filtered and compressed by several threads, each to the end of a Deflate block, so
    that the file does not depend on their number.
    """
    file.write(SIGNATURE)
    bits = 8 * layout.stored.itemsize
    colour_type = _COLOUR_TYPE[layout.channels]
    _write_chunk(
        file,
        b"IHDR",
        struct.pack(">IIBBBBB", layout.width, layout.height, bits, colour_type, 0, 0, 0),
    )
    for name, data in chunks_of(layout.metadata, layout.job):
        _write_chunk(file, name, data)
    step = _rows_per_strip(layout)

    def encode(top: int) -> tuple[int, bytes, bytes]:
        filtered = _filtered(layout, read, top, min(top + step, layout.height))
        compressor = zlib.compressobj(6, wbits=-15, strategy=zlib.Z_FILTERED)
        return top, filtered, compressor.compress(filtered) + compressor.flush(zlib.Z_FULL_FLUSH)

    _write_chunk(file, b"IDAT", b"\x78\x9c")  # the two bytes of a zlib stream before its blocks
    # Bands arrive in order, whichever thread was first, and the checksum runs through all of them.
    checksum = 1
    for top, filtered, compressed in in_order(encode, range(0, layout.height, step)):
        checksum = zlib.adler32(filtered, checksum)
        _write_chunk(file, b"IDAT", compressed)
        if progress is not None:
            progress(min(top + step, layout.height), layout.height)
    _write_chunk(file, b"IDAT", b"\x03\0" + struct.pack(">I", checksum))  # an empty last block
    _write_chunk(file, b"IEND", b"")


def png_bytes(layout: Layout) -> int:
    """Most bytes that `write_png` holds: 1.4 x the resident memory measured at 8192 x 8192."""
    return 30 * WORKERS * _rows_per_strip(layout) * layout.row_bytes + 2**22


def png_size(layout: Layout) -> int:
    """Most bytes of the file: Deflate of noise adds 5 bytes per 16 KiB, each row has its filter's
    number.
    """
    strips = -(-layout.height // _rows_per_strip(layout))
    samples = int((layout.nbytes + layout.height) * 1.001) + 64 * strips
    return samples + layout.metadata.nbytes + 2**16


def png_job(file: BinaryIO) -> str | None:
    """The fingerprint that `write_png` stored, None if there is none before the pixels."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return None
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        # Our own text stands before the pixels and is short.
        if name == b"IDAT" or (length > _BLOCK and name == b"tEXt"):
            return None
        if name == b"tEXt":
            keyword, _, text = file.read(length).partition(b"\0")
            if keyword == JOB.encode():
                return text.decode("latin-1")
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)
    return None


def png_is_whole(file: BinaryIO) -> bool:
    """Whether all chunks are there, each with its checksum, up to the end of the file."""
    file.seek(len(SIGNATURE))
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        checksum = zlib.crc32(name)
        while length > 0 and (data := file.read(min(length, _BLOCK))):
            checksum = zlib.crc32(data, checksum)
            length -= len(data)
        if length > 0 or file.read(4) != struct.pack(">I", checksum):
            return False
        if name == b"IEND":
            return not file.read(1)
    return False


def _rows_per_strip(layout: Layout) -> int:
    return max(1, _STRIP_BYTES // layout.row_bytes)


def _write_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _filtered(layout: Layout, read: Read, top: int, stop: int) -> bytes:
    """Rows top to stop, each with the filter of the smallest sum of absolute differences."""
    samples = read(max(0, top - 1), stop, 0, layout.width)
    strip = (
        samples.astype(samples.dtype.newbyteorder(">")).reshape(samples.shape[0], -1).view(np.uint8)
    )
    if top == 0:
        strip = np.concatenate([np.zeros_like(strip[:1]), strip])
    return _best_filter(strip[1:], strip[:-1], layout.channels * layout.stored.itemsize).tobytes()


def _best_filter(rows: np.ndarray, up: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """[n, 1 + bytes]: filter type, then the filtered bytes of each row; `up` [n, bytes], the rows
    above.
    """
    left = _shift(rows, pixel_bytes)
    up_left = _shift(up, pixel_bytes)
    average = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    candidates = [rows, rows - left, rows - up, rows - average, rows - _paeth(left, up, up_left)]
    # Differences are signed bytes: what counts is their size.
    costs = [np.minimum(values, -values).sum(1, dtype=np.int64) for values in candidates]
    # The smallest sum of differences: the heuristic that the PNG specification recommends.
    choice = np.argmin(np.stack(costs), axis=0)
    best = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    best[:, 0] = choice
    for number, values in enumerate(candidates):
        best[choice == number, 1:] = values[choice == number]
    return best


def _shift(rows: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """The bytes one pixel to the left, zeros before the first."""
    shifted = np.zeros_like(rows)
    shifted[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    return shifted


def _paeth(left: np.ndarray, up: np.ndarray, up_left: np.ndarray) -> np.ndarray:
    """Whichever of the three is nearest to left + up - up_left, ties in that order."""
    to_left = np.abs(up.astype(np.int16) - up_left)
    to_up = np.abs(left.astype(np.int16) - up_left)
    to_up_left = np.abs(left.astype(np.int16) + up - 2 * up_left.astype(np.int16))
    nearest_above = np.where(to_up <= to_up_left, up, up_left)
    return np.where((to_left <= to_up) & (to_left <= to_up_left), left, nearest_above)
