"""JPEG 2000, files (.jp2) and bare codestreams: read; 8 bits, or 16 bits of grey.

Source: ISO/IEC 15444-1, annex A.5.1 (SIZ, image and tile size).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import PIL.Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from diinn_fast.errors import ImageError
from diinn_fast.formats.pillow import PillowFormat, PillowReader

_CODESTREAM = b"\xff\x4f\xff\x51"
_FILE = b"\0\0\0\x0cjP  \r\n\x87\n"
_SEARCHED = 2**20
_COMPONENTS = 40
"""Offset of the number of components behind the start of the codestream."""


class Jpeg2000Reader(PillowReader):
    """Refuses the depths of which Pillow would keep a part."""

    def __init__(self, form: PillowFormat, name: str, file: BinaryIO) -> None:
        super().__init__(form, name, file)
        self._depths = _depths(file)

    @property
    def bits(self) -> int:
        """See `PillowReader.bits`."""
        return 16 if set(self._depths) == {16} else 8

    def check(self) -> None:
        """See `PillowReader.check`."""
        grey = len(self._depths) == 1
        if not (set(self._depths) == {8} or (grey and self._depths == [16])):
            kinds = ", ".join(str(depth) for depth in sorted(set(self._depths))) or "unknown"
            raise ImageError(
                f"{self.name} is a JPEG 2000 of {len(self._depths)} channels of {kinds} bits: "
                "convert it to PNG or TIFF of 8 or 16 bits."
            )
        super().check()


def _depths(file: BinaryIO) -> list[int]:
    """Bits of each component; negative where samples are signed."""
    file.seek(0)
    data = file.read(_SEARCHED)
    start = data.find(_CODESTREAM)
    if start < 0 or len(data) < start + _COMPONENTS + 2:
        return []
    (count,) = struct.unpack_from(">H", data, start + _COMPONENTS)
    sizes = data[start + _COMPONENTS + 2 :][: 3 * count : 3]
    return [-((size & 127) + 1) if size & 128 else size + 1 for size in sizes]


class Jpeg2000(PillowFormat):
    """Read only."""

    key = "jpeg2000"
    name = "JPEG 2000"
    suffixes = (".jp2", ".j2k", ".j2c", ".jpf", ".jpx")
    magics = (_CODESTREAM, _FILE)
    reader = Jpeg2000Reader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return Jpeg2KImageFile(file)
