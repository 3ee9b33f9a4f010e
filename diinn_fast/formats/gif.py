"""Still GIFs: read; palettes become RGB, or RGB + alpha where a colour is transparent."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.GifImagePlugin import GifImageFile

from diinn_fast.formats.pillow import PillowFormat, PillowReader, as_array


class GifReader(PillowReader):
    """Grey palettes are told apart by Pillow; their transparent level is alpha too."""

    def samples(self) -> np.ndarray:
        """See `PillowReader.samples`."""
        self.picture.load()
        if self.picture.mode == "L" and self.picture.has_transparency_data:
            return as_array(self.picture.convert("LA"))
        return super().samples()


class Gif(PillowFormat):
    """Read only: enlarged pictures have more than 256 colours."""

    key = "gif"
    name = "GIF"
    suffixes = (".gif",)
    magics = (b"GIF87a", b"GIF89a")
    reader = GifReader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return GifImageFile(file)
