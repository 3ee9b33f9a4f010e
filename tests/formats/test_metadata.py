"""What a file says is in the output, at its new size, or named in one warning."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tifffile
import torch
from PIL import ImageCms
from torch import Tensor

from diinn_fast.errors import UpscaleError
from diinn_fast.formats import Image, by_suffix, read_image, write_image
from diinn_fast.formats.info import app13
from diinn_fast.inference.kinds import as_request
from diinn_fast.inference.sinks import Layout, fitted_to, open_sink
from diinn_fast.inference.sources import open_source
from diinn_fast.metadata import Exif, Metadata, Resolution, chosen, fitted, warn_of_lost
from diinn_fast.metadata.exif import PREFIX
from diinn_fast.metadata.tags import Tag
from tests.helpers.pictures import SRGB, noise, refused

HEIGHT, WIDTH = 24, 36
PICTURE = PIL.Image.fromarray(noise(3, height=HEIGHT, width=WIDTH))
XMP = b"""<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF><rdf:Description tiff:Orientation="1"
exif:PixelXDimension="36"><dc:title>Beach</dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"""
IPTC = b"\x1c\x02\x69\0\x05Beach"
NOTE = bytes(range(200))

IN = {
    "jpg": ["exif", "gps", "xmp", "iptc", "comment", "icc", "resolution"],
    "webp": ["exif", "gps", "xmp", "icc"],
    "png": ["exif", "gps", "xmp", "text", "icc", "resolution"],
    "gamma.png": ["gAMA", "cHRM", "exif", "text", "aspect"],
    "hdr.png": ["cICP", "mDCV", "resolution", "sBIT", "tIME", "bKGD"],
    "tif": ["exif", "gps", "xmp", "iptc", "icc", "resolution", "georeference", "nodata value"],
    "ome.tif": ["OME-XML", "resolution"],
    "ij.tif": ["ImageJ", "resolution"],
    "gif": ["comment", "ICC profile of a GIF"],
    "avif": ["exif", "gps", "xmp", "icc"],
    "hdr.avif": ["cICP", "gain map"],
    "heic": ["exif", "gps", "xmp", "icc"],
    "hdr.heic": ["cICP"],
    "jp2": ["exif", "gps", "xmp", "iptc", "icc", "resolution", "GeoJP2", "XML"],
    "bmp": ["icc", "resolution"],
    "gamma.bmp": ["colour space of a BMP"],
    "ppm": ["comment"],
    "zarr": ["exif", "gps", "xmp", "iptc", "comment", "icc", "resolution", "Zarr attributes"],
}
"""What the inputs say, by kind."""

OUT = ["png", "jpg", "webp", "tif", "npy", "zarr", "ome.zarr"]

WORDS = {"exif": "EXIF", "gps": "GPS", "xmp": "XMP", "iptc": "IPTC", "icc": "ICC profile"} | {
    **{"aspect": "not square", "text": 'text "parameters"', "comment": "comment"},
}
"""How the warning calls them, where it is not by this name."""


def exif_block(orientation: int | None = None, thumbnail: bool = False) -> bytes:
    exif = PIL.Image.Exif()
    exif[271] = "ACME"
    exif[256] = WIDTH
    if orientation:
        exif[274] = orientation
    details = exif.get_ifd(34665)
    details[36867] = "2019:07:04 12:00:00"
    details[40962] = WIDTH
    details[40963] = HEIGHT
    details[37396] = (10, 6, 4)
    details[37500] = NOTE
    gps = exif.get_ifd(34853)
    gps[1] = "N"
    gps[2] = (48.0, 8.0, 15.0)
    block = exif.tobytes()
    return block + b"\xff\xd8thumbnail" if thumbnail else block


def chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def png(*chunks: tuple[bytes, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", **options)
    data = buffer.getvalue()
    return data[:33] + b"".join(chunk(*each) for each in chunks) + data[33:]


ADOBE = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
GEO = [
    (33550, 12, 3, (10.0, 10.0, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
    (42113, 2, 2, "0", True),
]
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels BigEndian="true" DimensionOrder="XYCZT" ID="Pixels:0" SizeC="3" '
    f'SizeT="1" SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeZ="1" Type="uint8" PhysicalSizeX="0.5" '
    'PhysicalSizeY="0.25" PhysicalSizeXUnit="\u00b5m"><Channel ID="Channel:0:0" '
    'SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
)
IMAGEJ = "ImageJ=1.53\nimages=1\nunit=um\n"


def tif(path: Path, tags: list[tuple[Any, ...]], **options: object) -> None:
    tifffile.imwrite(
        path, np.asarray(PICTURE), photometric="rgb", metadata=None, extratags=tags,
        software=False, **options,
    )  # fmt: skip


def full_tif(path: Path) -> None:
    """Written by us, of metadata that the other tests find in files of others."""
    exif = Exif.parse(exif_block())
    tags = tuple(
        Tag(code, kind, count, value.encode() + b"\0" if kind == 2 else
            struct.pack(f"<{count}{'H' if kind == 3 else 'd'}", *value))
        for code, kind, count, value, _ in GEO
    )  # fmt: skip
    metadata = Metadata(SRGB, Resolution(300, 300), exif, XMP, IPTC, geo=tags)
    write_image(path, image(metadata))


def image(metadata: Metadata) -> Image:
    return Image(torch.rand(3, HEIGHT, WIDTH), metadata=metadata)


def saved(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, form, **options)
    return buffer.getvalue()


def gif() -> bytes:
    """With a profile where some programs put it."""
    data = saved("GIF", comment="hello")
    end = data.index(b"\x21\xfe")
    return data[:end] + b"\x21\xff\x0bICCRGBG1012\x03abc\0" + data[end:]


def hdr(form: str) -> bytes:
    """With the code points of BT.2020 and PQ; of AVIF, with the mark of a gain map."""
    data = saved(form).replace(b"colrnclx\0\x01\0\x0d", b"colrnclx\0\x09\0\x10")
    return data.replace(b"av01Color\0", b"av01tmap \0", 1)


def heif(**options: Any) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return hdr("HEIF") if not options else saved("HEIF", **options)


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + name + data


def jp2() -> bytes:
    """With boxes that Pillow does not write, before the one of the pixels."""
    data = saved("JPEG2000")
    header, pixels = data.index(b"jp2h") - 4, data.index(b"jp2c") - 4
    dots = struct.pack(">HHHHBB", 11811, 1, 11811, 1, 0, 0)
    inside = data[header + 8 : header + 30] + box(b"colr", b"\2\0\0" + SRGB)
    inside += box(b"res ", box(b"resc", dots))
    marks = {
        b"JpgTiffExif->JP2": exif_block(),
        bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): XMP,
        bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"): IPTC,
        bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"): b"II*\0",
    }
    boxes = b"".join(box(b"uuid", mark + each) for mark, each in marks.items())
    return data[:header] + box(b"jp2h", inside) + boxes + box(b"xml ", b"<a/>") + data[pixels:]


def bmp(kind: bytes, profile: bytes = b"") -> bytes:
    """With the long header, which Pillow does not write."""
    data = saved("BMP", dpi=(300, 300))
    body = data[54:]
    colour = kind[::-1] + bytes(36) + struct.pack("<3I", 2**16, 2**16, 2**16)
    behind = struct.pack("<4I", 4, 124 + len(body), len(profile), 0)
    header = struct.pack("<I", 124) + data[18:54] + bytes(16) + colour + behind
    start = b"BM" + struct.pack("<IHHI", 138 + len(body) + len(profile), 0, 0, 138)
    return start + header + body + profile


def ppm() -> bytes:
    data = saved("PPM")
    return data[:3] + b"# hello\n" + data[3:]


FOREIGN: dict[str, Callable[[], bytes]] = {
    "gif": gif,
    "avif": lambda: saved("AVIF", exif=exif_block(), xmp=XMP, icc_profile=SRGB),
    "hdr.avif": lambda: hdr("AVIF"),
    "heic": lambda: heif(exif=exif_block(), xmp=XMP, icc_profile=SRGB),
    "hdr.heic": heif,
    "jp2": jp2,
    "bmp": lambda: bmp(b"MBED", SRGB),
    "gamma.bmp": lambda: bmp(bytes(4)),
    "ppm": ppm,
}
"""Inputs of formats that are read only."""


def make(kind: str, path: Path) -> None:
    """An input that says all that `IN` lists."""
    exif = exif_block()
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    if kind == "jpg":
        PICTURE.save(
            path, exif=exif, xmp=XMP, comment="hello", icc_profile=SRGB, dpi=(300, 300),
            extra=app13(IPTC),
        )  # fmt: skip
    elif kind == "webp":
        PICTURE.save(path, exif=exif, xmp=XMP, icc_profile=SRGB)
    elif kind == "png":
        path.write_bytes(png(exif=exif, pnginfo=text, icc_profile=SRGB, dpi=(300, 300)))
    elif kind == "gamma.png":
        chunks = (b"gAMA", struct.pack(">I", 100_000)), (b"cHRM", ADOBE)
        shape = b"pHYs", struct.pack(">IIB", 2, 1, 0)
        path.write_bytes(png(*chunks, shape, exif=exif, pnginfo=text))
    elif kind == "hdr.png":
        colour = (b"cICP", bytes([9, 16, 0, 1])), (b"mDCV", bytes(24))
        time = b"tIME", bytes([7, 227, 7, 4, 12, 0, 0])
        others = (b"sBIT", b"\5\6\5"), time, (b"bKGD", bytes(6))
        path.write_bytes(png(*colour, *others, dpi=(300, 300)))
    elif kind == "tif":
        full_tif(path)
    elif kind == "ome.tif":
        tif(path, [(270, 2, 1, OME.encode() + b"\0", True)])
    elif kind == "ij.tif":
        tif(path, [(270, 2, 1, IMAGEJ, True)], resolution=(2.0, 4.0), resolutionunit="NONE")
    elif kind in FOREIGN:
        path.write_bytes(FOREIGN[kind]())
    else:
        metadata = Metadata(
            SRGB, Resolution(300, 300), Exif.parse(exif), XMP, IPTC, "hello",
            attributes=json.dumps({"sample": 7}),
        )  # fmt: skip
        pieces(path, np.asarray(PICTURE), metadata)


def pieces(path: Path, samples: np.ndarray, metadata: Metadata) -> None:
    """Write piece by piece what `fitted_to` leaves, and warn as a render does."""
    metadata, lost = fitted_to(path, metadata, samples.shape[2])
    part = path.with_name(path.name + ".part")
    part.mkdir()
    height, width, channels = samples.shape
    layout = Layout(height, width, channels, "uint8", metadata)
    sink = open_sink(path, layout, part=part, resume=False)
    sink.write(0, 0, samples)
    sink.finish()
    sink.close()
    warn_of_lost(path, lost)


def enlarge(source: Path, target: Path, *, by_pieces: bool) -> None:
    """Twice as large, by repeating pixels."""
    if by_pieces:
        opened = open_source(source)
        old = opened.height, opened.width
        metadata = opened.metadata.rescaled(old, (2 * old[0], 2 * old[1]))
        rgb, _ = opened.read(0, old[0], 0, old[1])
        opened.close()
        samples = (rgb.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
        pieces(target, samples.repeat(2, 0).repeat(2, 1), metadata)
        return
    found = read_image(source)
    old = found.rgb.shape[1], found.rgb.shape[2]
    rgb = found.rgb.repeat_interleave(2, 1).repeat_interleave(2, 2)
    metadata = found.metadata.rescaled(old, (2 * old[0], 2 * old[1]))
    write_image(target, replace(found, rgb=rgb, metadata=metadata))


def found_in(path: Path) -> set[str]:
    """What an independent reader finds in an output."""
    if path.suffix == ".npy":
        return set()
    if path.is_dir():
        return found_in_zarr(path)
    found = found_by_pillow(path)
    if path.suffix == ".png":
        found |= found_in_chunks(path.read_bytes())
    if path.suffix == ".tif":
        found |= found_in_tags(path)
    return found


def named(facts: dict[str, bool]) -> set[str]:
    return {name for name, holds in facts.items() if holds}


def found_in_zarr(path: Path) -> set[str]:
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    stored = attributes["diinn_fast"].get("metadata", {})
    names = {"texts": "text", "ome": "OME-XML", "imagej": "ImageJ"}
    found = {names.get(name, name) for name in stored} | set(stored.get("colour", {}))
    return found | named(
        {
            "gps": "exif" in found,
            "aspect": stored.get("resolution", [0, 0, 1])[2] == "",
            "georeference": "geo" in stored,
            "nodata value": "geo" in stored,
            "Zarr attributes": "sample" in attributes,
        }
    )


def found_by_pillow(path: Path) -> set[str]:
    with PIL.Image.open(path) as picture:
        picture.load()
        exif = picture.getexif()
        info = dict(picture.info)
        profile = info.get("icc_profile", b"")
        comments = (info.get("comment"), info.get("Comment"), exif.get(270))
        square = info.get("jfif_unit") != 0 or info["jfif_density"] != (2, 1)
        oblong = exif.get(282) == 2 * exif.get(283, 0) and exif.get(296) == 1
        inches = 282 in exif and exif.get(296) in (2, 3)
        jfif = path.suffix == ".jpg" and info.get("jfif_unit") in (1, 2)
        return named(
            {
                "exif": exif.get(271) == "ACME" and len(exif.get_ifd(34665)) > 3,
                "gps": exif.get_ifd(34853).get(2) == (48, 8, 15),
                "xmp": b"Beach" in bytes(info.get("xmp", b"")),
                "icc": profile == SRGB,
                "iptc": info.get("photoshop", {}).get(0x0404) == IPTC,
                "comment": b"hello" in comments or "hello" in comments,
                "text": info.get("parameters") == "a cat",
                "gAMA": b"PNG's gAMA and cHRM" in profile,
                "cHRM": b"PNG's gAMA and cHRM" in profile,
                "resolution": inches or jfif,
                "aspect": oblong or not square,
            }
        )


def found_in_chunks(data: bytes) -> set[str]:
    """Of a PNG."""
    found = {name for name in ("gAMA", "cHRM", "cICP", "mDCV") if name.encode() in data}
    physical = data.partition(b"pHYs")[2][:9]
    unit = physical[8:]
    return found | named({"aspect": unit == b"\0", "resolution": unit not in (b"", b"\0")})


def found_in_tags(path: Path) -> set[str]:
    """Of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        return named(
            {
                "iptc": 33723 in tags and tags[33723].value == IPTC,
                "georeference": {33550, 33922, 34735} <= set(tags.keys()),
                "nodata value": tags.valueof(42113) == "0",
                "OME-XML": tiff.is_ome,
                "ImageJ": tiff.is_imagej,
                "resolution": 282 in tags,
            }
        )


PAIRS = [
    (kind, out, by_pieces)
    for kind in IN
    for out in OUT
    for by_pieces in (False, True)
    if (by_suffix(f"x.{out}").streams if by_pieces else by_suffix(f"x.{out}").writes)
    and (by_pieces or kind != "zarr")
]


@pytest.mark.parametrize(("kind", "out", "by_pieces"), PAIRS)
def test_all_that_a_file_says_is_kept_or_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, out: Tensor, by_pieces: Any
) -> None:
    source = tmp_path / f"in.{kind.split('.')[-1]}"
    make(kind, source)
    caplog.clear()
    enlarge(source, tmp_path / f"out.{out}", by_pieces=by_pieces)
    found = found_in(tmp_path / f"out.{out}")
    assert len(caplog.records) <= 1
    for what in IN[kind]:
        named = WORDS.get(what, what) in caplog.text
        assert (what in found) != named, (what, found, caplog.text)


@pytest.mark.parametrize("out", OUT)
def test_metadata_is_read_back_from_every_output(tmp_path: Path, out: str) -> None:
    """What an output holds, its reader finds: outputs can be inputs."""
    form = by_suffix(f"x.{out}")
    metadata = Metadata(SRGB, Resolution(300, 200), Exif.parse(exif_block()), XMP, IPTC, "hello")
    path = tmp_path / f"x.{out}"
    pieces(path, np.asarray(PICTURE), metadata) if form.streams else write_image(
        path, image(metadata)
    )
    kept, _ = fitted(metadata, form.can_hold, 3)
    opened = open_source(path)
    again = dict(opened.metadata.entries())
    assert set(dict(kept.entries())) <= set(again) | {"comment"}
    for name in ("icc", "xmp", "iptc"):
        assert again.get(name) == getattr(kept, name)
    if "resolution" in form.holds:
        assert opened.metadata.dpi == pytest.approx((300, 200), abs=0.02)
    assert not opened.metadata.lost
    opened.close()


# -- what changes with the size --------------------------------------------------------------------


def exif_of(path: Path) -> PIL.Image.Exif:
    with PIL.Image.open(path) as picture:
        return picture.getexif()


@pytest.mark.parametrize("out", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_exif_tells_the_new_size_and_no_turn(
    tmp_path: Path, out: str, orientation: int | None
) -> None:
    block = exif_block(orientation, thumbnail=True)
    PICTURE.save(tmp_path / "in.jpg", exif=block, dpi=(300, 300))
    enlarge(tmp_path / "in.jpg", tmp_path / f"out.{out}", by_pieces=False)
    exif = exif_of(tmp_path / f"out.{out}")
    size = (2 * HEIGHT, 2 * WIDTH) if orientation == 6 else (2 * WIDTH, 2 * HEIGHT)
    with PIL.Image.open(tmp_path / f"out.{out}") as picture:
        assert picture.size == size
    details = exif.get_ifd(34665)
    assert (details[40962], details[40963]) == size and exif[256] == size[0]
    assert exif.get(274) == (None if orientation is None else 1)
    centre = (2 * (HEIGHT - 6), 20) if orientation == 6 else (20, 12)
    assert details[37396] == (*centre, 8)
    assert details[37500] == NOTE
    assert b"thumbnail" not in (tmp_path / f"out.{out}").read_bytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_maker_note_keeps_its_place_and_order(order: str) -> None:
    exif = PIL.Image.Exif()
    exif.endian = order
    exif.get_ifd(34665)[37500] = NOTE
    exif[271] = "ACME"
    block = Exif.parse(exif.tobytes())
    assert block.order == order
    assert block.tobytes().index(NOTE) == exif.tobytes().index(NOTE) - len(PREFIX)
    assert Exif.parse(block.tobytes()) == block


def test_a_maker_note_in_a_tiff_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PICTURE.save(tmp_path / "x.jpg", exif=exif_block())
    enlarge(tmp_path / "x.jpg", tmp_path / "y.tif", by_pieces=False)
    assert "maker note" in caplog.text
    assert NOTE not in (tmp_path / "y.tif").read_bytes()


def test_statistics_of_the_samples_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = '<GDALMetadata><Item name="ACQ">1</Item><Item name="STATISTICS_MEAN">7</Item>'
    tif(tmp_path / "x.tif", [(42112, 2, 1, text + "</GDALMetadata>", True)])
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=False)
    assert "statistics" in caplog.text
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        kept = tiff.pages.first.tags[42112].value
    assert "ACQ" in kept and "STATISTICS" not in kept


def test_resolution_grows_with_the_pixels_in_its_own_unit(tmp_path: Path) -> None:
    tif(tmp_path / "x.tif", [], resolution=(1000.0, 500.0), resolutionunit="CENTIMETER")
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=True)
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        tags = tiff.pages.first.tags
        assert tags[282].value == (2000, 1) and tags[283].value == (1000, 1)
        assert tags[296].value == 3
    enlarge(tmp_path / "y.tif", tmp_path / "z.png", by_pieces=True)
    with PIL.Image.open(tmp_path / "z.png") as picture:
        assert picture.info["dpi"] == pytest.approx((10160, 5080))


@pytest.mark.parametrize("point", [False, True])
def test_the_same_ground_lies_under_the_picture(tmp_path: Path, point: bool) -> None:
    keys = (34735, 3, 8, (1, 1, 0, 1, 1025, 0, 1, 2 if point else 1), True)
    tie = (33922, 12, 6, (3.0, 5.0, 0.0, 500.0, 400.0, 0.0), True)
    tif(tmp_path / "x.tif", [GEO[0], tie, keys, GEO[3]])
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=False)
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        tags = tiff.pages.first.tags
        assert tags[33550].value == (5.0, 5.0, 0.0)
        assert tags[34735].value == keys[3]
        # The centre of pixel 3 is at 3.5 along the picture, and at 7 along the larger one.
        first = (6.5, 10.5) if point else (6.0, 10.0)
        assert tags[33922].value == (*first, 0.0, 500.0, 400.0, 0.0)


def test_a_rotated_grid_too(tmp_path: Path) -> None:
    matrix = np.array([[8.0, -6, 0, 100], [-6, -8, 0, 200], [0, 0, 0, 0], [0, 0, 0, 1]])
    tif(tmp_path / "x.tif", [(34264, 12, 16, tuple(matrix.ravel()), True)])
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=False)
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        larger = np.array(tiff.pages.first.tags[34264].value).reshape(4, 4)
    corner = np.array([WIDTH, HEIGHT, 0, 1])
    np.testing.assert_allclose(larger @ (corner * [2, 2, 1, 1]), matrix @ corner)


def test_ome_xml_tells_smaller_pixels(tmp_path: Path) -> None:
    make("ome.tif", tmp_path / "x.tif")
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=True)
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        assert tiff.series[0].shape == (2 * HEIGHT, 2 * WIDTH, 3)
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.25, 0.125)
        assert pixels["BigEndian"] is False
    enlarge(tmp_path / "y.tif", tmp_path / "z.ome.zarr", by_pieces=True)
    attributes = json.loads((tmp_path / "z.ome.zarr" / "zarr.json").read_text())["attributes"]
    multiscale = attributes["ome"]["multiscales"][0]
    assert multiscale["axes"][1]["unit"] == "micrometer"
    step = multiscale["datasets"][0]["coordinateTransformations"][0]
    assert step["scale"] == pytest.approx([1.0, 0.0625, 0.125])


def test_imagej_finds_its_calibration(tmp_path: Path) -> None:
    make("ij.tif", tmp_path / "x.tif")
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=False)
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        assert tiff.imagej_metadata["unit"] == "um"
        tags = tiff.pages.first.tags
        assert tags[282].value == (4, 1) and tags[283].value == (8, 1) and tags[296].value == 1
    enlarge(tmp_path / "x.tif", tmp_path / "y.png", by_pieces=False)
    physical = (tmp_path / "y.png").read_bytes().partition(b"pHYs")[2][:9]
    assert struct.unpack(">IIB", physical) == (4_000_000, 8_000_000, 1)


def test_names_and_colours_of_ome_zarr_channels_are_named_as_lost(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(tmp_path / "x.ome.zarr"), zarr_format=3)
    array = group.create_array("0", shape=(1, HEIGHT, WIDTH), dtype="uint8")
    array[:] = noise(1, height=HEIGHT, width=WIDTH)[None, ..., 0]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": [{"name": name} for name in "cyx"], "datasets": [level]}],
        "omero": {"channels": [{"label": "DAPI", "color": "0000FF"}]},
    }
    opened = open_source(tmp_path / "x.ome.zarr")
    assert opened.metadata.lost == ("OME-Zarr's names, colours and windows of channels",)
    opened.close()
    enlarge(tmp_path / "x.ome.zarr", tmp_path / "y.ome.zarr", by_pieces=True)
    # Of our own output the same is made anew, so nothing is lost.
    again = open_source(tmp_path / "y.ome.zarr")
    assert again.metadata.lost == ()
    again.close()


def test_ome_zarr_keeps_its_physical_grid(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(tmp_path / "x.ome.zarr"), zarr_format=3)
    array = group.create_array("0", shape=(HEIGHT, WIDTH), dtype="uint8")
    array[:] = noise(1, height=HEIGHT, width=WIDTH)[..., 0]
    steps = [
        {"type": "scale", "scale": [2.0, 4.0]},
        {"type": "translation", "translation": [10.0, 20.0]},
    ]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs["sample"] = 7
    enlarge(tmp_path / "x.ome.zarr", tmp_path / "y.ome.zarr", by_pieces=True)
    attributes = json.loads((tmp_path / "y.ome.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["sample"] == 7
    multiscale = attributes["ome"]["multiscales"][0]
    assert multiscale["axes"][1]["unit"] == "micrometer"
    scale, translation = multiscale["datasets"][0]["coordinateTransformations"]
    # Centres of pixels: a quarter of an old pixel before the old first one.
    assert scale["scale"] == [1.0, 1.0, 2.0]
    assert translation["translation"] == [0.0, 9.5, 19.0]


def test_xmp_tells_the_new_size_and_no_turn(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "x.jpg", xmp=XMP.replace(b'Orientation="1"', b'Orientation="6"'))
    enlarge(tmp_path / "x.jpg", tmp_path / "y.png", by_pieces=False)
    with PIL.Image.open(tmp_path / "y.png") as picture:
        assert picture.size == (2 * HEIGHT, 2 * WIDTH)
        xmp = picture.info["xmp"]
    assert b'tiff:Orientation="1"' in xmp and b'PixelXDimension="48"' in xmp


# -- what is converted -----------------------------------------------------------------------------


def seen(profile: bytes, colour: tuple[int, int, int]) -> tuple[int, ...]:
    """A colour of a profile, as sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    change = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    picture = ImageCms.applyTransform(PIL.Image.new("RGB", (1, 1), colour), change)
    assert picture is not None
    result: tuple[int, ...] = np.array(picture)[0, 0].tolist()
    return tuple(result)


@pytest.mark.parametrize("details", [{40961: 65535}, {40961: 1}])
@pytest.mark.parametrize("out", ["png", "jpg", "webp", "tif"])
def test_a_cameras_adobe_rgb_gets_a_profile(tmp_path: Path, out: str, details: Any) -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(34665).update(details)
    if details[40961] == 1:
        exif.get_ifd(34665)[40965] = {1: "R03"}
    PICTURE.save(tmp_path / "x.jpg", exif=exif.tobytes())
    enlarge(tmp_path / "x.jpg", tmp_path / f"y.{out}", by_pieces=False)
    with PIL.Image.open(tmp_path / f"y.{out}") as picture:
        assert seen(picture.info["icc_profile"], (100, 180, 80)) == (0, 181, 70)


@pytest.mark.parametrize("out", ["jpg", "webp", "tif"])
def test_png_colour_becomes_a_profile(
    tmp_path: Path, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.png").write_bytes(png((b"gAMA", struct.pack(">I", 100_000))))
    enlarge(tmp_path / "x.png", tmp_path / f"y.{out}", by_pieces=False)
    with PIL.Image.open(tmp_path / f"y.{out}") as picture:
        assert seen(picture.info["icc_profile"], (128, 128, 128)) == (188, 188, 188)
    assert not caplog.records


def test_texts_find_their_tags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Author", "Jane")
    info.add_text("Comment", "hello")
    info.add_itxt("Title", "M\u00fcnchen \u4e2d", "de", "Titel")
    PICTURE.save(tmp_path / "x.png", pnginfo=info)
    enlarge(tmp_path / "x.png", tmp_path / "y.jpg", by_pieces=False)
    exif = exif_of(tmp_path / "y.jpg")
    assert exif[315] == "Jane" and exif_bytes(tmp_path / "y.jpg", 270) == "M\u00fcnchen \u4e2d"
    with PIL.Image.open(tmp_path / "y.jpg") as picture:
        assert picture.info["comment"] == b"hello"
    enlarge(tmp_path / "x.png", tmp_path / "z.png", by_pieces=False)
    with PIL.Image.open(tmp_path / "z.png") as picture:
        assert picture.text["Title"].lang == "de" and picture.text["Title"].tkey == "Titel"
    assert not caplog.records


def exif_bytes(path: Path, code: int) -> str | None:
    return read_image(path).metadata.exif.text(code)


@pytest.mark.parametrize(
    ("segment", "word"),
    [
        (b"\xff\xe2\0\x0aMPF\0abcd", "further pictures"),
        (b"\xff\xeb\0\x08JPabcd", "content credentials"),
        (b"\xff\xe5\0\x08odd  \0", "APP5"),
    ],
)
def test_what_no_output_holds_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, segment: bytes, word: str
) -> None:
    PICTURE.save(tmp_path / "x.jpg", extra=segment)
    enlarge(tmp_path / "x.jpg", tmp_path / "y.jpg", by_pieces=False)
    assert word in caplog.text


def test_a_gain_map_is_named_and_no_longer_promised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    xmp = b'<x><rdf:Description hdrgm:Version="1.0" dc:title="Beach"/></x>'
    PICTURE.save(tmp_path / "x.jpg", xmp=xmp)
    enlarge(tmp_path / "x.jpg", tmp_path / "y.jpg", by_pieces=False)
    assert "an HDR gain map" in caplog.text
    with PIL.Image.open(tmp_path / "y.jpg") as picture:
        assert b"hdrgm" not in picture.info["xmp"] and b"Beach" in picture.info["xmp"]


@pytest.mark.parametrize("name", [b"tIME", b"bKGD", b"oFFs", b"vpAg"])
def test_chunks_that_cannot_be_kept_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: bytes
) -> None:
    (tmp_path / "x.png").write_bytes(png((name, bytes(6))))
    enlarge(tmp_path / "x.png", tmp_path / "y.png", by_pieces=False)
    assert name.decode() in caplog.text


def test_unknown_tags_of_a_tiff_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tif(tmp_path / "x.tif", [(65000, 3, 1, 7, True)])
    enlarge(tmp_path / "x.tif", tmp_path / "y.tif", by_pieces=False)
    assert "tag 65000" in caplog.text


def test_damaged_exif_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PICTURE.save(tmp_path / "x.jpg", exif=PREFIX + b"II*\0\xff\xff\0\0")
    enlarge(tmp_path / "x.jpg", tmp_path / "y.png", by_pieces=False)
    assert "EXIF that cannot be read" in caplog.text


def test_exif_of_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diinn_fast.formats.tiff_writer.CLASSIC_MAX_BYTES", 0)
    full_tif(tmp_path / "x.tif")
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.is_bigtiff
        tags = tiff.pages.first.tags
        assert tags[34853].value["GPSLatitude"] == (48, 1, 8, 1, 15, 1)
        assert tags[34665].value["PixelXDimension"] == WIDTH
    assert read_image(tmp_path / "x.tif").metadata.exif.gps


# -- none, and objects -----------------------------------------------------------------------------


def test_none_keeps_what_pixels_mean() -> None:
    metadata = Metadata(SRGB, Resolution(300, 300), Exif.parse(exif_block()), XMP)
    assert chosen(metadata, "none") == Metadata(SRGB)
    assert chosen(metadata, "keep") == metadata
    with pytest.raises(UpscaleError, match="keep or none"):
        chosen(metadata, "all")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_pil_image_gives_its_metadata_on(orientation: int) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG", exif=exif_block(orientation), dpi=(300, 300), comment="hello")
    request = as_request(PIL.Image.open(buffer))
    height, width = request.images[0].rgb.shape[1:]
    planes = torch.zeros(3, 3 * height, 3 * width, dtype=torch.uint8)
    result = request.finish([planes])
    assert result.info["dpi"] == (900, 900) and result.info["comment"] == "hello"
    exif = result.getexif()
    assert exif[271] == "ACME" and exif[274] == 1
    assert exif.get_ifd(34665)[40962] == 3 * width
    without = as_request(PIL.Image.open(buffer), "none").finish([planes])
    assert not without.info


def test_the_texts_of_a_pil_image() -> None:
    buffer = io.BytesIO()
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat")
    PICTURE.save(buffer, "PNG", pnginfo=info)
    result = as_request(PIL.Image.open(buffer)).finish(
        [torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)]
    )
    assert result.info["parameters"] == "a cat"


def test_code_points_of_srgb_say_nothing_new() -> None:
    assert read_image(saved("AVIF")).metadata.colour == ()
    heic = heif(exif=exif_block())
    assert read_image(heic).metadata.colour == ()


def test_a_jpeg_2000_of_another_colour_space_is_refused() -> None:
    data = bytearray(saved("JPEG2000"))
    place = data.index(b"colr") + 4 + 3
    struct.pack_into(">I", data, place, 14)  # CIELab
    refused(lambda: read_image(bytes(data)), "colour space (14)", "sRGB")


def test_a_pnm_of_a_long_comment_keeps_its_depth() -> None:
    deep = (np.arange(6) * 10_000).astype(">u2")
    data = b"P5\n#" + b"x" * 9000 + b"\n3 2\n65535\n" + deep.tobytes()
    found = read_image(data)
    assert found.bits == 16
    assert found.rgb[0].ravel().tolist() == pytest.approx((deep / 65535).tolist())
    refused(lambda: read_image(b"P5\n#" + b"x" * 70_000 + b"\n3 2\n65535\n"), "header")
