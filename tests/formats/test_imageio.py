"""Reading and writing image files: what is kept, what is applied, what is refused, and how files
appear.

Pictures are made on the fly. Where Pillow could hide a mistake that our code shares with it, the
check is made with an independent reader (tifffile, imagecodecs).
"""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageOps

from diinn_fast.errors import ImageError
from diinn_fast.formats import Image, by_suffix, check_writable, pillow, read_image, write_image
from diinn_fast.inference.bleed import bleed_alpha
from tests.helpers.pictures import (
    CHANNELS,
    GREY_PROFILE,
    SRGB,
    noise,
    refused,
    to_image,
    to_samples,
)

# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_lossless_formats_keep_every_bit(
    tmp_path: Path, suffix: str, bits: int, channels: int
) -> None:
    if suffix != ".png" and bits == 16 and channels == 2:
        pytest.skip("stored as RGB + alpha, see test_16bit_grey_alpha_tiff_becomes_rgba")
    path = tmp_path / f"x{suffix}"
    samples = noise(channels, bits)
    write_image(path, to_image(samples))
    image = read_image(path)
    np.testing.assert_array_equal(to_samples(image), samples)
    assert (image.bits, image.grey, image.alpha is not None) == (
        bits,
        channels < 3,
        channels in (2, 4),
    )
    assert image.rgb.dtype == torch.float32 and image.rgb.shape == (3, 23, 37)
    assert image.rgb.is_contiguous() and image.rgb.min() == 0 and image.rgb.max() == 1


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_independent_readers_see_the_same_samples(
    tmp_path: Path, suffix: str, bits: int, channels: int
) -> None:
    path = tmp_path / f"x{suffix}"
    samples = noise(channels, bits)
    write_image(path, to_image(samples))
    if suffix == ".png":
        seen = pytest.importorskip("imagecodecs").png_decode(path.read_bytes())
    else:
        seen = pytest.importorskip("tifffile").imread(path)
        if bits == 16 and channels == 2:
            samples = samples[..., [0, 0, 0, 1]]
    np.testing.assert_array_equal(seen.reshape(samples.shape), samples)


@pytest.mark.parametrize("height,width", [(1, 1), (1, 300), (300, 1), (700, 531)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16bit_files_of_any_size(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    """Thin ones, and one of several bands, smooth so that every row filter of PNG is in use."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 97, y * 89, (x + y) * 31, x * y], -1) + noise(4, 8, height, width)
    samples = (ramps % 65536).astype(np.uint16)
    write_image(tmp_path / f"x{suffix}", to_image(samples))
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / f"x{suffix}")), samples)


def test_png_row_filters_look_across_bands(tmp_path: Path) -> None:
    """Equal rows whose samples halve: the "average" filter fits best where the row above is taken
    for zero.
    """
    row = (0x8080 >> np.arange(8)) & 0xFFFF
    samples = np.broadcast_to(np.tile(row, 200)[None, :, None], (700, 1600, 1)).astype(np.uint16)
    write_image(tmp_path / "x.png", to_image(samples))
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.png")), samples)


def test_tags_of_a_tiff_stand_at_even_offsets(tmp_path: Path) -> None:
    """As TIFF 6.0 demands; strips of odd and even lengths come before them."""
    for width in range(1, 9):
        path = tmp_path / f"{width}.tif"
        write_image(path, to_image(noise(3, 8, 3, width)))
        assert struct.unpack("<4xI", path.read_bytes()[:8])[0] % 2 == 0


def test_16bit_grey_alpha_tiff_becomes_rgba(tmp_path: Path) -> None:
    samples = noise(2, 16)
    write_image(tmp_path / "x.tif", to_image(samples))
    image = read_image(tmp_path / "x.tif")
    assert not image.grey
    np.testing.assert_array_equal(to_samples(image), samples[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_formats_come_close_in_8_bits(
    tmp_path: Path, suffix: str, bits: int, channels: int
) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64)
    samples = np.broadcast_to(ramp[None, :, None], (48, 64, channels)).astype(noise(1, bits).dtype)
    write_image(tmp_path / f"x{suffix}", to_image(samples), quality=95)
    image = read_image(tmp_path / f"x{suffix}")
    assert image.bits == 8
    assert image.grey == (channels == 1 and suffix != ".webp")
    assert (image.rgb - to_image(samples).rgb).abs().max() < 6 / 255


def test_jpeg_keeps_full_chroma_resolution(tmp_path: Path) -> None:
    """Columns of pure red and blue survive 4:4:4; with 4:2:0 they would blur into purple."""
    samples = np.zeros((32, 32, 3), np.uint8)
    samples[:, ::2, 0] = samples[:, 1::2, 2] = 255
    write_image(tmp_path / "x.jpg", to_image(samples), quality=100)
    assert (read_image(tmp_path / "x.jpg").rgb - to_image(samples).rgb).abs().max() < 0.05


def test_quality_trades_size_for_fidelity(tmp_path: Path) -> None:
    image = to_image(noise(3))
    for suffix in (".jpg", ".webp"):
        for quality in (30, 95):
            write_image(tmp_path / f"{quality}{suffix}", image, quality=quality)
        assert (tmp_path / f"30{suffix}").stat().st_size < (tmp_path / f"95{suffix}").stat().st_size
        refused(partial(write_image, tmp_path / f"x{suffix}", image, quality=0), "quality 0")


def test_webp_keeps_alpha_exactly_and_colour_below_it(tmp_path: Path) -> None:
    """The encoder would rather flatten what is transparent: 40 and 60 side by side, below alpha
    0.
    """
    samples = np.full((64, 64, 4), 200, np.uint8)
    samples[..., 3] = noise(1, 8, 64, 64)[..., 0]
    samples[:32, :, 3] = 0
    samples[:32, :, :3] = 40
    samples[:32, 32:, :3] = 60
    write_image(tmp_path / "x.webp", to_image(samples))
    image = read_image(tmp_path / "x.webp")
    torch.testing.assert_close(image.alpha, to_image(samples).alpha, rtol=0, atol=0)
    assert (image.rgb - to_image(samples).rgb).abs().mean() < 2 / 255


# -- float to integer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value,level", [(0.7, 179), (178.4 / 255, 178), (178.6 / 255, 179), (-3.0, 0), (7.0, 255)]
)
def test_levels_are_clamped_and_rounded_half_up(tmp_path: Path, value: float, level: int) -> None:
    """0.7 * 255 is 178.5 in float32: up it is 179, to even or cut off it would be 178."""
    write_image(tmp_path / "x.png", Image(torch.full((3, 2, 2), value)))
    assert np.unique(np.asarray(PIL.Image.open(tmp_path / "x.png"))).tolist() == [level]


def test_16_bits_to_jpeg_round_instead_of_cutting_off(tmp_path: Path) -> None:
    write_image(
        tmp_path / "x.jpg", to_image(np.full((8, 8, 1), 99 * 257 + 200, np.uint16)), quality=100
    )
    assert np.unique(np.asarray(PIL.Image.open(tmp_path / "x.jpg"))).tolist() == [100]


def test_grey_is_the_mean_of_the_three_channels(tmp_path: Path) -> None:
    rgb = torch.tensor([10.0, 20.0, 60.0]).div(255).reshape(3, 1, 1).expand(3, 4, 5)
    write_image(tmp_path / "x.png", Image(rgb, grey=True))
    with PIL.Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "L" and picture.getpixel((0, 0)) == 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_and_gradients_are_fine(tmp_path: Path, dtype: torch.dtype) -> None:
    write_image(tmp_path / "x.png", Image(torch.ones(3, 2, 2, dtype=dtype, requires_grad=True)))
    assert read_image(tmp_path / "x.png").rgb.min() == 1


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_nan_and_infinity_are_never_written(tmp_path: Path, poison: float, suffix: str) -> None:
    image = to_image(noise(3))
    image.rgb = image.rgb.clone()
    image.rgb[1, 20, 30] = poison
    refused(lambda: write_image(tmp_path / f"x{suffix}", image), f"x{suffix}", "NaN or infinite")
    assert list(tmp_path.iterdir()) == []


def test_nan_in_alpha_is_refused(tmp_path: Path) -> None:
    image = to_image(noise(4))
    image.alpha = torch.full_like(image.alpha, float("nan"))
    refused(lambda: write_image(tmp_path / "x.png", image), "NaN")


def test_wrong_shapes_and_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    refused(lambda: write_image(path, Image(torch.zeros(1, 4, 4))), "[3, h, w]")
    refused(
        lambda: write_image(path, Image(torch.zeros(3, 4, 4, dtype=torch.uint8))), "floating-point"
    )
    refused(lambda: write_image(path, Image(torch.zeros(3, 4, 4), torch.zeros(1, 4, 5))), "alpha")
    refused(lambda: write_image(path, Image(torch.zeros(3, 4, 4), bits=12)), "12 bits")


# -- metadata --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_icc_profile_and_resolution_are_kept(tmp_path: Path, suffix: str, bits: int) -> None:
    path = tmp_path / f"x{suffix}"
    write_image(path, to_image(noise(3, bits), icc=SRGB, dpi=(300.0, 72.0)))
    image = read_image(path)
    assert image.icc == SRGB
    with PIL.Image.open(path) as picture:
        assert picture.info["icc_profile"] == SRGB
    if suffix == ".webp":  # Pillow passes over the resolution in EXIF
        assert image.metadata.exif.value(282) == 300 and image.metadata.exif.value(283) == 72
    else:
        assert image.dpi == pytest.approx((300, 72), abs=0.02)  # PNG counts whole pixels per metre


def test_files_without_metadata_have_none(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        write_image(tmp_path / f"x{suffix}", to_image(noise(3)))
        image = read_image(tmp_path / f"x{suffix}")
        assert image.icc is None and image.dpi is None


@pytest.mark.parametrize("dpi", [(0.0, 0.0), (float("nan"), 1.0), (1e10, 1e10)])
def test_absurd_resolutions_are_left_out(tmp_path: Path, dpi: tuple[float, float]) -> None:
    for suffix in (".png", ".jpg", ".tif"):
        write_image(tmp_path / f"x{suffix}", to_image(noise(3), dpi=dpi))
        assert read_image(tmp_path / f"x{suffix}").dpi is None


def test_a_grey_profile_stays_with_grey_and_leaves_rgb(tmp_path: Path) -> None:
    image = to_image(noise(1), icc=GREY_PROFILE)
    write_image(tmp_path / "x.png", image)
    write_image(tmp_path / "x.webp", image)
    assert read_image(tmp_path / "x.png").icc == GREY_PROFILE
    assert read_image(tmp_path / "x.webp").icc is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x{suffix}"
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(noise(3)).save(path, exif=exif, dpi=(100, 200))
    with PIL.Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    image = read_image(path)
    np.testing.assert_array_equal(to_samples(image), expected)
    if suffix != ".webp":
        assert image.dpi == pytest.approx((200, 100) if orientation >= 5 else (100, 200), abs=0.02)
    write_image(path, image, overwrite=True)
    with PIL.Image.open(path) as picture:
        assert picture.getexif().get(274, 1) == 1
        assert picture.size == expected.shape[1::-1]


def test_an_unreadable_exif_block_means_upright(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(3)).save(tmp_path / "x.png", exif=b"no EXIF at all")
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.png")), noise(3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_16_bit_files(tmp_path: Path, orientation: int) -> None:
    """A TIFF tag, which Pillow applies while loading, and an eXIf chunk after the pixels of a
    PNG.
    """
    tifffile = pytest.importorskip("tifffile")
    samples = noise(3, 16)
    exif = PIL.Image.Exif()
    exif[274] = orientation
    turned = PIL.Image.fromarray(np.arange(23 * 37, dtype=np.int32).reshape(23, 37))
    turned.getexif()[274] = orientation
    order = np.asarray(ImageOps.exif_transpose(turned))
    expected = samples.reshape(-1, 3)[order.ravel()].reshape(*order.shape, 3)

    tifffile.imwrite(tmp_path / "x.tif", samples, extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.tif")), expected)

    write_image(tmp_path / "x.png", to_image(samples))
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:])
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.png")), expected)


# -- what files in the wild hold -------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_png(
    samples: np.ndarray,
    depth: int,
    colour_type: int,
    *chunks: bytes,
    size: tuple[int, int] | None = None,
) -> bytes:
    """PNG of already packed rows [h, bytes] or samples [h, w, c], without row filters."""
    height, width = size or samples.shape[:2]
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(samples.shape[0], -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *chunks,
        chunk(b"IDAT", zlib.compress(raw)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("transparent", [None, bytes([0, 128]), bytes([255, 255, 0])])
def test_palette_becomes_rgb_and_alpha(tmp_path: Path, transparent: bytes | None) -> None:
    colours = [255, 0, 0, 0, 255, 0, 0, 0, 255]
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    picture = PIL.Image.fromarray(indices, "L").convert("P")
    picture.frombytes(indices.tobytes())
    picture.putpalette(colours)
    picture.save(
        tmp_path / "x.png", **({} if transparent is None else {"transparency": transparent})
    )
    image = read_image(tmp_path / "x.png")
    rgb = np.reshape(colours, (3, 3)).astype(np.uint8)[indices]
    assert not image.grey and image.bits == 8
    if transparent is None:
        np.testing.assert_array_equal(to_samples(image), rgb)
    else:
        alpha = np.frombuffer(transparent.ljust(3, b"\xff"), np.uint8)[indices]
        np.testing.assert_array_equal(to_samples(image), np.dstack([rgb, alpha]))


def test_palette_tiff_becomes_rgb(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(noise(3)).quantize(16)
    picture.save(tmp_path / "x.tif")
    np.testing.assert_array_equal(
        to_samples(read_image(tmp_path / "x.tif")), np.asarray(picture.convert("RGB"))
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("keyed", [False, True])
def test_grey_png_of_every_depth_with_and_without_a_transparent_level(
    tmp_path: Path, depth: int, keyed: bool
) -> None:
    top = 2**depth - 1
    levels = np.array([[0, top, 1, 0, top // 2, top, 1, 0]], np.uint16)
    if depth >= 8:
        packed = levels[..., None].astype(np.uint16 if depth == 16 else np.uint8)
    else:
        bits = (levels[0, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.astype(np.uint8).ravel())[None]
    extra = [chunk(b"tRNS", struct.pack(">H", 1))] if keyed else []
    (tmp_path / "x.png").write_bytes(make_png(packed, depth, 0, *extra, size=(1, 8)))
    image = read_image(tmp_path / "x.png")
    assert image.grey and image.bits == max(8, depth)
    torch.testing.assert_close(image.rgb[0], torch.from_numpy(levels.astype(np.float32)) / top)
    if keyed:
        np.testing.assert_array_equal(image.alpha[0].numpy(), (levels != 1).astype(np.float32))
    else:
        assert image.alpha is None


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_colour_of_rgb_png(tmp_path: Path, bits: int) -> None:
    samples = noise(3, bits)
    samples[3, 4] = samples[7, 8] = key = samples[1, 2].copy()
    samples[9, 9] = [key[0], key[1], key[2] ^ 1]  # differs in the lowest bit only
    trns = chunk(b"tRNS", struct.pack(">3H", *key))
    (tmp_path / "x.png").write_bytes(make_png(samples, bits, 2, trns))
    image = read_image(tmp_path / "x.png")
    assert torch.nonzero(image.alpha[0] == 0).tolist() == [[1, 2], [3, 4], [7, 8]]
    np.testing.assert_array_equal(to_samples(image)[..., :3], samples)


@pytest.mark.parametrize("invert", [False, True])
def test_one_bit_tiff_becomes_8_bit_grey(tmp_path: Path, invert: bool) -> None:
    picture = PIL.Image.fromarray(noise(1)[..., 0] > 127)
    options = {"tiffinfo": {262: 0}} if invert else {}
    picture.save(tmp_path / "x.tif", **options)
    image = read_image(tmp_path / "x.tif")
    assert image.grey and image.bits == 8
    np.testing.assert_array_equal(to_samples(image)[..., 0], np.asarray(picture) * np.uint8(255))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiffs_of_other_programs(
    tmp_path: Path,
    byteorder: str,
    compression: str | None,
    tile: tuple[int, int] | None,
    channels: int,
) -> None:
    tifffile = pytest.importorskip("tifffile")
    if compression == "lzw":
        pytest.importorskip("imagecodecs")  # for tifffile to write it
    samples = noise(channels, 16)
    tifffile.imwrite(
        tmp_path / "x.tif",
        samples if channels > 1 else samples[..., 0],
        byteorder=byteorder,
        compression=compression,
        predictor=compression is not None or None,
        tile=tile,
        photometric="rgb" if channels > 1 else "minisblack",
        extrasamples=["unassalpha"] if channels == 4 else None,
    )
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.tif")), samples)


def test_16_bit_tiff_where_zero_is_white(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = noise(1, 16)
    tifffile.imwrite(tmp_path / "x.tif", 65535 - samples[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.tif")), samples)


@pytest.mark.parametrize("bits", [8, 16])
def test_premultiplied_alpha_is_divided_out(tmp_path: Path, bits: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    top = 2**bits - 1
    samples = np.zeros((1, 3, 4), noise(1, bits).dtype)
    samples[0, 0] = [top // 4, top // 2, 0, top // 2]
    samples[0, 1] = [top, 1, 0, top]
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="rgb", extrasamples=["assocalpha"])
    image = read_image(tmp_path / "x.tif")
    torch.testing.assert_close(
        image.rgb[:, 0, 0], torch.tensor([0.5, 1, 0]), rtol=0, atol=1.5 / top * 2
    )
    torch.testing.assert_close(image.rgb[:, 0, 1], torch.tensor([1, 1 / top, 0]))
    assert image.alpha[0, 0].tolist() == pytest.approx([0.5, 1, 0], abs=1 / top)


@pytest.mark.parametrize("colour_type,channels", [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_interlaced_16_bit_png(tmp_path: Path, colour_type: int, channels: int) -> None:
    samples = noise(channels, 16, 9, 11)
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    raw = b""
    for top, left, dy, dx in passes:
        part = samples[top::dy, left::dx].astype(">u2")
        raw += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", 11, 9, 16, colour_type, 0, 0, 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.png")), samples)


def test_the_contents_decide_not_the_name(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(3)).save(tmp_path / "x.jpg", "PNG")
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.jpg")), noise(3))


def test_main_picture_of_a_phone_photo_is_read(tmp_path: Path) -> None:
    first = PIL.Image.new("RGB", (16, 16), "red")
    preview = PIL.Image.new("RGB", (8, 8))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[preview])
    image = read_image(tmp_path / "x.jpg")
    assert image.rgb.shape == (3, 16, 16) and image.rgb[0].min() > 0.9


def test_reduced_resolution_copies_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = noise(3, 16)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(samples, photometric="rgb")
        tiff.write(samples[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(to_samples(read_image(tmp_path / "x.tif")), samples)


# -- refused on read -------------------------------------------------------------------------------


def test_unsupported_colour_spaces_are_refused(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(noise(4), "CMYK")
    for suffix in (".jpg", ".tif"):
        picture.save(tmp_path / f"x{suffix}")
        refused(partial(read_image, tmp_path / f"x{suffix}"), f"x{suffix}", "CMYK", "RGB")
    PIL.Image.fromarray(noise(3)).convert("LAB").save(tmp_path / "lab.tif")
    refused(lambda: read_image(tmp_path / "lab.tif"), "LAB")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int8])
def test_samples_that_are_not_8_or_16_bit_unsigned_are_refused(
    tmp_path: Path, dtype: type[np.generic]
) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((5, 6), dtype))
    refused(lambda: read_image(tmp_path / "x.tif"), "x.tif", "16")


def test_animations_and_pages_are_refused(tmp_path: Path) -> None:
    first, second = (PIL.Image.fromarray(noise(3, height=8 + n)[:8]) for n in range(2))
    second.putpixel((0, 0), (9, 9, 9))
    for suffix, word in [(".png", "animated"), (".webp", "animated"), (".tif", "pages")]:
        first.save(tmp_path / f"x{suffix}", save_all=True, append_images=[second])
        refused(partial(read_image, tmp_path / f"x{suffix}"), f"x{suffix}", word)
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    refused(lambda: read_image(tmp_path / "x.gif"), "x.gif", "animated")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("This is not a picture at all.")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    refused(lambda: read_image(tmp_path / "text.png"), "text.png", "PNG, JPEG, TIFF, WebP")
    refused(lambda: read_image(tmp_path / "empty.png"), "empty.png", "is empty")
    refused(lambda: read_image(tmp_path / "folder.png"), "folder.png", "is a folder")
    refused(lambda: read_image(tmp_path / "missing.png"), "missing.png", "does not exist")


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File)")  # Pillow's, before the error
@pytest.mark.parametrize("name", ["8.png", "16.png", "8.jpg", "8.webp", "8.tif", "16.tif"])
def test_a_cut_off_file_never_gives_half_a_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_image(path, to_image(noise(3, int(name.split(".")[0]), 40, 50)))
    data = path.read_bytes()
    lengths = {
        3,
        9,
        20,
        40,
        *(len(data) * part // 100 for part in (10, 30, 50, 70, 90, 97)),
        len(data) - 5,
    }
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        refused(lambda: read_image(path), name)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_off_tiff_with_its_tags_first_is_refused(
    tmp_path: Path, compression: str | None
) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "x.tif"
    for samples in (noise(3, 8, 60, 60), noise(3, 16, 60, 60)):
        tifffile.imwrite(path, samples, compression=compression, rowsperstrip=8)
        data = path.read_bytes()
        for part in (20, 50, 80, 99):
            path.write_bytes(data[: len(data) * part // 100])
            refused(lambda: read_image(path), "x.tif")


def test_one_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    """zlib's own checksum stands apart here, where Pillow does not look for it: only the chunk's
    CRC can tell.
    """
    path = tmp_path / "x.png"
    data = make_png(noise(3), 8, 2)
    start = data.index(b"IDAT")
    pixels = data[start + 4 : -12 - 4]
    flipped = pixels[:500] + bytes([pixels[500] ^ 1]) + pixels[501:]
    damaged = chunk(b"IDAT", pixels[:-4]).replace(pixels[:-4], flipped[:-4])
    path.write_bytes(
        data[: start - 4] + damaged + chunk(b"IDAT", pixels[-4:]) + chunk(b"IEND", b"")
    )
    assert PIL.Image.open(path).convert("RGB").size == (37, 23)  # Pillow alone sees nothing wrong
    refused(lambda: read_image(path), "damaged")


def test_declared_sizes_are_checked_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(make_png(np.zeros((1, 1, 3), np.uint8), 8, 2, size=(70_000, 70_000)))
    refused(lambda: read_image(path), "70000 x 70000", "2**31")
    path.write_bytes(make_png(np.zeros((1, 1, 3), np.uint8), 8, 2, size=(1000, 1000)))
    monkeypatch.setattr(pillow, "free_bytes", lambda: 10**6)
    refused(lambda: read_image(path), "1000 x 1000", "memory")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_pillows_own_size_limit_neither_stops_nor_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    write_image(path, to_image(noise(3)))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).rgb.shape == (3, 23, 37)
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


# -- refused on write ------------------------------------------------------------------------------


def test_what_can_be_refused_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "old.png").touch()
    (tmp_path / "folder.png").mkdir()

    def check(name: Any, height: int = 10, width: int = 10, **options: Any) -> Any:
        return lambda: check_writable(
            tmp_path / name, height, width, **{"overwrite": False, **options}
        )

    check("new.png")()
    check("old.png", overwrite=True)()
    refused(check("new.bmp"), "new.bmp", ".png")
    refused(check("new"), "extension")
    refused(check("nowhere/new.png"), "nowhere is not a folder", "create it")
    refused(check("old.png"), "old.png already exists", "--overwrite")
    refused(check("folder.png", overwrite=True), "not a plain file")
    refused(check("new.png", height=0), "at least 1 x 1")
    refused(check("new.jpg", like=to_image(noise(4))), "alpha", "PNG, TIFF or WebP")
    check("new.tif", 100_000, 100_000)()


@pytest.mark.skipif(os.name == "nt", reason="folder permissions work differently")
def test_a_write_protected_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    refused(lambda: check_writable(tmp_path / "x.png", 1, 1, overwrite=False), "write-protected")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_the_longest_side_is_where_the_encoder_stops(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    side = by_suffix(path).max_side
    write_image(path, Image(torch.zeros(3, 1, side)))
    assert read_image(path).rgb.shape == (3, 1, side)
    too_long = Image(torch.zeros(3, 1, side + 1))
    refused(lambda: write_image(path, too_long, overwrite=True), f"{side:,}", "PNG")


def test_alpha_is_not_dropped_by_jpeg(tmp_path: Path) -> None:
    refused(
        lambda: write_image(tmp_path / "x.jpg", to_image(noise(4))),
        "alpha",
        "write PNG, TIFF or WebP",
    )
    assert list(tmp_path.iterdir()) == []


# -- files appear whole ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()]
)
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, failure: Any
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")

    def fail(*args: Any) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ImageError if isinstance(failure, OSError) else type(failure)):
        write_image(path, to_image(noise(3)), overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_full_disk_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")

    def disk_full(descriptor: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_full)
    refused(
        lambda: write_image(path, to_image(noise(3)), overwrite=True),
        path.name,
        "full",
        "free some space",
    )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    refused(lambda: write_image(path, to_image(noise(3))), "--overwrite")
    assert path.read_bytes() == b"old"
    write_image(path, to_image(noise(3)), overwrite=True)
    np.testing.assert_array_equal(to_samples(read_image(path)), noise(3))


def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    monkeypatch.setattr(os, "fsync", lambda descriptor: path.write_bytes(b"somebody else's"))
    refused(lambda: write_image(path, to_image(noise(3))), "already exists")
    assert path.read_bytes() == b"somebody else's"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no POSIX modes or links")
def test_modes_and_links_are_respected(tmp_path: Path) -> None:
    old = tmp_path / "old.png"
    link = tmp_path / "link.png"
    old.touch()
    old.chmod(0o640)
    link.symlink_to(old)
    write_image(link, to_image(noise(3)), overwrite=True)
    assert link.is_symlink() and old.stat().st_mode & 0o777 == 0o640
    plain = tmp_path / "plain"
    plain.touch()
    write_image(tmp_path / "new.png", to_image(noise(3)))
    assert (
        tmp_path / "new.png"
    ).stat().st_mode == plain.stat().st_mode  # as the umask says, not 0600


def test_a_file_system_without_hard_links_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_image(tmp_path / "x.png", to_image(noise(3)))
    assert list(tmp_path.iterdir()) == [tmp_path / "x.png"]


# -- colour under transparency ---------------------------------------------------------------------


def disc(
    height: int, width: int, colour: tuple[float, float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A visible disc of one colour on transparent black."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    return torch.tensor(colour).reshape(3, 1, 1) * inside, inside[None].float()


@pytest.mark.parametrize("height,width", [(64, 64), (37, 53), (5, 200), (8, 9)])
def test_transparent_pixels_take_the_visible_colour(height: int, width: int) -> None:
    rgb, alpha = disc(height, width, (0.9, 0.5, 0.1))
    filled = bleed_alpha(rgb, alpha)
    torch.testing.assert_close(
        filled, torch.tensor([0.9, 0.5, 0.1]).reshape(3, 1, 1).expand_as(rgb)
    )


def test_no_dark_fringe_is_left_for_a_network_to_see() -> None:
    """Blurring stands for any network: at the rim the black below used to darken the visible
    colour.
    """
    rgb, alpha = disc(64, 64, (1.0, 1.0, 1.0))

    def rim_brightness(picture: torch.Tensor) -> float:
        blurred = torch.nn.functional.avg_pool2d(picture[None], 5, 1, 2, count_include_pad=False)[0]
        return blurred[:, alpha[0] > 0].min().item()

    assert rim_brightness(rgb) < 0.7
    assert rim_brightness(bleed_alpha(rgb, alpha)) > 0.999


def test_visible_pixels_are_untouched_however_faint() -> None:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(3, 33, 47, generator=generator)
    alpha = torch.rand(1, 33, 47, generator=generator)
    alpha = torch.where(alpha < 0.5, 0, alpha * 1e-3)
    filled = bleed_alpha(rgb, alpha)
    assert torch.equal(filled[:, alpha[0] > 0], rgb[:, alpha[0] > 0])
    assert filled.min() >= 0 and filled.max() <= 1 + 1e-6
    assert torch.equal(filled, bleed_alpha(rgb, alpha))


def test_the_nearest_colours_win() -> None:
    """Red at the left edge, blue at the right: the gap between changes from one to the other."""
    rgb = torch.zeros(3, 32, 64)
    alpha = torch.zeros(1, 32, 64)
    rgb[0, :, :4] = 1
    rgb[2, :, -4:] = 1
    alpha[:, :, :4] = alpha[:, :, -4:] = 1
    filled = bleed_alpha(rgb, alpha)
    assert filled[0, :, 4:6].min() > 0.95 and filled[2, :, -6:-4].min() > 0.95
    torch.testing.assert_close(filled[0] + filled[2], torch.ones(32, 64))


@pytest.mark.parametrize("width", range(2, 10))
def test_the_closest_column_wins_wherever_the_pyramid_cuts(width: int) -> None:
    rgb = torch.zeros(3, 16, 32)
    alpha = torch.zeros(1, 16, 32)
    # green, but red at the rim
    rgb[1, :, : width - 1] = 1
    rgb[0, :, width - 1] = 1
    alpha[:, :, :width] = 1
    beside = bleed_alpha(rgb, alpha)[:, 8, width]
    assert beside[0] > beside[1]


def test_one_faint_visible_pixel_is_enough() -> None:
    rgb = torch.zeros(3, 257, 129)
    alpha = torch.zeros(1, 257, 129)
    rgb[:, 200, 100] = 0.75
    alpha[:, 200, 100] = 1 / 65535
    torch.testing.assert_close(bleed_alpha(rgb, alpha), torch.full_like(rgb, 0.75))


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("height,width", [(1, 1), (1, 7), (16, 16)])
def test_all_transparent_and_all_opaque_are_left_alone(
    level: float, height: int, width: int
) -> None:
    rgb = torch.rand(3, height, width)
    assert torch.equal(bleed_alpha(rgb, torch.full((1, height, width), level)), rgb)


def test_an_encoder_that_gives_up_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*args: Any, **options: Any) -> None:
        raise ValueError("encoding error 6")

    monkeypatch.setattr(PIL.Image.Image, "save", give_up)
    refused(
        lambda: write_image(tmp_path / "x.webp", to_image(noise(3))),
        "x.webp",
        "encoding error 6",
        "PNG",
    )
    assert list(tmp_path.iterdir()) == []


def test_paths_may_be_strings(tmp_path: Path) -> None:
    write_image(str(tmp_path / "x.png"), to_image(noise(3)))
    assert read_image(str(Path(tmp_path) / "x.png")).bits == 8
    assert PIL.Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())).mode == "RGB"
