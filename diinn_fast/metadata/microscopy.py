"""How large a pixel is, in OME-XML and in ImageJ's description.

Source: OME data model 2016-06 (Pixels); ImageJ's TiffDecoder and FileInfo.
"""

from __future__ import annotations

import re

from diinn_fast.metadata.markup import elements, without
from diinn_fast.metadata.resolution import METRE, UNKNOWN, Resolution, resolution
from diinn_fast.metadata.scaling import Scaling

METRES = {
    **{"m": 1.0, "cm": 1e-2, "mm": 1e-3, "nm": 1e-9, "pm": 1e-12, "inch": 0.0254, "in": 0.0254},
    **dict.fromkeys(("\u00b5m", "\u03bcm", "um", "micron", "microns", "micrometer"), 1e-6),
    **{"millimeter": 1e-3, "nanometer": 1e-9, "centimeter": 1e-2, "meter": 1.0},
}

_NOT_ALONE = frozenset({"ROI", "ROIRef", "BinData", "UUID"})
"""Elements of shapes in pixels, of samples, and of names of files, of which the output is none."""

_OWN_NAME = re.compile(r"\sUUID\s*=\s*\"[^\"]*\"")

_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}


def is_ome(description: str) -> bool:
    """Whether a TIFF's description is OME-XML."""
    return "<OME " in description or "<OME:OME" in description


def is_imagej(description: str) -> bool:
    """Whether it is ImageJ's."""
    return description.startswith("ImageJ=")


def ome_rescaled(xml: str, scaling: Scaling) -> str:
    """OME-XML of the picture at another size, without shapes in pixels."""
    for name, size, factor in (
        ("X", scaling.new[1], scaling.across),
        ("Y", scaling.new[0], scaling.down),
    ):
        xml = re.sub(rf'(\sSize{name}\s*=\s*["\'])\d+', rf"\g<1>{size}", xml)
        found = re.search(rf'\sPhysicalSize{name}\s*=\s*["\']([^"\']+)', xml)
        if found is not None:
            xml = xml[: found.start(1)] + _divided(found[1], float(factor)) + xml[found.end(1) :]
    return xml


def ome_levels(xml: str) -> tuple[float, float] | None:
    """Lowest and highest sample, of what it says of significant bits."""
    found = re.search(r'\sSignificantBits\s*=\s*["\'](\d{1,2})["\']', xml)
    return (0.0, 2.0 ** int(found[1]) - 1) if found and int(found[1]) > 0 else None


def ome_alone(xml: str) -> str:
    """Without what points to other files or holds places in pixels."""
    found = elements(xml, lambda name, _: _plain(name) in _NOT_ALONE)
    return _OWN_NAME.sub("", without(xml, found))


def ome_loses(xml: str) -> bool:
    """Whether there are shapes, which `ome_alone` leaves out."""
    return any(True for _ in elements(xml, lambda name, _: _plain(name) == "ROI"))


def _plain(name: str) -> str:
    """An element's name without that of its namespace."""
    return name.rpartition(":")[2]


def ome_stored(xml: str, dtype: str, channels: int) -> str:
    """OME-XML of samples as they are stored in a TIFF of ours: interleaved and little-endian."""
    xml = re.sub(r'(<(?:\w+:)?Pixels\b[^<>]*?\sType\s*=\s*")[^"]*', rf"\g<1>{_TYPES[dtype]}", xml)
    xml = re.sub(r'(\sBigEndian\s*=\s*")[^"]*', r"\g<1>false", xml)
    xml = re.sub(r'(\sSizeC\s*=\s*")\d+', rf"\g<1>{channels}", xml)
    return re.sub(r'(\sSamplesPerPixel\s*=\s*")\d+', rf"\g<1>{channels}", xml)


def ome_resolution(xml: str) -> Resolution | None:
    """Pixels per metre; None if it tells no sizes."""
    values: list[float | None] = []
    for axis in "XY":
        size = re.search(rf'\sPhysicalSize{axis}\s*=\s*["\']([^"\']+)', xml)
        unit = re.search(rf'\sPhysicalSize{axis}Unit\s*=\s*["\']([^"\']+)', xml)
        metres = METRES.get(unit[1] if unit else "\u00b5m")
        try:
            values.append(1 / (float(size[1]) * metres) if size and metres else None)
        except (ValueError, ZeroDivisionError):
            return None
    horizontal, vertical = values
    return resolution(horizontal, vertical, METRE)


def imagej_resolution(description: str, stored: Resolution | None) -> Resolution | None:
    """Pixels per metre, of the TIFF's resolution in ImageJ's own unit."""
    found = re.search(r"^unit=(.+)$", description, re.MULTILINE)
    if stored is None or found is None or stored.unit != UNKNOWN:
        return stored
    unit = found[1].strip().replace("\\u00B5", "\u00b5")
    metres = METRES.get(unit)
    if metres is None:
        return stored
    return resolution(stored.horizontal / metres, stored.vertical / metres, METRE)


def _divided(text: str, factor: float) -> str:
    try:
        return repr(float(text) / factor)
    except ValueError:
        return text
