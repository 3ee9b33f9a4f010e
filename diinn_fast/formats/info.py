"""What Pillow found beside the pixels of a picture, as `Metadata`, and back."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import PIL.Image

from diinn_fast.metadata import Exif, Metadata, Resolution, Text
from diinn_fast.metadata.resolution import CENTIMETRE, INCH, UNKNOWN, exif_resolution, resolution

_IPTC = 0x0404
_SAID_ELSEWHERE = {_IPTC, 0x03ED, 0x0409, 0x040C, 0x0425}
"""Photoshop's resources: IPTC, resolution, thumbnails, checksum of IPTC."""

_SEGMENTS = {
    b"http://ns.adobe.com/xmp/extension/\0": "extended XMP",
    b"urn:iso:std:iso:ts:21496:-1\0": "an HDR gain map",
    b"MPF\0": "further pictures (MPF)",
    b"FPXR\0": "FlashPix data",
    b"JP": "content credentials (JUMBF)",
}
"""Names of what segments of a JPEG begin with."""

_KNOWN_SEGMENTS = (
    *(b"JFIF", b"JFXX", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"),
    *(b"Photoshop 3.0\0", b"Adobe"),
)


def metadata_of(picture: PIL.Image.Image) -> Metadata:
    """Of a picture as it is stored, before it is turned."""
    info = picture.info
    exif, damaged = _exif(picture)
    lost = [*damaged, *_lost(picture)]
    # Pillow has one packet under two names: of PNG, the keyword of its text.
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    photoshop = info.get("photoshop")
    iptc = photoshop.get(_IPTC) if isinstance(photoshop, dict) else None
    return Metadata(
        icc=info.get("icc_profile") or None,
        resolution=_resolution(picture) or exif_resolution(exif),
        exif=exif,
        xmp=(xmp.encode() if isinstance(xmp, str) else xmp) or None,
        iptc=iptc or None,
        comment=_text(info.get("comment")) or None,
        texts=tuple(_texts(picture)),
        colour=tuple(_colour(info)),
        lost=tuple(dict.fromkeys(lost)),
    )


def info_of(metadata: Metadata, before: Mapping[Any, Any]) -> dict[Any, Any]:
    """``PIL.Image.info`` of an output; ``before``: that of the input."""
    info: dict[Any, Any] = {
        key: before[key] for key in ("gamma", "chromaticity", "srgb") if key in before
    }
    # Only entries that Pillow's writers know under these names.
    info |= {text.keyword: text.text for text in metadata.texts}
    entries = {
        "icc_profile": metadata.icc,
        "dpi": metadata.dpi,
        "exif": None if metadata.exif is None else metadata.exif.tobytes(),
        "xmp": metadata.xmp,
        "comment": metadata.comment,
        "photoshop": None if metadata.iptc is None else {_IPTC: metadata.iptc},
    }
    return info | {key: value for key, value in entries.items() if value is not None}


def app13(iptc: bytes) -> bytes:
    """The segment of a JPEG that holds IPTC, as a resource of Photoshop's."""
    resource = b"8BIM" + struct.pack(">H2xI", _IPTC, len(iptc)) + iptc + bytes(len(iptc) % 2)
    data = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def _exif(picture: PIL.Image.Image) -> tuple[Exif | None, list[str]]:
    """(EXIF of the file, or of what Pillow made of its tags; what is damaged)."""
    try:
        block = picture.info.get("exif") or picture.getexif().tobytes()
        exif = Exif.parse(block)
    except Exception:  # on damaged tags Pillow raises nearly every exception there is
        return None, ["EXIF that cannot be read"] if picture.info.get("exif") else []
    return (None if exif.empty and not exif.damaged else exif), []


def _resolution(picture: PIL.Image.Image) -> Resolution | None:
    info = picture.info
    unit = {0: UNKNOWN, 1: INCH, 2: CENTIMETRE}.get(info.get("jfif_unit", -1))
    if unit is not None:
        density = info.get("jfif_density", (0, 0))
        found = resolution(density[0], density[1], unit)
        if found is not None and not found.says_nothing:
            return found
    if "aspect" in info:  # of a PNG without a unit
        return resolution(info["aspect"][0], info["aspect"][1], UNKNOWN)
    # Of a JPEG without resolution Pillow says 72, of a TIFF 1.
    dpi = None if picture.format in ("JPEG", "MPO", "TIFF") else info.get("dpi")
    return resolution(dpi[0], dpi[1], INCH) if isinstance(dpi, (tuple, list)) else None


def _texts(picture: PIL.Image.Image) -> Iterator[Text]:
    found = getattr(picture, "text", None)
    if not isinstance(found, dict):  # a picture that was made of one keeps what is text in `info`
        found = {} if picture.format else _strings(picture.info)
    for keyword, text in found.items():
        if keyword != "XML:com.adobe.xmp":
            language = str(getattr(text, "lang", "") or "")
            translated = str(getattr(text, "tkey", "") or "")
            yield Text(str(keyword), str(text), language, translated)


def _strings(info: Mapping[Any, Any]) -> dict[str, str]:
    known = {"comment", "compression", "xmp"}
    return {
        key: value
        for key, value in info.items()
        if isinstance(key, str) and isinstance(value, str) and key not in known
    }


def _colour(info: Mapping[Any, Any]) -> Iterator[tuple[str, bytes]]:
    """PNG's chunks, of what Pillow read of them."""
    if isinstance(info.get("gamma"), float):
        yield "gAMA", struct.pack(">I", round(info["gamma"] * 100_000))
    if len(info.get("chromaticity", ())) == 8:
        numbers = [round(value * 100_000) for value in info["chromaticity"]]
        yield "cHRM", struct.pack(">8I", *numbers)
    if isinstance(info.get("srgb"), int):
        yield "sRGB", bytes([info["srgb"]])


def _lost(picture: PIL.Image.Image) -> Iterator[str]:
    photoshop = picture.info.get("photoshop")
    if isinstance(photoshop, dict) and set(photoshop) - _SAID_ELSEWHERE:
        yield "Photoshop data"
    if picture.info.get("aux") or picture.info.get("depth_images"):
        yield "auxiliary pictures (depth or gain map)"
    for marker, data in getattr(picture, "applist", ()):
        if marker == "COM" or data.startswith(_KNOWN_SEGMENTS):
            continue
        names = (name for start, name in _SEGMENTS.items() if data.startswith(start))
        yield next(names, f"{marker} data")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.rstrip(b"\0")
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")
    return value if isinstance(value, str) else ""
