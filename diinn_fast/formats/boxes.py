"""The boxes of JPEG 2000, AVIF and HEIC files, and what they say of colour that Pillow passes over.

Source: ISO/IEC 15444-1, annex I (boxes, colour specification); ISO/IEC 23008-12 and ISO/IEC
14496-12, section 12.1.5 (colr); ITU-T H.273 (code points).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

MOST_BYTES = 2**24
"""Of a box that is looked into."""

_MOST_BOXES = 1000

_UNSPECIFIED = 2
_SRGB = ((1, _UNSPECIFIED), (13, _UNSPECIFIED))
"""Primaries and transfer functions that mean sRGB, or nothing."""


def boxes(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """(type, contents) of the boxes of the outermost level; contents that are too long are left
    empty, and whatever is damaged ends them.
    """
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head)
        size = 8
        if length == 1:
            size = 16
            length = int.from_bytes(file.read(8), "big")
        # Zero: to the end of the file, where the picture itself lies.
        inside = length - size
        if length == 0 or inside < 0:
            return
        yield name.decode("latin-1"), file.read(inside) if inside <= MOST_BYTES else b""
        at += length


def code_points(primaries: int, transfer: int) -> tuple[tuple[str, bytes], ...]:
    """PNG's chunk that says the same of RGB; none for sRGB."""
    usual, curves = _SRGB
    if primaries in usual and transfer in curves:
        return ()
    if not 0 < primaries < 256 or not 0 < transfer < 256:
        return ()
    return (("cICP", bytes([primaries, transfer, 0, 1])),)


def code_points_in(about: bytes) -> tuple[tuple[str, bytes], ...]:
    """Of the first box of that kind in a box that tells of pictures."""
    _, found, numbers = about.partition(b"colrnclx")
    return code_points(*struct.unpack(">HH", numbers[:4])) if found and len(numbers) > 3 else ()
