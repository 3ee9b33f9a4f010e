"""Windows bitmaps: read; 8 bits per sample.

Source: Microsoft's description of BITMAPV4HEADER and BITMAPV5HEADER.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import BinaryIO

import PIL.Image
from PIL.BmpImagePlugin import BmpImageFile

from diinn_fast.formats.boxes import MOST_BYTES
from diinn_fast.formats.pillow import PillowFormat, PillowReader
from diinn_fast.metadata import Metadata

_FILE_HEADER = 14
_V4 = 108
_V5 = 124


class BmpReader(PillowReader):
    """Sees what the longer headers say of colour."""

    def metadata(self) -> Metadata:
        """See `PillowReader`; with the profile, or the name of what else is said."""
        found = super().metadata()
        self.file.seek(_FILE_HEADER)
        header = self.file.read(_V5)
        (length,) = struct.unpack_from("<I", header)
        if not _V4 <= length <= len(header):
            return found
        kind = header[56:60][::-1]
        if kind == b"MBED" and length == _V5:
            place, size = struct.unpack_from("<II", header, 112)
            self.file.seek(_FILE_HEADER + place)
            return replace(found, icc=self.file.read(min(size, MOST_BYTES)) or None)
        # End points of red, green and blue, and their gammas; all zero where nothing is said.
        if kind == b"LINK" or (kind == bytes(4) and any(header[60:_V4])):
            return replace(found, lost=(*found.lost, "the colour space of a BMP"))
        return found


class Bmp(PillowFormat):
    """Read only: PNG holds the same, smaller."""

    key = "bmp"
    name = "BMP"
    suffixes = (".bmp", ".dib")
    magics = (b"BM",)
    reader = BmpReader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return BmpImageFile(file)
