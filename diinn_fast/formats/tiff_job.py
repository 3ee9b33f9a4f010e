"""What our own TIFFs say of themselves at the end of the tag Software: the version, the job that
made them, and a checksum of the file.
"""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from typing import Any, BinaryIO

from diinn_fast.metadata.exif import SOFTWARE
from diinn_fast.version import __version__

OURS = re.compile(r"(?:; )?diinn_fast \S+(?: job (\w+)(?: sum ([0-9a-f]{8}))?)?$")

_DIGITS = 8
_BLOCK = 2**20


def made_by(job: str) -> str:
    """The words for a file of which no checksum is known yet."""
    return f"diinn_fast {__version__}" + (f" job {job} sum {0:0{_DIGITS}x}" if job else "")


def put_checksum(file: BinaryIO) -> None:
    """Write the checksum of a finished file into its own place."""
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        place = _place(tiff.pages.first.tags[SOFTWARE])
    checksum = _checksum(file, place)
    file.seek(place)
    file.write(checksum)


def tiff_job(file: BinaryIO) -> str | None:
    """The fingerprint of the job that has made a file; None if there is none, this is no TIFF, or
    the file has changed since.
    """
    import tifffile

    with suppress(tifffile.TiffFileError, ValueError, KeyError, IndexError):
        with tifffile.TiffFile(file) as tiff:
            tag = tiff.pages.first.tags[SOFTWARE]
            place = _place(tag)
        found = OURS.search(str(tag.value))
        if found and found[2] and found[2].encode() == _checksum(file, place):
            return found[1]
    return None


def _place(tag: Any) -> int:
    return int(tag.valueoffset) + len(tag.value) - _DIGITS


def _checksum(file: BinaryIO, place: int) -> bytes:
    """CRC-32, in hexadecimal digits, of all bytes but those digits at ``place``."""
    file.seek(0)
    checksum = zlib.crc32(b"")
    left = place
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    file.seek(place + _DIGITS)
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:0{_DIGITS}x}".encode()
