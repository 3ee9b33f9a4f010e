"""AVIF: read; 8 bits per sample."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import BinaryIO

import PIL.Image
from PIL.AvifImagePlugin import AvifImageFile

from diinn_fast.formats.boxes import boxes, code_points_in
from diinn_fast.formats.pillow import PillowFormat, PillowReader
from diinn_fast.metadata import Metadata

_log = logging.getLogger(__name__)

_HIGH_BIT_DEPTH = 0x40
"""Bit of the third byte of an AV1 codec configuration (av1C)."""


class AvifReader(PillowReader):
    """Warns where more than 8 bits are rounded."""

    def check(self) -> None:
        """See `PillowReader.check`."""
        super().check()
        _, found, configuration = self._about().partition(b"av1C")
        if found and len(configuration) > 2 and configuration[2] & _HIGH_BIT_DEPTH:
            _log.warning("%s has 10 or 12 bits per sample and is read with 8.", self.name)

    def metadata(self) -> Metadata:
        """See `PillowReader`; with the colours that are told without a profile."""
        found = super().metadata()
        about = self._about()
        colour = code_points_in(about) if found.icc is None else ()
        lost = ("an HDR gain map",) if b"tmap" in about else ()
        return replace(found, colour=colour, lost=(*found.lost, *lost))

    def _about(self) -> bytes:
        """The box that tells of all pictures of the file."""
        return next((data for name, data in boxes(self.file) if name == "meta"), b"")


class Avif(PillowFormat):
    """Read only."""

    key = "avif"
    name = "AVIF"
    suffixes = (".avif", ".avifs")
    reader = AvifReader

    def recognises(self, start: bytes) -> bool:
        """See `Format.recognises`."""
        return start[4:8] == b"ftyp" and (b"avif" in start[8:] or b"avis" in start[8:])

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return AvifImageFile(file)
