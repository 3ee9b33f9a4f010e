"""Write a classic (32-bit offsets) TIFF of 8 or 16 bits: Deflate strips with horizontal prediction.

Pillow writes no 16-bit colour; the subset needed here is smaller than a dependency. Source: TIFF 6.0
(Adobe, 1992), sections 2, 8, 14, 18, and Technical Note 2002 on Deflate.
"""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from typing import BinaryIO

import numpy as np

_SHORT, _LONG, _RATIONAL, _UNDEFINED = 3, 4, 5, 7
_STRUCT_CODE = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _UNDEFINED: "B"}
_DEFLATE, _HORIZONTAL_PREDICTION = 8, 2
_MIN_IS_BLACK, _RGB = 1, 2
_UNASSOCIATED_ALPHA = 2
_STRIP_BYTES = 2**20

_Tag = tuple[int, int, tuple[int, ...] | bytes]


def write_tiff(file: BinaryIO, samples: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None) -> None:
    """Write `samples` [h, w, c], uint8 or uint16, c = grey, grey + alpha, RGB, RGB + alpha."""
    height, width, channels = samples.shape
    rows = max(1, min(height, _STRIP_BYTES // (width * channels * samples.itemsize)))
    file.write(b"II*\0" + bytes(4))  # the offset of the tags is known at the end
    offsets, counts = [], []
    for top in range(0, height, rows):
        strip = zlib.compress(_predict(samples[top : top + rows]), 6)
        offsets.append(file.tell())
        counts.append(len(strip))
        file.write(strip)
    colours = 3 if channels >= 3 else 1
    tags: list[_Tag] = [
        (256, _LONG, (width,)),
        (257, _LONG, (height,)),
        (258, _SHORT, (8 * samples.itemsize,) * channels),
        (259, _SHORT, (_DEFLATE,)),
        (262, _SHORT, (_RGB if colours == 3 else _MIN_IS_BLACK,)),
        (273, _LONG, tuple(offsets)),
        (277, _SHORT, (channels,)),
        (278, _LONG, (rows,)),
        (279, _LONG, tuple(counts)),
        (284, _SHORT, (1,)),
        (317, _SHORT, (_HORIZONTAL_PREDICTION,)),
    ]
    if dpi is not None:
        tags += [
            (282, _RATIONAL, _rational(dpi[0])),
            (283, _RATIONAL, _rational(dpi[1])),
            (296, _SHORT, (2,)),
        ]
    if channels > colours:
        tags.append((338, _SHORT, (_UNASSOCIATED_ALPHA,)))
    if icc is not None:
        tags.append((34675, _UNDEFINED, icc))
    _write_tags(file, sorted(tags, key=lambda tag: tag[0]))


def _predict(strip: np.ndarray) -> bytes:
    """Little-endian differences to the pixel on the left, modulo 2**bits."""
    differences = strip.copy()
    differences[:, 1:] -= strip[:, :-1]
    return differences.astype(differences.dtype.newbyteorder("<"), copy=False).tobytes()


def _rational(value: float) -> tuple[int, int]:
    fraction = Fraction(value).limit_denominator(10_000)
    return fraction.numerator, fraction.denominator


def _write_tags(file: BinaryIO, tags: list[_Tag]) -> None:
    """Write the image file directory at the end and point the header at it."""
    file.write(bytes(file.tell() % 2))  # offsets must be even
    directory = file.tell()
    overflow_at = directory + 2 + 12 * len(tags) + 4
    entries, overflow = b"", b""
    for number, kind, values in tags:
        data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{_STRUCT_CODE[kind]}", *values)
        count = len(values) // (2 if kind == _RATIONAL else 1)
        if len(data) > 4:
            field = struct.pack("<I", overflow_at + len(overflow))
            overflow += data + bytes(len(data) % 2)
        else:
            field = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", number, kind, count) + field
    file.write(struct.pack("<H", len(tags)) + entries + bytes(4) + overflow)
    file.seek(4)
    file.write(struct.pack("<I", directory))
