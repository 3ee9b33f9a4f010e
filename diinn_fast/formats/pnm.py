"""Portable bitmaps, greymaps and pixmaps (Netpbm's PBM, PGM, PPM): read; 8 or 16 bits.

Source: Netpbm's descriptions of pbm(5), pgm(5), ppm(5).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.PpmImagePlugin import PpmImageFile

from diinn_fast.errors import ImageError
from diinn_fast.formats.pillow import PillowFormat, PillowReader
from diinn_fast.metadata import Metadata

_HEADER = re.compile(rb"P([1-6])" + rb"(?:\s|#[^\n]*\n)+(\d{1,10})" * 2 + rb"\s")
_DEEP = re.compile(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d{1,10})" * 3 + rb"\s")
_COMMENT = re.compile(rb"#([^\n]*)\n")
_HEADER_BYTES = 2**16
_CHANNELS = {b"5": 1, b"6": 3}


class PnmReader(PillowReader):
    """16-bit samples are read here: Pillow keeps 8 bits of colour."""

    def __init__(self, form: PillowFormat, name: str, file: BinaryIO) -> None:
        super().__init__(form, name, file)
        file.seek(0)
        start = file.read(_HEADER_BYTES)
        found = _DEEP.match(start)
        bilevel = start[1:2] in b"14"
        if found is None and not bilevel:
            raise ImageError(f"{name} is a PNM without a header that is known: export it again.")
        self._kind = b"" if found is None else found[1]
        self._most = 255 if found is None else int(found[4])
        self._start = 0 if found is None else found.end()
        head = found or _HEADER.match(start)
        self._comments = _COMMENT.findall(b"" if head is None else head[0])

    @property
    def bits(self) -> int:
        """See `PillowReader.bits`."""
        return 16 if self._most > 255 else 8

    def check(self) -> None:
        """See `PillowReader.check`."""
        if self.bits == 8:
            super().check()
        elif self._kind not in _CHANNELS or self._most > 65535:
            raise ImageError(
                f"{self.name} is a PNM of more than 8 bits in decimal digits: convert it to the "
                "binary form, or to PNG."
            )

    def samples(self) -> np.ndarray:
        """See `PillowReader.samples`."""
        if self.bits == 8:
            return super().samples()
        width, height = self.picture.size
        channels = _CHANNELS[self._kind]
        self.file.seek(self._start)
        data = self.file.read(2 * height * width * channels)
        stored = np.frombuffer(data, ">u2").reshape(height, width, channels)
        if self._most == 65535:
            return stored.astype(np.uint16)
        scaled = np.floor(stored * (65535 / self._most) + 0.5)
        return np.minimum(scaled, 65535).astype(np.uint16)

    def metadata(self) -> Metadata:
        """See `PillowReader`; with the comments of the header."""
        lines = [line.decode("utf-8", "replace").strip() for line in self._comments]
        return replace(super().metadata(), comment="\n".join(lines).strip() or None)


class Pnm(PillowFormat):
    """Read only."""

    key = "pnm"
    name = "PNM"
    suffixes = (".ppm", ".pgm", ".pbm", ".pnm")
    reader = PnmReader

    def recognises(self, start: bytes) -> bool:
        """See `Format.recognises`."""
        return _HEADER.match(start + b"\n") is not None or (
            start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace()
        )

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return PpmImageFile(file)
