"""Still GIFs: read; palettes become RGB, or RGB + alpha where a colour is transparent."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.GifImagePlugin import GifImageFile

from diinn_fast.formats.pillow import PillowFormat, PillowReader, as_array, as_file
from diinn_fast.metadata import Metadata

_log = logging.getLogger(__name__)

_PROFILE = b"ICCRGBG1012"
_SEARCHED = 2**16


class GifReader(PillowReader):
    """Grey palettes are told apart by Pillow; their transparent level is alpha too."""

    def check(self) -> None:
        """See `PillowReader.check`; warns where programs show different pictures."""
        super().check()
        place = as_file(self.picture).tile[0].extents
        transparent = self.picture.has_transparency_data
        if place != (0, 0, *self.picture.size) and not transparent:
            _log.warning(
                "%s is larger than the picture in it: what is beside has the file's background "
                "colour, which other programs show as transparent or black.",
                self.name,
            )

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
