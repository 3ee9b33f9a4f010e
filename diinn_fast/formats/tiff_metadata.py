"""What the tags of a TIFF say beside its samples, and the tags that say it.

Source: TIFF revision 6.0; Adobe's TIFF technical notes; XMP part 3, section 3.2 (tag 700).
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np

from diinn_fast.formats.tiff_job import OURS, made_by
from diinn_fast.metadata import Exif, Metadata, Resolution, Tag, geotiff, microscopy
from diinn_fast.metadata.exif import (
    DESCRIPTION,
    ORIENTATION,
    RESOLUTION_UNIT,
    SOFTWARE,
    STORAGE,
    X_RESOLUTION,
    Y_RESOLUTION,
)
from diinn_fast.metadata.fit import MAKER_NOTE
from diinn_fast.metadata.resolution import CENTIMETRE, INCH, METRE, UNKNOWN, exif_resolution
from diinn_fast.metadata.tags import Directories, Packer, ascii_tag

_XMP = 700
_IPTC = 33723
_PHOTOSHOP = 34377
_LOWEST = 340
_HIGHEST = 341
_IMAGEJ = (50838, 50839)

_ABOUT = frozenset({11, 269, 270, 271, 272, 285, 286, 287, 297, 305, 306, 315, 316, 318, 319}) | {
    *(18246, 18249, 33432, 36867, 37510, 40091, 40092, 40093, 40094, 40095, 50341),
}
"""Tags of the first directory that tell of the picture, and mean the same in EXIF."""

_SCALING = frozenset({X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT})
_UNITS = {1: UNKNOWN, 2: INCH, 3: CENTIMETRE}


def metadata_of_page(tiff: Any, page: Any) -> Metadata:
    """Of a page of a `tifffile.TiffFile`, as it is stored."""
    order = tiff.byteorder
    directories = Directories(tiff.filehandle, order, big=tiff.is_bigtiff)
    found = Exif.of(directories, page.offset, lambda code: code not in STORAGE)
    tags = {tag.code: tag for tag in found.little_endian().main}
    description = found.text(DESCRIPTION) or ""
    ome = microscopy.is_ome(description)
    imagej = microscopy.is_imagej(description)
    # What describes the samples, and not the picture, is no part of its EXIF.
    own = ome or imagej or description.startswith(("diinn_fast job ", '{"shape"'))
    left_out = set(tags) - _ABOUT - {ORIENTATION}
    exif = _exif_of_picture(found, left_out | ({DESCRIPTION} if own else set()))
    lost = [MAKER_NOTE] if exif.has_note else []
    exif = exif.without_note()
    silent = exif.without_main({ORIENTATION}).empty and not exif.damaged
    # What no entry below holds is named, so that nothing vanishes in silence.
    geo = geotiff.GEO_TAGS | geotiff.GDAL_TAGS
    unknown = _names(left_out - geo - _SCALING - {_XMP, _IPTC})
    return Metadata(
        icc=page.iccprofile or None,
        resolution=exif_resolution(found),
        exif=None if silent else exif,
        xmp=_bytes(tags, _XMP, end=b"\0"),
        iptc=_bytes(tags, _IPTC),
        geo=tuple(tag for code, tag in tags.items() if code in geo),
        ome=description if ome else None,
        imagej=description if imagej else None,
        levels=_levels(page) or (microscopy.ome_levels(description) if ome else None),
        lost=tuple(dict.fromkeys(lost + unknown)),
    )


def _levels(page: Any) -> tuple[float, float] | None:
    """What SMinSampleValue and SMaxSampleValue say, of all channels together."""
    try:
        low = float(np.min(page.tags.valueof(_LOWEST, 0)))
        high = float(np.max(page.tags.valueof(_HIGHEST)))
    except (TypeError, ValueError):
        return None
    return (low, high) if low < high else None


def _bytes(tags: dict[int, Tag], code: int, end: bytes = b"") -> bytes | None:
    """Of a tag, without padding by ``end``; None if it is absent or empty."""
    data = tags[code].data if code in tags else b""
    return (data.rstrip(end) if end else data) or None


def _exif_of_picture(found: Exif, left_out: set[int]) -> Exif:
    """Without those tags, and without our own name in Software."""
    software = OURS.sub("", found.text(SOFTWARE) or "")
    exif = found.without_main(left_out | {SOFTWARE})
    return exif.with_main(ascii_tag(SOFTWARE, software)) if software else exif


def _names(codes: set[int]) -> list[str]:
    """What messages call tags that are not kept."""
    names = {_PHOTOSHOP: "Photoshop data", **dict.fromkeys(_IMAGEJ, "ImageJ's overlays and notes")}
    return [names.get(code, f"tag {code}") for code in sorted(codes)]


def extra_tags(metadata: Metadata, dtype: str, channels: int, job: str) -> list[tuple[Any, ...]]:
    """Of the first page, as `tifffile.TiffWriter.write` takes them."""
    exif = (metadata.exif or Exif()).little_endian()
    software = [text for text in (exif.text(SOFTWARE), made_by(job)) if text]
    tags = list(exif.without_main({SOFTWARE, ORIENTATION, *STORAGE, *_SCALING}).main)
    tags.append(ascii_tag(SOFTWARE, "; ".join(software)))
    # OME and ImageJ describe the samples in the same tag as the picture's own description.
    if metadata.ome is not None or metadata.imagej is not None:
        ome = metadata.ome and microscopy.ome_stored(metadata.ome, dtype, channels)
        tags = [tag for tag in tags if tag.code != DESCRIPTION]
        tags.append(ascii_tag(DESCRIPTION, ome or metadata.imagej or ""))
    for code, kind, data in ((_XMP, 1, metadata.xmp), (_IPTC, 7, metadata.iptc)):
        if data is not None:
            tags.append(Tag(code, kind, len(data), data))
    tags += metadata.geo
    return [(tag.code, tag.kind, tag.items, tag.data, True) for tag in sorted(tags)]


def resolution_options(metadata: Metadata) -> dict[str, Any]:
    """Arguments of `tifffile.TiffWriter.write`."""
    value = metadata.resolution
    if value is None:
        return {}
    unit = CENTIMETRE if value.unit == METRE else value.unit
    number = next(number for number, name in _UNITS.items() if name == unit)
    return {"resolution": value.per(unit), "resolutionunit": number}


def fits_rational(value: Resolution) -> bool:
    """Whether TIFF's fractions can hold a resolution."""
    unit = CENTIMETRE if value.unit == METRE else value.unit
    return all(1e-9 < number < 2**32 - 1 for number in value.per(unit))


def append_directories(file: BinaryIO, metadata: Metadata, *, big: bool) -> None:
    """Put EXIF's own directories behind a finished little-endian TIFF, and behind them the first
    directory anew, with pointers to them: tifffile writes no such pointers.
    """
    exif = (metadata.exif or Exif()).little_endian()
    end = file.seek(0, 2)
    file.write(bytes(end % 2))
    packer = Packer("<", end + end % 2, big=big)
    pointers = exif.pack_below(packer)
    if not pointers:
        return
    count, size, word, start = ("<Q", 20, "<Q", 8) if big else ("<H", 12, "<I", 4)
    width = struct.calcsize(word)
    # The first directory as it is: its entries hold values, or offsets that stay.
    file.seek(start)
    (first,) = struct.unpack(word, file.read(width))
    file.seek(first)
    (number,) = struct.unpack(count, file.read(struct.calcsize(count)))
    entries = [file.read(size) for _ in range(number)]
    following = file.read(width)
    for tag in pointers:
        entries.append(struct.pack("<HH" + word[1], tag.code, tag.kind, 1) + tag.data)
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    # Our pointers go among the entries, which are sorted by code.
    file.seek(0, 2)
    file.write(packer.data)
    moved = file.tell()
    file.write(struct.pack(count, len(entries)) + b"".join(entries) + following)
    file.seek(start)
    file.write(struct.pack(word, moved))
