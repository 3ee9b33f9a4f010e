"""JPEG, and the main picture of a phone's multi-picture JPEG."""

from __future__ import annotations

from typing import Any, BinaryIO

import PIL.Image
from PIL.JpegImagePlugin import jpeg_factory

from diinn_fast.formats.encoded import EncodedFormat
from diinn_fast.formats.layout import Layout
from diinn_fast.formats.pillow import PillowReader


class JpegReader(PillowReader):
    """Reads the first picture: previews and gain maps follow it."""

    def check_frames(self) -> None:
        return


class Jpeg(EncodedFormat):
    """Written with full chroma resolution (4:4:4)."""

    key = "jpeg"
    name = "JPEG"
    suffixes = (".jpg", ".jpeg", ".jfif", ".jpe", ".jif")
    magics = (b"\xff\xd8\xff",)
    alpha = False
    max_side = 65_500  # the format's field goes to 65,535, libjpeg stops here
    reader = JpegReader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        return jpeg_factory(file)

    def encoder(self, layout: Layout, quality: int) -> dict[str, Any]:
        options: dict[str, Any] = {"quality": quality, "subsampling": "4:4:4"}
        return options if layout.dpi is None else options | {"dpi": layout.dpi}
