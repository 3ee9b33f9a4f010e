"""TIFFs are read by their own tags, alike in memory and by region; what is no picture is refused.

Files are written by tifffile, or tag by tag where no library writes them.
"""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

from diinn_fast.formats import Image, read_image, tiff_source, write_image
from diinn_fast.formats.tiff_tags import MOST_PAGES
from diinn_fast.inference.sources import open_source
from tests.helpers.pictures import noise, refused, to_samples

H = 23
W = 37


def regions(path: Path) -> np.ndarray:
    """All samples [h, w, c] of a file, read by windows."""
    source = open_source(path)
    rows = [0, 11, source.height]
    bands = []
    for top, bottom in pairwise(rows):
        rgb, alpha = source.read(top, bottom, 0, source.width)
        planes = [rgb[:1] if source.grey else rgb, *([] if alpha is None else [alpha])]
        bands.append(np.concatenate([plane.numpy() for plane in planes]))
    values = np.concatenate(bands, axis=1).transpose(1, 2, 0)
    source.close()
    if source.dtype == "float32":
        return values
    return np.floor(values * np.iinfo(source.dtype).max + 0.5).astype(source.dtype)


def both(path: Path) -> np.ndarray:
    """Samples of a file, which must be the same from memory and by region."""
    image = read_image(path)
    planes = [image.rgb[:1] if image.grey else image.rgb]
    planes += [] if image.alpha is None else [image.alpha]
    whole = np.concatenate([plane.numpy() for plane in planes]).transpose(1, 2, 0)
    by_region = regions(path)
    if image.bits != 32:
        whole = np.floor(whole * (2**image.bits - 1) + 0.5)
    np.testing.assert_array_equal(whole.astype(by_region.dtype), by_region)
    return by_region


def refused_by_both(path: Path, *words: str) -> None:
    refused(lambda: read_image(path), *words)
    refused(lambda: open_source(path), *words)


# -- channels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    ("count", "photometric", "extra"),
    [
        (4, "rgb", [0]),
        (4, "rgb", None),
        (5, "rgb", [0, 0]),
        (5, "rgb", [2, 0]),
        (2, "minisblack", [0]),
        (4, "minisblack", [0, 0, 0]),
    ],
)
def test_bands_that_are_no_alpha_are_never_dropped(
    tmp_path: Path, count: int, photometric: str, extra: list[int] | None, planar: str
) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (H, W, count), np.uint8)
    stored = samples if planar == "contig" else samples.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "x.tif", stored, photometric=photometric, extrasamples=extra or [0],
        planarconfig=planar,
    )  # fmt: skip
    if extra is None:
        without_tag(tmp_path / "x.tif", 338)
    refused_by_both(tmp_path / "x.tif", f"has {count} channels", "pictures of their own")


def without_tag(path: Path, code: int) -> None:
    """Turn a tag into a private one, so that readers do not find it."""
    data = path.read_bytes()
    entry = struct.pack("<HH", code, 3)
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HH", 65000, 3)))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_separate_planes(tmp_path: Path, channels: int, bits: int, compression: str | None) -> None:
    samples = noise(channels, bits, H, W)
    tifffile.imwrite(
        tmp_path / "x.tif", samples.transpose(2, 0, 1), planarconfig="separate",
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=[2] if channels in (2, 4) else None, compression=compression, rowsperstrip=7,
    )  # fmt: skip
    np.testing.assert_array_equal(both(tmp_path / "x.tif"), samples)


def test_16_bit_grey_and_alpha(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif", noise(2, 16, H, W), photometric="minisblack", planarconfig="contig",
        extrasamples=[2],
    )  # fmt: skip
    np.testing.assert_array_equal(both(tmp_path / "x.tif"), noise(2, 16, H, W))


# -- pages -----------------------------------------------------------------------------------------


def test_a_first_page_that_is_a_thumbnail_is_not_the_picture(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(noise(3, height=8, width=8), photometric="rgb", subfiletype=1, subifds=1)
        tiff.write(noise(3, height=H, width=W), photometric="rgb")
    refused_by_both(tmp_path / "x.tif", "begins with a thumbnail")
    (tmp_path / "x.tif").rename(tmp_path / "x.dng")
    refused_by_both(tmp_path / "x.dng", "camera raw", "develop it first")


def test_a_raw_by_its_tags(tmp_path: Path) -> None:
    tags = [(50706, "B", 4, (1, 4, 0, 0), True)]
    tifffile.imwrite(tmp_path / "x.tif", noise(3), photometric="rgb", extratags=tags)
    refused_by_both(tmp_path / "x.tif", "camera raw")


def test_a_mask_page_is_left_aside_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(noise(3), photometric="rgb")
        tiff.write(noise(1)[..., 0], photometric="minisblack", subfiletype=1)
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+b") as tiff:
        tiff.pages[1].tags[254].overwrite(4)
    np.testing.assert_array_equal(both(tmp_path / "x.tif"), noise(3))
    assert "mask" in caplog.text


def test_endless_pages_are_given_up_early(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for number in range(MOST_PAGES + 3):
            tiff.write(noise(1, height=4, width=4), subfiletype=int(number > 0), photometric=1)
    refused_by_both(tmp_path / "x.tif", "several pages")


# -- samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_are_read_as_they_are_written(
    tmp_path: Path, channels: int, compression: str | None
) -> None:
    values = np.random.default_rng(1).random((H, W, channels), np.float32)
    tifffile.imwrite(
        tmp_path / "x.tif", values, photometric="rgb" if channels > 1 else "minisblack",
        extrasamples=[2] if channels == 4 else None, compression=compression,
        predictor=3 if compression else None,
    )  # fmt: skip
    np.testing.assert_array_equal(both(tmp_path / "x.tif"), values)
    image = read_image(tmp_path / "x.tif")
    assert image.bits == 32
    write_image(tmp_path / "y.tif", image)
    np.testing.assert_allclose(both(tmp_path / "y.tif"), values, atol=1e-7)  # a mean of three
    write_image(tmp_path / "y.png", image)
    assert read_image(tmp_path / "y.png").bits == 16


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1832.0, ("values from", "1832", "range")),
        (float("nan"), ("NaN or infinite values", "replace")),
        (float("inf"), ("NaN or infinite values", "replace")),
    ],
)
def test_floats_that_are_no_picture(tmp_path: Path, value: float, words: tuple[str, ...]) -> None:
    values = np.full((H, W), 0.5, np.float32)
    values[3, 4] = value
    tifffile.imwrite(tmp_path / "x.tif", values)
    refused(lambda: read_image(tmp_path / "x.tif"), *words)
    refused(lambda: regions(tmp_path / "x.tif"), *words)


@pytest.mark.parametrize("scale", [1, 257])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_colour_maps_of_8_and_of_16_bits(
    tmp_path: Path, scale: int, tile: tuple[int, int] | None
) -> None:
    table = np.random.default_rng(2).integers(0, 256, (3, 256), np.uint16)
    indices = noise(1, height=H, width=W)[..., 0]
    tifffile.imwrite(
        tmp_path / "x.tif", indices, photometric="palette", colormap=table * scale, tile=tile
    )
    np.testing.assert_array_equal(both(tmp_path / "x.tif"), table.T[indices])


# -- how samples are stored ------------------------------------------------------------------------


def bare_tiff(
    *, order: str = "<", big: bool = False, strips: list[bytes], compression: int = 1,
    size: tuple[int, int] = (H, W), extra: dict[int, list[int]] | None = None,
) -> bytes:  # fmt: skip
    """A grey 8-bit TIFF, tag by tag; `extra` tags replace those of strips."""
    offset = 16 if big else 8
    offsets = [offset + sum(map(len, strips[:n])) for n in range(len(strips))]
    counts = [len(strip) for strip in strips]
    tags: dict[int, list[int]] = {
        256: [size[1]], 257: [size[0]], 258: [8], 259: [compression], 262: [1], 277: [1],
    }  # fmt: skip
    if extra is None:
        tags |= {273: offsets, 278: [-(-size[0] // len(strips))], 279: counts}
    else:
        tags |= {**extra, 324: offsets, 325: counts}
    body = b"".join(strips)
    start = offset + len(body)
    entry = 20 if big else 12
    tail = start + (8 if big else 2) + entry * len(tags) + (8 if big else 4)
    entries = b""
    values = b""
    for code, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{'Q' if big else 'L'}", *numbers)
        kind = 16 if big else 4
        entries += struct.pack(f"{order}HH{'Q' if big else 'L'}", code, kind, len(numbers))
        if len(numbers) == 1:
            entries += data
        else:
            entries += struct.pack(f"{order}{'Q' if big else 'L'}", tail + len(values))
            values += data
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
        table = struct.pack(f"{order}Q", len(tags)) + entries + bytes(8)
    else:
        head = mark + struct.pack(f"{order}HL", 42, start)
        table = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return head + body + table + values


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
def test_byte_orders_and_bigtiff(tmp_path: Path, order: str, big: bool, compression: int) -> None:
    samples = noise(1, height=H, width=W)
    strips = [samples[:12].tobytes(), samples[12:].tobytes()]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    (tmp_path / "x.tif").write_bytes(
        bare_tiff(order=order, big=big, strips=strips, compression=compression)
    )
    np.testing.assert_array_equal(both(tmp_path / "x.tif"), samples)


@pytest.mark.parametrize("compression", [8, 32773])
def test_what_lies_behind_a_strip_is_not_looked_at(tmp_path: Path, compression: int) -> None:
    samples = noise(1, height=H, width=W)
    strips = []
    for part in (samples[:12], samples[12:]):
        if compression == 8:
            strips.append(zlib.compress(part.tobytes()) + b"more than that")
        else:
            rows = [b"\x24" + row.tobytes() for row in part[..., 0]]  # 37 literal bytes
            strips.append(b"".join(rows) + b"\x02abc")
    path = tmp_path / "x.tif"
    path.write_bytes(bare_tiff(strips=strips, compression=compression))
    np.testing.assert_array_equal(both(path), samples)


@pytest.mark.parametrize("palette", [False, True])
def test_more_offsets_than_tiles(tmp_path: Path, palette: bool) -> None:
    samples = noise(1, height=16, width=32)
    tiles = [samples[:, :16].tobytes(), samples[:, 16:].tobytes(), bytes([77] * 256)]
    extra = {322: [16], 323: [16]}
    if palette:
        extra |= {262: [3], 320: [n * 257 for n in range(256)] * 3}
    path = tmp_path / "x.tif"
    path.write_bytes(bare_tiff(strips=tiles, size=(16, 32), extra=extra))
    np.testing.assert_array_equal(both(path)[..., :1], samples)


@pytest.mark.parametrize("codecs", [True, False])
def test_a_strip_that_inflates_without_end_stops_at_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codecs: bool
) -> None:
    bomb = zlib.compress(bytes(1 << 28), 9)
    monkeypatch.setattr(tiff_source, "_has_imagecodecs", lambda: codecs)
    path = tmp_path / "x.tif"
    path.write_bytes(bare_tiff(strips=[bomb], compression=8, size=(16, 16)))
    assert both(path).shape == (16, 16, 1)
    source = open_source(path, max_bytes=1 << 20)
    assert source.resident_bytes <= 1 << 20


def test_tags_of_any_damage_are_one_sentence(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(3)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    rng = np.random.default_rng(3)
    for number in range(60):
        broken = data.copy()
        for place in rng.integers(4, 200, 3):
            broken[place] = rng.integers(0, 256)
        path = tmp_path / f"{number}.tif"
        path.write_bytes(broken)
        try:
            image = read_image(path)
        except ValueError as error:
            assert type(error).__name__ == "ImageError" and "\n" not in str(error)
        else:
            assert image.rgb.ndim == 3


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xda"])
def test_damage_that_libraries_only_write_of_is_refused(
    capfd: pytest.CaptureFixture[str], marker: bytes
) -> None:
    """On the process's own stderr, libjpeg complains of a JPEG in a TIFF, and goes on."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(3)).save(buffer, "TIFF", compression="jpeg")
    broken = buffer.getvalue().replace(marker, b"\xff\x7f")
    refused(lambda: read_image(broken), "damaged")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_parts_that_are_not_stored_are_no_samples(tmp_path: Path, options: Any) -> None:
    """GDAL leaves out what is empty; at their place stands the header of the file."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, noise(1)[:4, :5, 0], metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages.first
        codes = (324, 325) if page.is_tiled else (273, 279)
        for code in codes:
            page.tags[code].overwrite(0)
    for read in (read_image, open_source):
        refused(lambda read=read: read(path), "x.tif", "sparse")  # type: ignore[misc]


@pytest.mark.parametrize(("tile", "code"), [(None, 278), ((16, 16), 322), ((16, 16), 323)])
def test_strips_and_tiles_without_rows(
    tmp_path: Path, tile: tuple[int, int] | None, code: int
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", noise(3), photometric="rgb", tile=tile, compression="zlib")
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+b") as tiff:
        tiff.pages.first.tags[code].overwrite(0)
    refused_by_both(tmp_path / "x.tif")


def test_tags_that_name_more_samples_than_there_are(tmp_path: Path) -> None:
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0, 0]}
    tifffile.imwrite(tmp_path / "x.tif", noise(3), **options)
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+b") as tiff:
        tiff.pages.first.tags[277].overwrite(1)
    refused_by_both(tmp_path / "x.tif")


# -- PNG -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_transparent_grey_has_the_bits_of_its_depth_alone(depth: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 8 // depth, 1, depth, 0, 0, 0, 0)
    row = b"\0" + bytes([256 - (1 << (8 - depth))])  # white, then black
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", b"\x00\xff")
    image = read_image(data + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))
    samples = to_samples(image)
    assert samples[0, 0].tolist() == [255, 0]
    assert (samples[0, 1:] == [0, 255]).all()


def test_an_image_of_floats_is_upscaled_as_floats(tmp_path: Path) -> None:
    import torch

    image = Image(torch.rand(3, 5, 6), bits=32)
    assert open_source(image).dtype == "float32"


@pytest.mark.parametrize(
    "samples", [noise(2), noise(1)[..., 0].astype(np.float32) / 255], ids=["alpha", "floats"]
)
def test_white_as_zero_with_more_than_grey_is_refused_by_name(
    tmp_path: Path, samples: np.ndarray
) -> None:
    extra = {"extrasamples": [2], "planarconfig": "contig"} if samples.ndim == 3 else {}
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="miniswhite", **extra)
    refused_by_both(tmp_path / "x.tif", "0 is white", "black as 0")
