"""Still GIFs: read; palettes become RGB, or RGB + alpha where a colour is transparent."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.GifImagePlugin import GifImageFile

from diinn_fast.formats.pillow import PillowFormat, PillowReader, as_array
from diinn_fast.metadata import Metadata

_PROFILE = b"ICCRGBG1012"
_SEARCHED = 2**16


class GifReader(PillowReader):
    """Grey palettes are told apart by Pillow; their transparent level is alpha too."""

    def samples(self) -> np.ndarray:
        """See `PillowReader.samples`."""
        self.picture.load()
        if self.picture.mode == "L" and self.picture.has_transparency_data:
            return as_array(self.picture.convert("LA"))
        return super().samples()

    def metadata(self) -> Metadata:
        """See `PillowReader`; with the name of a profile, which Pillow passes over."""
        found = super().metadata()
        self.file.seek(0)
        if _PROFILE not in self.file.read(_SEARCHED):
            return found
        return replace(found, lost=(*found.lost, "the ICC profile of a GIF"))


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
