"""The parts of PNG that Pillow leaves out: checksums on read, 16-bit colour on write.

Source: PNG Specification, Third Edition (W3C), sections 5 (chunks), 9 (filtering), 11 (chunk contents).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diinn_fast.imageio.formats import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INCH_IN_METRES = 0.0254
_BLOCK = 2**20
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey + alpha, RGB, RGB + alpha
PALETTE = 3


@dataclass
class PngHeader:
    """What the decoder cannot be asked for: sample depth (1, 2, 4, 8, 16), colour type, raw tRNS data."""

    depth: int
    colour_type: int
    transparent: bytes | None


def check_png(path: Path, file: BinaryIO) -> PngHeader:
    """Walk through all chunks of a PNG and compare the checksum of those that make up the picture.

    Pillow decodes pixel data without looking at its CRC, so that a flipped bit would pass as a picture.

    Raises:
        ImageError: cut off, or a wrong checksum in a critical chunk or tRNS.
    """
    file.seek(len(SIGNATURE))
    header = b""
    transparent = None
    while True:
        length, name = _unpack(path, file, ">I4s")
        needed = name[:1].isupper() or name == b"tRNS"
        crc, kept = _read_data(path, file, name, length, keep=name in (b"IHDR", b"tRNS"))
        (expected,) = _unpack(path, file, ">I")
        if needed and crc != expected:
            raise _damaged(path)
        if name == b"IHDR":
            header = kept
        elif name == b"tRNS":
            transparent = kept
        elif name == b"IEND":
            break
    if len(header) != 13:
        raise _damaged(path)
    return PngHeader(header[8], header[9], transparent)


def _read_data(path: Path, file: BinaryIO, name: bytes, length: int, keep: bool) -> tuple[int, bytes]:
    crc = zlib.crc32(name)
    kept = b""
    while length > 0:
        block = file.read(min(length, _BLOCK))
        if not block:
            raise _damaged(path)
        crc = zlib.crc32(block, crc)
        if keep:
            kept += block
        length -= len(block)
    return crc, kept


def _unpack(path: Path, file: BinaryIO, layout: str) -> tuple:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise _damaged(path)
    return struct.unpack(layout, data)


def _damaged(path: Path) -> ImageError:
    return ImageError(f"{path} is a damaged or cut off PNG: fetch or export the file again.")


def write_png16(file: BinaryIO, samples: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None) -> None:
    """Write `samples` [h, w, c] uint16, c = grey, grey + alpha, RGB, RGB + alpha, as a 16-bit PNG."""
    height, width, channels = samples.shape
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPE[channels], 0, 0, 0))
    if icc is not None:
        _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if dpi is not None:
        per_metre = [int(value / _INCH_IN_METRES + 0.5) for value in dpi]
        _write_chunk(file, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    compressor = zlib.compressobj(6, strategy=zlib.Z_FILTERED)
    for rows in _filtered_bands(samples):
        if data := compressor.compress(rows):
            _write_chunk(file, b"IDAT", data)
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _filtered_bands(samples: np.ndarray) -> Iterator[bytes]:
    """Bands of filtered rows, each row with the filter of the smallest sum of absolute differences."""
    height, width, channels = samples.shape
    pixel_bytes = 2 * channels
    rows = max(1, _BLOCK // (width * pixel_bytes))
    above = np.zeros((1, width * pixel_bytes), np.uint8)
    for top in range(0, height, rows):
        band = samples[top : top + rows].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        up = np.concatenate([above, band[:-1]])
        yield _best_filter(band, up, pixel_bytes).tobytes()
        above = band[-1:]


def _best_filter(rows: np.ndarray, up: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """[n, 1 + bytes]: filter type, then the filtered bytes of each row; `up` [n, bytes], the rows above."""
    left, up_left = _shift(rows, pixel_bytes), _shift(up, pixel_bytes)
    average = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    candidates = [rows, rows - left, rows - up, rows - average, rows - _paeth(left, up, up_left)]
    costs = [np.abs(values.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64) for values in candidates]
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
