"""JPEG 2000, files (.jp2) and bare codestreams: read; 8 bits, or 16 bits of grey.

Source: ISO/IEC 15444-1, annexes A.5.1 (SIZ, image and tile size) and I.5.3 (colour specification);
the identifiers of uuid boxes are those of XMP (part 3), GeoJP2, and by habit EXIF and IPTC.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from io import BytesIO
from typing import Any, BinaryIO

import PIL.Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from diinn_fast.errors import ImageError
from diinn_fast.formats.boxes import boxes
from diinn_fast.formats.pillow import PillowFormat, PillowReader
from diinn_fast.metadata import Exif, Metadata

_CODESTREAM = b"\xff\x4f\xff\x51"
_FILE = b"\0\0\0\x0cjP  \r\n\x87\n"
_SEARCHED = 2**20
_COMPONENTS = 40
"""Offset of the number of components behind the start of the codestream."""

_SPACES = (16, 17, 18)
"""sRGB, grey and sYCC, of those that a file names by a number."""

_EXIF = b"JpgTiffExif->JP2"
_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_IPTC = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")
_NAMES = {bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"): "georeference (GeoJP2)"}
_BOXES = {"xml ": "XML (a box of JPEG 2000)", "jp2i": "intellectual property (a box of JPEG 2000)"}


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
        for space in self._colours()[1]:
            if space not in _SPACES:
                raise ImageError(
                    f"{self.name} is a JPEG 2000 of another colour space ({space}) than grey, sRGB "
                    "and sYCC: convert it to sRGB."
                )
        super().check()

    def metadata(self) -> Metadata:
        """See `PillowReader`; of the boxes, of which Pillow passes over most."""
        found = super().metadata()
        lost: list[str] = []
        entries: dict[str, Any] = {"icc": self._colours()[0]}
        for name, data in boxes(self.file):
            if name == "uuid":
                _take_uuid(data[:16], data[16:], entries, lost)
            elif name in _BOXES:
                lost.append(_BOXES[name])
        return replace(found, **entries, lost=tuple(dict.fromkeys((*found.lost, *lost))))

    def _colours(self) -> tuple[bytes | None, list[int]]:
        """(the profile of a file, else the numbers of its colour spaces)."""
        profile = None
        spaces = []
        header = next((data for name, data in boxes(self.file) if name == "jp2h"), b"")
        for name, data in boxes(BytesIO(header)):
            if name != "colr" or len(data) < 3:
                continue
            # By number, or by a profile of a restricted or of any kind.
            if data[0] == 1:
                spaces.append(int.from_bytes(data[3:7], "big"))
            elif data[0] in (2, 3):
                profile = profile or data[3:]
        return (profile, []) if profile else (None, spaces)


def _take_uuid(kind: bytes, data: bytes, entries: dict[str, Any], lost: list[str]) -> None:
    """Put what a uuid box says into entries of `Metadata`, or its name among what is lost."""
    if kind == _EXIF:
        try:
            entries["exif"] = Exif.parse(data)
        except ValueError:
            lost.append("EXIF that cannot be read")
    elif kind == _XMP:
        entries["xmp"] = data
    elif kind == _IPTC:
        entries["iptc"] = data
    else:
        lost.append(_NAMES.get(kind, "a box of a program's own (uuid)"))


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
