"""WebP: 8-bit colour with or without alpha; it has no grey; its EXIF tells the resolution."""

from __future__ import annotations

from typing import Any, BinaryIO

import PIL.Image
from PIL.WebPImagePlugin import WebPImageFile

from diinn_fast.formats.encoded import EncodedFormat
from diinn_fast.formats.layout import Layout
from diinn_fast.formats.pillow import PillowReader


class WebPReader(PillowReader):
    """Sees whether the file is of the lossless kind."""

    @property
    def lossless(self) -> bool:
        """Whether the first chunk of pixels is of the kind without loss."""
        self.file.seek(12)
        while len(head := self.file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = int.from_bytes(head[4:], "little")
            self.file.seek(size + size % 2, 1)
        return False


class WebP(EncodedFormat):
    """Written with loss in colour and none in alpha, or with none at all; colour is kept under
    transparent pixels.
    """

    key = "webp"
    name = "WebP"
    suffixes = (".webp",)
    max_side = 16_383
    reader = WebPReader
    holds = frozenset({"icc", "exif", "note", "xmp"})

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return WebPImageFile(file)

    def recognises(self, start: bytes) -> bool:
        """See `Format.recognises`."""
        return start[:4] == b"RIFF" and start[8:12] == b"WEBP"

    def stored(self, channels: int, bits: int) -> tuple[int, int]:
        """RGB with or without alpha, 8 bits: WebP has neither grey nor more bits."""
        return channels if channels >= 3 else channels + 2, 8

    def encoder(self, layout: Layout, quality: int | None) -> dict[str, Any]:
        """Options of Pillow's encoder; ``quality`` None: without loss."""
        if quality is None:
            return {"lossless": True, "quality": 80, "method": 4, "exact": True}
        return {"quality": quality, "method": 4, "alpha_quality": 100, "exact": True}
