"""The table of formats: what is recognised, how each is read, and what is refused by name."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from diinn_fast.formats import (
    FORMATS,
    by_content,
    by_suffix,
    output_name,
    quality_of,
    read_image,
    readable_suffixes,
    streamed_suffixes,
    writable_suffixes,
)
from diinn_fast.inference.sources import open_source
from tests.helpers.pictures import noise, refused, to_samples

pillow_heif = pytest.importorskip("pillow_heif")


def encoded(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(picture).save(buffer, **options)
    else:
        picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_each_format_stands_in_the_table_once() -> None:
    assert len({form.key for form in FORMATS}) == len(FORMATS)
    suffixes = [suffix for form in FORMATS for suffix in form.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    for form in FORMATS:
        assert by_suffix(f"a/x{form.suffixes[0].upper()}") is form


def test_what_is_read_is_more_than_what_is_written() -> None:
    assert set(writable_suffixes()) < set(readable_suffixes())
    assert {".png", ".tif", ".npy", ".zarr", ".ome.zarr"} <= set(streamed_suffixes())
    assert not {".heic", ".gif", ".bmp"} & set(writable_suffixes())


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.jfif", "jpeg"), ("a.JPE", "jpeg"), ("a.jif", "jpeg"), ("a.apng", "png"), ("a", None)],
)
def test_other_suffixes_of_the_same_formats(name: str, key: str | None) -> None:
    form = by_suffix(name)
    assert (form and form.key) == key


def test_an_output_that_cannot_have_the_format_of_its_input_is_a_png(tmp_path: Path) -> None:
    assert output_name(tmp_path / "a.HEIC") == "a.HEIC.png"
    assert output_name(tmp_path / "a.jfif") == "a.jfif"


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("GIF", "L", {}),
        ("PPM", "RGB", {}),
        ("PPM", "L", {}),
        ("JPEG2000", "RGB", {}),
        ("JPEG2000", "RGBA", {}),
        ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}),
        ("HEIF", "RGB", {"quality": -1}),
    ],
)
def test_other_formats_are_read_from_bytes_files_and_paths(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any] | dict[str, int]
) -> None:
    picture = PIL.Image.fromarray(noise(3)).convert(mode)
    data = encoded(picture, kind, **options)
    form = by_content(data[:32])
    assert form is not None and form.reads
    expected = np.atleast_3d(np.asarray(PIL.Image.open(io.BytesIO(data)).convert(mode))) if (
        kind != "HEIF"
    ) else np.asarray(pillow_heif.open_heif(data).to_pillow())  # fmt: skip
    path = tmp_path / f"x{form.suffixes[0]}"
    path.write_bytes(data)
    with open(path, "rb") as file:
        for given in (data, io.BytesIO(data), file, path):
            got = to_samples(read_image(given))
            if mode == "L" and kind in ("BMP", "GIF"):
                got = got[..., :1]
            np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        open_source(data).read(0, 2, 0, 2)[0], open_source(path).read(0, 2, 0, 2)[0]
    )


def test_a_transparent_colour_of_a_gif(tmp_path: Path) -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    image = read_image(encoded(picture, "GIF", transparency=1))
    assert image.alpha.tolist() == [[[1.0, 0.0]]]
    assert image.rgb[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_a_gif_that_is_larger_than_its_picture_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = bytearray(encoded(PIL.Image.new("P", (4, 3)), "GIF"))
    read_image(bytes(data))
    assert not caplog.text
    data[6:8] = (9).to_bytes(2, "little")  # the width of the whole
    assert read_image(bytes(data)).rgb.shape[2] == 9
    assert "larger than the picture in it" in caplog.text


@pytest.mark.parametrize(("magic", "channels"), [("P5", 1), ("P6", 3)])
@pytest.mark.parametrize("most", [65535, 1023])
def test_a_pnm_of_16_bits_keeps_them(magic: str, channels: int, most: int) -> None:
    stored = np.random.default_rng(0).integers(0, most + 1, (3, 5, channels)).astype(">u2")
    image = read_image(f"{magic}\n# a comment\n5 3\n{most}\n".encode() + stored.tobytes())
    assert image.bits == 16 and image.grey == (channels == 1)
    np.testing.assert_array_equal(to_samples(image), np.floor(stored * (65535 / most) + 0.5))


def test_a_pnm_that_is_cut_off() -> None:
    refused(lambda: read_image(b"P6\n5 3\n65535\n" + bytes(20)), "damaged")
    refused(lambda: read_image(b"P6\n5 3\n255\n" + bytes(20)), "damaged")


def test_16_bit_grey_jpeg_2000() -> None:
    samples = noise(1, 16)[..., 0]
    image = read_image(encoded(PIL.Image.fromarray(samples), "JPEG2000"))
    np.testing.assert_array_equal(to_samples(image)[..., 0], samples)


def test_16_bit_colour_jpeg_2000_is_refused_by_name() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    data = imagecodecs.jpeg2k_encode(noise(3, 16), level=0)
    refused(lambda: read_image(data), "3 channels of 16 bits")


def test_a_10_bit_avif_is_said_to_lose_bits(caplog: pytest.LogCaptureFixture) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    data = imagecodecs.avif_encode(noise(3, 16) >> 6, bitspersample=10, level=100)
    assert read_image(data).bits == 8
    assert "10 or 12 bits per sample" in caplog.text


def test_heic_without_its_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PIL.Image.fromarray(noise(3)), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    refused(lambda: read_image(data), "HEIC", "diinn_fast[formats]")


@pytest.mark.parametrize("quality", [25, 40, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_that_of_its_encoder(quality: int) -> None:
    picture = PIL.Image.fromarray(noise(3))
    data = encoded(picture, "JPEG", quality=quality, optimize=True)
    assert quality_of(data) == pytest.approx(quality, abs=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_quality_of_other_files_is_not_known(kind: str) -> None:
    assert quality_of(encoded(PIL.Image.fromarray(noise(3)), kind)) is None


def test_a_jpeg_whose_tables_are_cut_off_has_no_quality() -> None:
    data = encoded(PIL.Image.fromarray(noise(3)), "JPEG", quality=60)
    assert quality_of(data[: data.index(b"\xff\xdb") + 20]) is None
