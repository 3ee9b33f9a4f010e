"""WebP: 8-bit colour with or without alpha; it has no grey; its EXIF tells the resolution."""

from __future__ import annotations

from typing import Any, BinaryIO

import PIL.Image
from PIL.WebPImagePlugin import WebPImageFile

from diinn_fast.formats.encoded import EncodedFormat
from diinn_fast.formats.layout import Layout


class WebP(EncodedFormat):
    """Written with loss in colour and none in alpha, colour kept under transparent pixels."""

    key = "webp"
    name = "WebP"
    suffixes = (".webp",)
    max_side = 16_383
    holds = frozenset({"icc", "exif", "note", "xmp"})

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        return WebPImageFile(file)

    def recognises(self, start: bytes) -> bool:
        return start[:4] == b"RIFF" and start[8:12] == b"WEBP"

    def stored(self, channels: int, bits: int) -> tuple[int, int]:
        return channels if channels >= 3 else channels + 2, 8

    def encoder(self, layout: Layout, quality: int) -> dict[str, Any]:
        return {"quality": quality, "method": 4, "alpha_quality": 100, "exact": True}
