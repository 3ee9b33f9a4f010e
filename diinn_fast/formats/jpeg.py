"""JPEG, and the main picture of a phone's multi-picture JPEG."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import PIL.Image
from PIL.JpegImagePlugin import jpeg_factory

from diinn_fast.errors import ImageError
from diinn_fast.formats.encoded import EncodedFormat
from diinn_fast.formats.info import app13
from diinn_fast.formats.layout import Layout
from diinn_fast.formats.pillow import PillowReader
from diinn_fast.metadata import Metadata, Resolution
from diinn_fast.metadata.exif import PREFIX
from diinn_fast.metadata.resolution import CENTIMETRE, INCH, UNKNOWN

_SEGMENT = 65_533
"""Most bytes of a segment."""

_MOST = 65_535

_BLOCK = 2**20
_SCAN = b"\xff\xda"
_MOST_SCANS = 500
"""Of all pictures of a file; encoders make about ten of each."""

_BYTES_OF_A_SCAN = 2**14
"""A file may have one more for so many bytes: in a film that follows the picture, as phones store
it, one pair of bytes in 65,536 looks like a scan by chance.
"""

_DENSITY = 13
"""Where the unit of JFIF's resolution stands in a file of libjpeg's."""

_STANDARD_SUM = 3688
"""Sum of the standard's example of a luma quantisation table (ITU-T T.81, Annex K)."""


class JpegReader(PillowReader):
    """Reads the first picture: previews and gain maps follow it."""

    def check_frames(self) -> None:
        """Refuse more scans than encoders make, each of which goes over the whole picture; of a
        multi-picture file the first is the picture.
        """
        self.file.seek(0)
        found = 0
        before = b""
        while block := self.file.read(_BLOCK):
            found += (before[-1:] + block).count(_SCAN)
            before = block
        most = _MOST_SCANS + self.file.tell() // _BYTES_OF_A_SCAN
        if found > most:
            raise ImageError(f"{self.name} is a JPEG of more than {most} scans: export it again.")


class Jpeg(EncodedFormat):
    """Written with full chroma resolution (4:4:4)."""

    key = "jpeg"
    lossless = False
    name = "JPEG"
    suffixes = (".jpg", ".jpeg", ".jfif", ".jpe", ".jif")
    magics = (b"\xff\xd8\xff",)
    alpha = False
    holds = frozenset({"icc", "resolution", "exif", "note", "xmp", "iptc", "comment"})
    max_side = 65_500  # the format's field goes to 65,535, libjpeg stops here
    reader = JpegReader
    most_reads = 2**14  # four for a segment; Pillow joins those of EXIF one by one

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """See `PillowFormat.plugin`."""
        return jpeg_factory(file)

    def quality(self, file: BinaryIO) -> int | None:
        """The quality at which libjpeg's table for luma is as coarse in the mean as the file's.

        libjpeg multiplies the standard's table by 50 / Q below Q = 50, by 2 - Q / 50 from there.
        Below 20 it is found too high, since entries end at 255.
        """
        try:
            tables = jpeg_factory(file).quantization
            factor = sum(tables[0]) / _STANDARD_SUM
        except Exception:  # a damaged file: reading it says so
            return None
        exact = 50 / factor if factor > 1 else 100 - 50 * factor
        return min(100, max(1, round(exact)))

    def encoder(self, layout: Layout, quality: int | None) -> dict[str, Any]:
        """Options of Pillow's encoder; ``quality`` None: without loss."""
        options: dict[str, Any] = {"quality": quality, "subsampling": "4:4:4"}
        metadata = layout.metadata
        if metadata.comment is not None:
            options["comment"] = metadata.comment.encode()
        if metadata.iptc is not None:
            options["extra"] = app13(metadata.iptc)
        return options

    def completed(self, encoded: bytes, metadata: Metadata) -> bytes:
        """With resolution in any unit, of which Pillow writes one."""
        value = metadata.resolution
        if value is None:
            return encoded
        jfif = struct.pack(">BHH", *_density(value))
        return encoded[:_DENSITY] + jfif + encoded[_DENSITY + len(jfif) :]

    def can_hold(self, entry: str, value: Any) -> bool:
        """Whether it fits into one segment, or into numbers of 16 bits."""
        if entry == "exif":
            return len(value.tobytes()) <= _SEGMENT - len(PREFIX)
        if entry == "xmp":
            return len(value) <= _SEGMENT - 29
        if entry == "iptc":
            return len(value) <= _SEGMENT - 28
        if entry == "comment":
            return len(value.encode()) <= _SEGMENT
        if entry == "resolution":
            return all(1 <= number <= _MOST for number in _density(value)[1:])
        return super().can_hold(entry, value)


def _density(value: Resolution) -> tuple[int, int, int]:
    """(unit, horizontal, vertical) of JFIF: whole numbers per inch, or per centimetre where the
    file says so and they are whole.
    """
    if value.unit == UNKNOWN:
        return (0, *value.aspect(_MOST))
    whole = value.unit == CENTIMETRE and all(n == int(n) for n in value.per(CENTIMETRE))
    horizontal, vertical = value.per(CENTIMETRE if whole else INCH)
    return 2 if whole else 1, int(horizontal + 0.5), int(vertical + 0.5)
