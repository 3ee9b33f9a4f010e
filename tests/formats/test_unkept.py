"""What a file says and an output does not keep is named in one warning line."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tifffile

import diinn_fast
from diinn_fast.formats import read_image
from diinn_fast.inference.kinds import as_request
from diinn_fast.inference.sources import open_source
from tests.helpers.pictures import SRGB, noise

PICTURE = PIL.Image.fromarray(noise(3))


def exif(**groups: dict[int, object]) -> PIL.Image.Exif:
    block = PIL.Image.Exif()
    block.update(groups.get("tags", {}))
    block.get_ifd(34665).update(groups.get("details", {}))
    block.get_ifd(34853).update(groups.get("gps", {}))
    return block


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


def with_chunk(name: bytes, data: bytes) -> bytes:
    png = encoded("PNG")
    check = struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + struct.pack(">I", len(data)) + name + data + check + png[33:]


def tagged(code: int, kind: str, value: object, count: int) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, noise(3), photometric="rgb", metadata=None,
        extratags=[(code, kind, count, value, True)],
    )  # fmt: skip
    return buffer.getvalue()


def text() -> PIL.PngImagePlugin.PngInfo:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat")
    return info


ADOBE = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
SAID = {
    "exif jpeg": (encoded("JPEG", exif=exif(tags={271: "camera"})), ["EXIF"]),
    "exif webp": (encoded("WEBP", exif=exif(tags={33432: "me"})), ["EXIF"]),
    "exif png": (encoded("PNG", exif=exif(tags={271: "camera"})), ["EXIF"]),
    "gps": (encoded("JPEG", exif=exif(gps={1: "N"})), ["GPS"]),
    "adobe": (encoded("JPEG", exif=exif(details={40961: 65535})), ["EXIF", "AdobeRGB"]),
    "xmp": (encoded("JPEG", xmp=b"<x:xmpmeta/>"), ["XMP"]),
    "gain map": (encoded("JPEG", xmp=b"<x hdrgm:Version='1'/>"), ["XMP", "HDR gain map"]),
    "comment": (encoded("JPEG", comment="hello"), ["comment"]),
    "text": (encoded("PNG", pnginfo=text()), ["text"]),
    "png xmp": (with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"), ["XMP"]),
    "gamma": (with_chunk(b"gAMA", struct.pack(">I", 100000)), ["gAMA"]),
    "primaries": (with_chunk(b"cHRM", ADOBE), ["cHRM"]),
    "cicp": (with_chunk(b"cICP", bytes([9, 16, 0, 1])), ["HDR colour (cICP)"]),
    "aspect": (with_chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0)), ["not square"]),
    "georeference": (tagged(33550, "d", (10.0, 10.0, 0.0), 3), ["georeference"]),
    "nodata": (tagged(42113, "s", "0", 2), ["nodata value"]),
    "description": (tagged(270, "s", "a slide", 8), ["description"]),
    "imagej": (tagged(270, "s", "ImageJ=1.53", 12), ["ImageJ's calibration"]),
    "ome": (tagged(270, "s", "<OME xmlns=''></OME>", 21), ["OME-XML"]),
    "tiff xmp": (tagged(700, "B", b"<x/>", 4), ["XMP"]),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_not_kept_is_named_in_memory_and_by_region(tmp_path, name, caplog):
    data, words = SAID[name]
    (tmp_path / "x").write_bytes(data)
    read_image(tmp_path / "x")
    open_source(tmp_path / "x").close()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert "not kept in the output" in lines[0]
    assert all(word in lines[0] for word in words)


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG", exif=exif(tags={274: 6}), dpi=(72, 72)),
        encoded("PNG", icc_profile=SRGB, dpi=(300, 300)),
        with_chunk(b"sRGB", b"\0"),
        with_chunk(b"gAMA", struct.pack(">I", 45455)),
        encoded("TIFF", icc_profile=SRGB, dpi=(300, 300)),
        encoded("WEBP"),
    ],
    ids=["orientation", "profile", "sRGB", "gamma of sRGB", "tiff", "webp"],
)
def test_what_is_applied_or_kept_is_not_named(data, caplog):
    read_image(data)
    assert not caplog.records


def test_a_pil_image_too(caplog):
    as_request(PIL.Image.open(io.BytesIO(encoded("JPEG", exif=exif(gps={1: "N"})))))
    assert "GPS" in caplog.text


def test_an_output_of_ours_says_nothing(tmp_path, caplog):
    diinn_fast.render(noise(3, height=8, width=8), tmp_path / "x.tif", scale=2)
    diinn_fast.render(noise(3, height=8, width=8), tmp_path / "x.png", scale=2)
    caplog.clear()
    assert np.isfinite(read_image(tmp_path / "x.tif").rgb).all()
    read_image(tmp_path / "x.png")
    assert not caplog.records
