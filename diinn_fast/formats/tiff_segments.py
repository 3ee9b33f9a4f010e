"""Tiles and strips of a TIFF to samples, never more bytes than the picture has there.

A file may claim a small tile and hold a gigabyte in it: decompression stops at the size of the
tile, and what lies behind it is not looked at.
"""

from __future__ import annotations

import zlib

import numpy as np

NONE = 1
LZW = 5
DEFLATES = frozenset({8, 32946})
PACKBITS = 32773
ZSTD = 50000
LOSSLESS = frozenset({NONE, LZW, PACKBITS, ZSTD}) | DEFLATES
NO_CODECS_NEEDED = frozenset({NONE, PACKBITS}) | DEFLATES

HORIZONTAL = 2
FLOATING = 3
PREDICTORS = (1, HORIZONTAL, FLOATING)


def most_stored(size: int) -> int:
    """Most bytes in a file that are needed for `size` bytes of samples, however compressed."""
    return 2 * size + 2**16


def decode_segment(
    data: bytes, compression: int, predictor: int, shape: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    """Samples [rows, columns, channels] in native byte order of one tile or strip.

    Raises:
        ValueError: the data is damaged or too short; codecs raise errors of their own too.
    """
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    raw = _decompress(data, compression, size)
    if len(raw) < size:
        raise ValueError("a tile or strip is too short")
    if predictor == FLOATING:
        return _undo_float_predictor(np.frombuffer(raw, np.uint8, size), shape, dtype)
    values = np.frombuffer(raw, dtype, shape[0] * shape[1] * shape[2]).reshape(shape)
    values = values.astype(dtype.newbyteorder("="))
    if predictor == HORIZONTAL:
        unsigned = np.dtype(f"u{dtype.itemsize}")
        values = np.cumsum(values.view(unsigned), axis=1, dtype=unsigned).view(values.dtype)
    return values


def _decompress(data: bytes, compression: int, size: int) -> bytes:
    if compression == NONE:
        return data
    if compression in DEFLATES:
        return zlib.decompressobj().decompress(data, size)
    import tifffile

    if compression == PACKBITS:
        try:
            return bytes(tifffile.TIFF.DECOMPRESSORS[PACKBITS](data, out=size))
        except Exception:  # what lies behind the samples does not fit
            return _packbits(data, size)
    return bytes(tifffile.TIFF.DECOMPRESSORS[compression](data, out=size))


def _packbits(data: bytes, size: int) -> bytes:
    """The first `size` bytes of runs (n < 0: a byte 1 - n times) and literals (n >= 0: n + 1)."""
    raw = bytearray()
    place = 0
    while len(raw) < size and place + 1 < len(data):
        count = data[place]
        if count < 128:
            raw += data[place + 1 : place + 2 + count]
            place += 2 + count
        else:
            raw += data[place + 1 : place + 2] * ((257 - count) % 129)  # 128 stands for nothing
            place += 1 if count == 128 else 2
    return bytes(raw[:size])


def _undo_float_predictor(
    raw: np.ndarray, shape: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    """Rows of byte differences, the most significant bytes of all values of a row first."""
    rows, columns, channels = shape
    differences = raw.reshape(rows, columns * dtype.itemsize, channels)
    planes = np.cumsum(differences, axis=1, dtype=np.uint8)
    planes = planes.reshape(rows, dtype.itemsize, columns * channels)
    values = np.ascontiguousarray(planes.swapaxes(1, 2)).view(dtype.newbyteorder(">"))
    return values.reshape(shape).astype(dtype.newbyteorder("="))
