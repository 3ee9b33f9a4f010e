"""XMP: text that stays as it is, but for what it says of sizes, resolution and gain maps."""

from __future__ import annotations

import re
from fractions import Fraction

from diinn_fast.metadata.markup import elements, without
from diinn_fast.metadata.scaling import Scaling

_SIZES = {
    b"tiff:ImageWidth": 1,
    b"tiff:ImageLength": 0,
    b"exif:PixelXDimension": 1,
    b"exif:PixelYDimension": 0,
}
"""Which of (height, width) each is."""

_FACTORS = {b"tiff:XResolution": "across", b"tiff:YResolution": "down"}

_ATTRIBUTE = re.compile(rb"\s(?:hdrgm:\w+|xmpNote:HasExtendedXMP)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
"""What points to further pictures or segments of the file, which its output has not; elements do so
too.
"""


def has_gain_map(xmp: bytes) -> bool:
    """Whether it describes an HDR gain map, that is, a further picture of the file."""
    return b"hdrgm:" in xmp


def _alone(xmp: bytes) -> bytes:
    """Without what points to further pictures or segments."""
    text = _ATTRIBUTE.sub(b"", xmp).decode("latin-1")  # any bytes, and the same again
    return without(text, elements(text, _points_elsewhere)).encode("latin-1")


def _points_elsewhere(name: str, attributes: str) -> bool:
    return name.startswith("hdrgm:") or name.endswith("Container:Directory")


def upright(xmp: bytes, orientation: object, size: tuple[int, int]) -> bytes:
    """Of the picture turned as its orientation said, and alone; ``size`` as stored."""
    xmp = _alone(xmp)
    turned = orientation in (5, 6, 7, 8)
    xmp = _changed(xmp, b"tiff:Orientation", lambda old: b"1")
    if turned:
        xmp = re.sub(
            rb"tiff:([XY])Resolution",
            lambda found: b"tiff:%cResolution" % (b"Y" if found[1] == b"X" else b"X"),
            xmp,
        )
    return _sized(xmp, (size[1], size[0]) if turned else size)


def rescaled(xmp: bytes, scaling: Scaling) -> bytes:
    """Of the picture at another size."""
    for name, axis in _FACTORS.items():
        factor: Fraction = getattr(scaling, axis)
        xmp = _changed(xmp, name, lambda old, factor=factor: _times(old, factor))
    return _sized(xmp, scaling.new)


def _sized(xmp: bytes, size: tuple[int, int]) -> bytes:
    for name, axis in _SIZES.items():
        xmp = _changed(xmp, name, lambda old, axis=axis: str(size[axis]).encode())
    return xmp


def _changed(xmp: bytes, name: bytes, change) -> bytes:  # type: ignore[no-untyped-def]
    """The value of a property, as attribute or element."""
    word = re.escape(name)
    pattern = rb"(%s\s*=\s*[\"']|<%s>)(\s*[\d/.]+\s*)(?=[\"'<])" % (word, word)
    return re.sub(pattern, lambda found: found[1] + change(found[2].strip()), xmp)


def _times(old: bytes, factor: Fraction) -> bytes:
    try:
        value = Fraction(old.decode()) * factor
    except (ValueError, ZeroDivisionError):
        return old
    near = value.limit_denominator(10_000)
    return f"{near.numerator}/{near.denominator}".encode()
