"""What a file says and an output does not keep: named in one warning, never dropped in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_log = logging.getLogger(__name__)

_EXIF = 34665
_GPS = 34853
_COLOUR_SPACE = 40961
_UNCALIBRATED = 65535

_APPLIED = frozenset({_EXIF, _GPS, 254, 255, *range(256, 260), 262, 266, 273, 274, 277, 278, 279})
_KEPT = frozenset({282, 283, 284, 296, 305, 317, 320, 322, 323, 324, 325, 330, 338, 339, 34675})
"""Tags that describe how samples are stored, or that outputs have too."""

_TIFF_NAMES = {
    33550: "georeference",
    33922: "georeference",
    34264: "georeference",
    34735: "georeference",
    34736: "georeference",
    34737: "georeference",
    42112: "GDAL metadata",
    42113: "nodata value",
    700: "XMP",
    33723: "IPTC",
    34377: "Photoshop data",
    _EXIF: "EXIF",
    _GPS: "GPS",
    270: "description",
    306: "date",
    315: "artist",
    33432: "copyright",
    271: "camera",
    272: "camera",
}


def warn_of_unkept(name: str, things: Iterable[str]) -> None:
    """One warning that names each thing once, nothing if there is none."""
    once = list(dict.fromkeys(things))
    if once:
        _log.warning("%s has %s: not kept in the output.", name, ", ".join(once))


def unkept_exif(exif: Any, icc: bytes | None) -> Iterator[str]:
    """What a `PIL.Image.Exif` says beyond orientation and resolution."""
    tags = set(exif) - _APPLIED - _KEPT
    details = set(exif.get_ifd(_EXIF))
    if tags or details:
        yield "EXIF"
    if exif.get_ifd(_GPS):
        yield "GPS"
    if icc is None and exif.get_ifd(_EXIF).get(_COLOUR_SPACE) == _UNCALIBRATED:
        yield "a colour space other than sRGB (AdobeRGB) without a profile"


def unkept_picture(picture: Any) -> Iterator[str]:
    """What a PIL image of any format says beyond the picture."""
    try:
        yield from unkept_exif(picture.getexif(), picture.info.get("icc_profile"))
    except Exception:  # EXIF that cannot be read says nothing
        return
    yield from unkept_info(picture.info)
    if getattr(picture, "text", None):
        yield "text"


def unkept_info(info: Mapping[Any, Any]) -> Iterator[str]:
    """What Pillow found beside the pixels of a JPEG or WebP."""
    xmp = info.get("xmp", b"")
    if xmp:
        yield "XMP"
    if b"hdrgm" in (xmp if isinstance(xmp, bytes) else str(xmp).encode()):
        yield "an HDR gain map"
    if info.get("comment"):
        yield "a comment"
    if info.get("photoshop"):
        yield "Photoshop data"
    if info.get("jfif_unit") == 0 and len(set(info.get("jfif_density", ()))) == 2:
        yield "pixels that are not square"


def unkept_tags(tags: Any) -> Iterator[str]:
    """What the tags of a TIFF page (`tifffile.TiffTags`) say beyond the picture."""
    for tag in tags:
        name = _TIFF_NAMES.get(tag.code)
        if tag.code == 270:
            name = _description(str(tag.value))
        if name is not None:
            yield name


def unkept_chunks(chunks: Mapping[bytes, bytes]) -> Iterator[str]:
    """What the chunks of a PNG (name to the first bytes) say beyond the picture; an iTXt with XMP
    is called "XMP ".
    """
    profiled = b"iCCP" in chunks
    gamma = int.from_bytes(chunks.get(b"gAMA", b""), "big")
    if not profiled and b"sRGB" not in chunks:
        if b"gAMA" in chunks and gamma not in (45454, 45455):  # of sRGB, which viewers take it for
            yield "a gamma other than that of sRGB (gAMA)"
        if b"cHRM" in chunks and chunks[b"cHRM"] != _SRGB_PRIMARIES:
            yield "primaries other than those of sRGB (cHRM)"
    for chunk in (b"cICP", b"mDCV", b"cLLI"):
        if chunk in chunks:
            yield f"HDR colour ({chunk.decode()})"
    if b"eXIf" in chunks:
        yield "EXIF"
    if b"XMP " in chunks:
        yield "XMP"
    if any(chunk in chunks for chunk in (b"tEXt", b"zTXt", b"iTXt")):
        yield "text"
    physical = chunks.get(b"pHYs", b"")
    if len(physical) == 9 and physical[8] == 0 and physical[:4] != physical[4:8]:
        yield "pixels that are not square (pHYs)"


_SRGB_PRIMARIES = b"".join(
    n.to_bytes(4, "big") for n in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
)
"""White, red, green and blue as cHRM has them."""


def _description(text: str) -> str | None:
    if text.startswith("diinn_fast job "):
        return None
    if "<OME " in text or "<OME:OME" in text:
        return "OME-XML with the size of pixels"
    return "ImageJ's calibration" if text.startswith("ImageJ=") else "description"
