"""Where on the ground a picture lies: GeoTIFF's and GDAL's tags.

Source: OGC GeoTIFF 1.1, sections 7.1 and 7.2; GDAL's notes on its own tags;
RPCs in GeoTIFF (OSGeo).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from diinn_fast.metadata.markup import Element, elements, without
from diinn_fast.metadata.scaling import Scaling
from diinn_fast.metadata.tags import DOUBLE, Tag

PIXEL_SCALE = 33550
TIE_POINTS = 33922
TRANSFORMATION = 34264
KEYS = 34735
RPC = 50844
GDAL_METADATA = 42112
NODATA = 42113

GEO_TAGS = frozenset({PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEYS, 34736, 34737, RPC})
GDAL_TAGS = frozenset({GDAL_METADATA, NODATA})

_RASTER_TYPE = 1025
_POINT = 2
_STATISTICS = ' name="STATISTICS_'
"""What attributes of an `Item` in GDAL's metadata have, if it is about the samples."""


def has_statistics(tags: tuple[Tag, ...]) -> bool:
    """Whether GDAL's metadata has statistics of the samples."""
    return any(True for tag in tags if tag.code == GDAL_METADATA for _ in _statistics(_text(tag)))


def _text(tag: Tag) -> str:
    """Of a tag, a character for each byte, whatever its encoding."""
    return tag.data.rstrip(b"\0").decode("latin-1")


def _statistics(text: str) -> Iterator[Element]:
    return elements(text, lambda name, about: name == "Item" and _STATISTICS in about)


def nodata(tags: tuple[Tag, ...]) -> float | None:
    """The sample value that GDAL's tag says stands for missing ones; None: there is no such."""
    for tag in tags:
        if tag.code == NODATA:
            try:
                return float(tag.data.rstrip(b"\0 ").decode("latin-1"))
            except ValueError:
                return None
    return None


def rescaled(tags: tuple[Tag, ...], scaling: Scaling) -> tuple[Tag, ...]:
    """Little-endian tags of the same ground under another grid of pixels."""
    # With "pixel is point", coordinates are of the centres of pixels.
    half = 0.5 if _is_point(tags) else 0.0
    return tuple(_rescaled(tag, scaling, half) for tag in tags)


def _rescaled(tag: Tag, scaling: Scaling, half: float) -> Tag:
    down = float(scaling.down)
    across = float(scaling.across)
    if tag.code == GDAL_METADATA:
        text = _text(tag)
        data = without(text, _statistics(text)).encode("latin-1") + b"\0"
        return tag._replace(items=len(data), data=data)
    if tag.kind != DOUBLE or tag.code not in (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, RPC):
        return tag
    # Each of these places pixels in the world, in its own way.
    values = np.frombuffer(tag.data, "<f8").copy()
    if tag.code == PIXEL_SCALE and len(values) >= 2:
        values[:2] = [_over(values[0], scaling.across), _over(values[1], scaling.down)]
    elif tag.code == TIE_POINTS and len(values) % 6 == 0:
        values[0::6] = (values[0::6] + half) * across - half
        values[1::6] = (values[1::6] + half) * down - half
    elif tag.code == TRANSFORMATION and len(values) == 16:
        grid = np.diag([1 / across, 1 / down, 1.0, 1.0])
        grid[:2, 3] = half / across - half, half / down - half
        values = (values.reshape(4, 4) @ grid).ravel()
    elif tag.code == RPC and len(values) == 92:
        # Offsets of line and sample count from the centre of the first pixel.
        values[2:4] = (values[2:4] + 0.5) * [down, across] - 0.5
        values[7:9] *= [down, across]
    return tag._replace(data=values.astype("<f8").tobytes())


def _over(value: float, factor: Fraction) -> float:
    return float(value * factor.denominator / factor.numerator)


def _is_point(tags: tuple[Tag, ...]) -> bool:
    keys = next((tag.data for tag in tags if tag.code == KEYS), b"")
    entries = struct.iter_unpack("<4H", keys[8 : len(keys) // 8 * 8])
    return any(key == _RASTER_TYPE and value == _POINT for key, _, _, value in entries)
