"""Windows bitmaps: read; 8 bits per sample."""

from __future__ import annotations

from typing import BinaryIO

import PIL.Image
from PIL.BmpImagePlugin import BmpImageFile

from diinn_fast.formats.pillow import PillowFormat


class Bmp(PillowFormat):
    """Read only: PNG holds the same, smaller."""

    key = "bmp"
    name = "BMP"
    suffixes = (".bmp", ".dib")
    magics = (b"BM",)

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return BmpImageFile(file)
