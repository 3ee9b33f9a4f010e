"""Elements of XML that is kept as text."""

from __future__ import annotations

import pytest

from diinn_fast.metadata import geotiff, microscopy, xmp
from diinn_fast.metadata.markup import elements, without
from diinn_fast.metadata.scaling import Scaling
from diinn_fast.metadata.tags import Tag

MANY = 50_000
"""Beginnings without an end: looking from each to the end of the text would not end."""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<a><b>1</b>2</a>", "<a>2</a>"),
        ("<a><b x='1'/>2</a>", "<a>2</a>"),
        ("<b>1<b>2</b>3</b>4", "4"),
        ("<b>1<b/>3</b>4", "4"),
        ("<b>1</b >2<b >3</b>4", "24"),
        ("<bc>1</bc><b-c>2</b-c><a:b>3</a:b>", "<bc>1</bc><b-c>2</b-c><a:b>3</a:b>"),
        ("1</b>2", "1</b>2"),
        ("<b>1", "<b>1"),
    ],
)
def test_elements_are_found_with_what_lies_in_them(text: str, left: str) -> None:
    assert without(text, elements(text, lambda name, _: name == "b")) == left


@pytest.mark.parametrize(
    "text",
    [
        b"<hdrgm:a>", b"<hdrgm:a ", b"<Container:Directory>", b" " * 10, b"<x" + b"hdrgm:" * 2,
        b' hdrgm:a="', b" hdrgm:a='", b"tiff:XResolution = ",
    ],
)  # fmt: skip
def test_xmp_is_looked_through_once(text: bytes) -> None:
    turned = xmp.upright(text * MANY, 6, (4, 5))
    xmp.rescaled(turned, Scaling((5, 4), (10, 8)))


@pytest.mark.parametrize(
    "text",
    [
        "<Pixels ", "<ROI>", "<ROI ", "<a:ROI>", "<UUID>", ' UUID="a', " UUID = ", " " * 10,
        " SizeX = ", ' PhysicalSizeX="1', "<a",
    ],
)  # fmt: skip
def test_ome_xml_is_looked_through_once(text: str) -> None:
    text = "<OME " + text * MANY
    assert not microscopy.ome_loses(text)
    alone = microscopy.ome_rescaled(microscopy.ome_alone(text), Scaling((5, 4), (10, 8)))
    microscopy.ome_stored(alone, "uint8", 3)
    microscopy.ome_resolution(alone)


@pytest.mark.parametrize("text", [b'<Item name="STATISTICS_X">', b"<Item ", b" " * 10])
def test_gdals_metadata_is_looked_through_once(text: bytes) -> None:
    tag = Tag(geotiff.GDAL_METADATA, 2, len(text) * MANY, text * MANY)
    assert not geotiff.has_statistics((tag,))
    geotiff.rescaled((tag,), Scaling((5, 4), (10, 8)))


def test_gdals_metadata_keeps_its_bytes() -> None:
    data = "<GDALMetadata><Item name='place'>Zürich</Item></GDALMetadata>\0".encode()
    tag = Tag(geotiff.GDAL_METADATA, 2, len(data), data)
    assert geotiff.rescaled((tag,), Scaling((5, 4), (10, 8))) == (tag,)
