"""HEIC and HEIF, the photographs of phones: the main picture is read, by the extra `formats`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import BinaryIO

import PIL.Image

from diinn_fast.errors import ImageError
from diinn_fast.formats.base import Decoded
from diinn_fast.formats.boxes import code_points
from diinn_fast.formats.pillow import PillowFormat, PillowReader
from diinn_fast.metadata import Metadata

_log = logging.getLogger(__name__)

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class HeifReader(PillowReader):
    """The decoder has turned the picture already and says so in its EXIF."""

    def check_frames(self) -> None:
        """Nothing: depth maps, thumbnails and gain maps follow the main picture."""

    def check(self) -> None:
        """See `PillowReader.check`."""
        super().check()
        if self.picture.info.get("bit_depth", 8) > 8:
            _log.warning(
                "%s has %d bits per sample and is read with 8.",
                self.name,
                self.picture.info["bit_depth"],
            )

    def metadata(self) -> Metadata:
        """See `PillowReader`; with the colours that are told without a profile."""
        found = super().metadata()
        told = self.picture.info.get("nclx_profile")
        if found.icc is not None or not told:
            return found
        colour = code_points(told["color_primaries"], told["transfer_characteristics"])
        return replace(found, colour=colour)


class Heif(PillowFormat):
    """Read only."""

    key = "heif"
    name = "HEIC"
    suffixes = (".heic", ".heif", ".hif")
    reader = HeifReader

    def recognises(self, start: bytes) -> bool:
        """See `Format.recognises`."""
        return start[4:8] == b"ftyp" and start[8:12] in _BRANDS

    def read(self, name: str, file: BinaryIO, max_bytes: int | None = None) -> Decoded:
        """See `Format.read`."""
        try:
            import pillow_heif  # noqa: F401
        except ImportError:
            raise ImageError(
                f"{name} is a HEIC picture: pip install 'diinn_fast[formats]' to read it, or "
                "convert it to JPEG or PNG."
            ) from None
        return super().read(name, file, max_bytes)

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        from pillow_heif import HeifImageFile

        return HeifImageFile(file)
