"""All that a file says beside its pixels, as one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, NamedTuple

from diinn_fast.metadata import geotiff, microscopy, xmp
from diinn_fast.metadata.exif import Exif
from diinn_fast.metadata.resolution import Resolution
from diinn_fast.metadata.scaling import Scaling
from diinn_fast.metadata.space import Space
from diinn_fast.metadata.tags import Tag


class Rule(Enum):
    """What becomes of an entry when the picture is enlarged."""

    COPY = "copied"
    RESCALE = "rescaled"
    CONVERT = "copied, or converted to a profile"
    DROP = "dropped, and named"


class Text(NamedTuple):
    """A text with a keyword, as PNG has them; language and translated keyword may be empty."""

    keyword: str
    text: str
    language: str = ""
    translated: str = ""


@dataclass(frozen=True)
class Metadata:
    """What a file says about the picture; an entry that it does not have is None or empty.

    `ENTRIES` has the name and the rule of each.

    Attributes:
        icc: ICC profile; pixels are never converted.
        resolution: pixels per length, or the shape of a pixel.
        exif: camera, date, place, and what else EXIF has.
        xmp: the packet, UTF-8.
        iptc: records of IPTC-IIM.
        comment: free text.
        texts: texts with keywords.
        colour: PNG's chunks that tell the colour space, (name, data).
        geo: GeoTIFF's and GDAL's tags, little-endian.
        ome: OME-XML.
        imagej: ImageJ's description.
        space: physical grid of an array.
        attributes: of a Zarr store, as JSON.
        levels: lowest and highest sample that there can be, where that is less than the type holds.
        lost: what cannot be kept in any output, by name.
    """

    icc: bytes | None = None
    resolution: Resolution | None = None
    exif: Exif | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: str | None = None
    texts: tuple[Text, ...] = ()
    colour: tuple[tuple[str, bytes], ...] = ()
    geo: tuple[Tag, ...] = ()
    ome: str | None = None
    imagej: str | None = None
    space: Space | None = None
    attributes: str | None = None
    levels: tuple[float, float] | None = None
    lost: tuple[str, ...] = ()

    @property
    def dpi(self) -> tuple[float, float] | None:
        """(horizontal, vertical) dots per inch, None if unknown."""
        return None if self.resolution is None else self.resolution.dpi

    @property
    def nbytes(self) -> int:
        """About how large it is in a file."""
        return sum(len(repr(value)) for _, value in self.entries())

    def entries(self) -> Iterator[tuple[str, Any]]:
        """(name of the field, value) of those that there are, but for what is lost."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and value != () and entry.name != "lost":
                yield entry.name, value

    def upright(self, orientation: object, size: tuple[int, int]) -> Metadata:
        """Of the picture alone, turned as its orientation said; ``size``: (height, width) as
        stored. Says "lost" of what cannot be turned.
        """
        turned = orientation in (5, 6, 7, 8)
        lost = list(self.lost)
        known = self
        if self.xmp is not None and xmp.has_gain_map(self.xmp):
            lost.append("an HDR gain map")
        if self.ome is not None and microscopy.ome_loses(self.ome):
            lost.append("OME-XML's shapes")
        # Turning these would need more than numbers: they are named instead.
        if orientation in range(2, 9):
            for name in ("geo", "ome", "imagej", "space"):
                if getattr(self, name):
                    lost += describe(name, getattr(self, name))
            known = replace(known, geo=(), ome=None, imagej=None, space=None)
        if known.exif is not None and known.exif.damaged:
            lost.append("damaged EXIF tags")
        exif = _if(known.exif, lambda e: e.upright(orientation, size))
        return replace(
            known,
            resolution=_if(known.resolution, lambda r: r.turned() if turned else r),
            exif=None if exif is None or exif.empty else exif,
            xmp=_if(known.xmp, lambda x: xmp.upright(x, orientation, size)),
            ome=_if(known.ome, microscopy.ome_alone),
            lost=tuple(dict.fromkeys(lost)),
        )

    def rescaled(self, old: tuple[int, int], new: tuple[int, int]) -> Metadata:
        """Of the upright picture of ``old`` (height, width) at another size."""
        if old == new:
            return self
        # Each kind of entry knows what to do when pixels get smaller.
        scaling = Scaling(old, new)
        lost = ("GDAL's statistics",) if geotiff.has_statistics(self.geo) else ()
        return replace(
            self,
            resolution=_if(self.resolution, lambda r: r.rescaled(scaling)),
            exif=_if(self.exif, lambda e: e.rescaled(scaling)),
            xmp=_if(self.xmp, lambda x: xmp.rescaled(x, scaling)),
            geo=geotiff.rescaled(self.geo, scaling),
            ome=_if(self.ome, lambda text: microscopy.ome_rescaled(text, scaling)),
            space=_if(self.space, lambda s: s.rescaled(scaling)),
            lost=self.lost + lost,
        )

    def colours_alone(self) -> Metadata:
        """What pixels mean, and nothing that tells of the picture: no metadata."""
        nodata = tuple(tag for tag in self.geo if tag.code == geotiff.NODATA)
        return Metadata(icc=self.icc, colour=self.colour, geo=nodata)


NOTHING = Metadata()
"""Metadata without any entry."""

ENTRIES: dict[str, tuple[str, Rule]] = {
    "icc": ("ICC profile", Rule.COPY),
    "resolution": ("resolution", Rule.RESCALE),
    "exif": ("EXIF", Rule.RESCALE),
    "xmp": ("XMP", Rule.RESCALE),
    "iptc": ("IPTC", Rule.COPY),
    "comment": ("a comment", Rule.COPY),
    "texts": ("text", Rule.COPY),
    "colour": ("colour chunks", Rule.CONVERT),
    "geo": ("georeference", Rule.RESCALE),
    "ome": ("OME-XML", Rule.RESCALE),
    "imagej": ("ImageJ's description", Rule.COPY),
    "space": ("the physical grid", Rule.RESCALE),
    "attributes": ("Zarr attributes", Rule.COPY),
    "levels": ("the sample range", Rule.COPY),
    "lost": ("", Rule.DROP),
}
"""Of each entry, how messages call it, and what becomes of it."""


def describe(name: str, value: Any) -> list[str]:
    """What a message calls the value of an entry: a name for each part that a user knows."""
    if name in _DESCRIBED:
        return _DESCRIBED[name](value)
    return [ENTRIES[name][0]]


def _describe_exif(exif: Exif) -> list[str]:
    tags = exif.main or exif.details or exif.interop
    return ["EXIF"] * bool(tags) + ["GPS"] * bool(exif.gps)


def _describe_geo(tags: tuple[Tag, ...]) -> list[str]:
    codes = {tag.code for tag in tags}
    named = ["georeference"] if codes & geotiff.GEO_TAGS else []
    named += ["GDAL metadata"] if geotiff.GDAL_METADATA in codes else []
    return named + (["nodata value"] if geotiff.NODATA in codes else [])


def _describe_resolution(resolution: Resolution) -> list[str]:
    if resolution.says_nothing:
        return []
    return ["resolution"] if resolution.unit else ["pixels that are not square"]


_DESCRIBED: dict[str, Callable[[Any], list[str]]] = {
    "exif": _describe_exif,
    "texts": lambda texts: [f'text "{text.keyword}"' for text in texts],
    "colour": lambda chunks: [f"colour ({chunk})" for chunk, _ in chunks],
    "geo": _describe_geo,
    "resolution": _describe_resolution,
    "lost": list,
}
"""Of the entries that hold more than one thing, or may say nothing, how messages call each."""


def _if(value: Any, change: Any) -> Any:
    return None if value is None else change(value)
