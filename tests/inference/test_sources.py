"""Reading by region: the same samples as the whole, whatever the format, and no more memory than
promised.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.formats import Image, read_image, write_image
from diinn_fast.formats import tiff_source as tiff_module
from diinn_fast.formats.sources import RowsSource, Source
from diinn_fast.formats.tiff_source import ENTRY_BYTES, TiffSource
from diinn_fast.inference import sources as sources_module
from diinn_fast.inference.sources import open_source
from tests.helpers.pictures import SRGB, noise, refused, to_image

tifffile = pytest.importorskip("tifffile")

HEIGHT = 101
WIDTH = 83


def assert_same(source: Source, image: Image) -> None:
    """Every kind of window of the source equals the same window of the whole, bitwise."""
    height, width = image.rgb.shape[1:]
    assert (source.height, source.width) == (height, width)
    assert (source.grey, source.alpha, source.bits) == (
        image.grey,
        image.alpha is not None,
        image.bits,
    )
    assert source.metadata.icc == image.icc and source.metadata.dpi == image.dpi
    windows = [
        (0, height, 0, width),
        (0, 1, 0, 1),
        (height - 1, height, width - 1, width),
        (0, height, 3, 4),
    ]
    random = np.random.default_rng(height)
    for _ in range(20):
        y0, y1 = sorted(random.choice(height + 1, 2, replace=False))
        x0, x1 = sorted(random.choice(width + 1, 2, replace=False))
        windows.append((int(y0), int(y1), int(x0), int(x1)))
    for y0, y1, x0, x1 in windows:
        rgb, alpha = source.read(y0, y1, x0, x1)
        assert rgb.dtype == torch.float32 and rgb.is_contiguous()
        assert torch.equal(rgb, image.rgb[:, y0:y1, x0:x1])
        assert (alpha is None) == (image.alpha is None)
        if alpha is not None:
            assert torch.equal(alpha, image.alpha[:, y0:y1, x0:x1])


# -- by region -------------------------------------------------------------------------------------

STORAGE = {
    "tiles": {"tile": (16, 32), "compression": "zlib"},
    "predicted tiles": {"tile": (32, 16), "compression": "zlib", "predictor": True},
    "big-endian BigTIFF": {
        "tile": (32, 32),
        "compression": "lzw",
        "bigtiff": True,
        "byteorder": ">",
    },
    "raw tiles": {"tile": (16, 16)},
    "strips": {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
    "packbits": {"rowsperstrip": 5, "compression": "packbits"},
    "one strip": {"rowsperstrip": HEIGHT, "compression": "lzw"},
    "raw strips": {"rowsperstrip": 9},
    "raw, big-endian": {"byteorder": ">"},
}


def save_tiff(path: Path, samples: np.ndarray, **options: Any) -> None:
    channels = samples.shape[2]
    extra: dict[str, Any] = {"extrasamples": ["UNASSALPHA"]} if channels in (2, 4) else {}
    bigtiff = options.pop("bigtiff", False)
    order = options.pop("byteorder", "<")
    if channels > 1:
        extra["planarconfig"] = "CONTIG"
    tifffile.imwrite(
        path,
        samples if channels > 1 else samples[..., 0],
        photometric="RGB" if channels >= 3 else "MINISBLACK",
        bigtiff=bigtiff,
        byteorder=order,
        resolution=(300, 72),
        resolutionunit="INCH",
        iccprofile=SRGB,
        **extra,
        **options,
    )


@pytest.mark.parametrize(
    "channels,bits", [(1, 8), (2, 8), (3, 8), (4, 8), (1, 16), (3, 16), (4, 16)]
)
@pytest.mark.parametrize("storage", STORAGE)
def test_regions_of_a_tiff_are_those_of_the_whole(
    tmp_path: Path, storage: str, channels: int, bits: int
) -> None:
    samples = noise(channels, bits, HEIGHT, WIDTH)
    save_tiff(tmp_path / "x.tif", samples, **STORAGE[storage])
    source = open_source(tmp_path / "x.tif")
    assert isinstance(
        source, RowsSource if storage in ("raw strips", "raw, big-endian") else TiffSource
    )
    assert_same(source, to_image(samples, icc=SRGB, dpi=(300.0, 72.0)))
    if storage != "big-endian BigTIFF":  # Pillow cannot read it
        assert_same(source, read_image(tmp_path / "x.tif"))
    source.close()
    source.close()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("storage", ["tiles", "raw strips"])
def test_orientation_is_applied_to_regions(tmp_path: Path, storage: str, orientation: int) -> None:
    save_tiff(
        tmp_path / "x.tif",
        noise(3, 8, HEIGHT, WIDTH),
        **STORAGE[storage],
        extratags=[(274, 3, 1, orientation, True)],
    )
    assert_same(open_source(tmp_path / "x.tif"), read_image(tmp_path / "x.tif"))


def test_a_pyramid_is_read_at_full_size(tmp_path: Path) -> None:
    samples = noise(3, 8, HEIGHT, WIDTH)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        writer.write(samples, tile=(16, 16), photometric="RGB")
        writer.write(samples[::2, ::2], tile=(16, 16), photometric="RGB", subfiletype=1)
    assert isinstance(open_source(tmp_path / "pages.tif"), TiffSource)
    assert_same(open_source(tmp_path / "pages.tif"), read_image(tmp_path / "pages.tif"))


def test_only_what_a_window_touches_is_decoded(tmp_path: Path) -> None:
    save_tiff(tmp_path / "x.tif", noise(3, 8, 256, 256), tile=(32, 32), compression="zlib")
    source = open_source(tmp_path / "x.tif")
    source.read(40, 90, 33, 60)
    assert sorted(source._cache) == [9, 17]  # rows 1 and 2, column 1, of 8 tiles a row
    assert source._held == 2 * (32 * 32 * 3 + ENTRY_BYTES)


def test_decoded_tiles_stay_within_the_bound(tmp_path: Path) -> None:
    save_tiff(tmp_path / "x.tif", noise(3, 8, 256, 256), tile=(32, 32), compression="zlib")
    tile = 32 * 32 * 3
    source = open_source(tmp_path / "x.tif", max_bytes=7 * tile)
    assert source.resident_bytes == 7 * tile
    assert_same(source, read_image(tmp_path / "x.tif"))
    assert 0 < source._held <= 5 * tile


def test_many_threads_read_one_source(tmp_path: Path) -> None:
    save_tiff(tmp_path / "x.tif", noise(3, 16, HEIGHT, WIDTH), **STORAGE["predicted tiles"])
    source = open_source(tmp_path / "x.tif", max_bytes=2**14)
    whole = read_image(tmp_path / "x.tif")
    wrong = []

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(20):
            y = int(random.integers(HEIGHT - 30))
            x = int(random.integers(WIDTH - 30))
            if not torch.equal(
                source.read(y, y + 30, x, x + 30)[0], whole.rgb[:, y : y + 30, x : x + 30]
            ):
                wrong.append((y, x))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- decoded whole ---------------------------------------------------------------------------------


def save_palette(path: Path) -> None:
    PIL.Image.fromarray(noise(3, 8, HEIGHT, WIDTH)).quantize(16).save(path)


WHOLE: dict[str, Callable[..., Any]] = {
    "8-bit.png": lambda path: write_image(
        path, to_image(noise(4, 8, HEIGHT, WIDTH), icc=SRGB, dpi=(300.0, 72.0))
    ),
    "16-bit.png": lambda path: write_image(path, to_image(noise(2, 16, HEIGHT, WIDTH))),
    "x.jpg": lambda path: write_image(path, to_image(noise(3, 8, HEIGHT, WIDTH))),
    "grey.jpg": lambda path: write_image(path, to_image(noise(1, 8, HEIGHT, WIDTH))),
    "x.webp": lambda path: write_image(path, to_image(noise(4, 8, HEIGHT, WIDTH))),
    "palette.png": save_palette,
    "palette.tif": save_palette,
    "bilevel.tif": lambda path: PIL.Image.fromarray(noise(1, 8, HEIGHT, WIDTH)[..., 0] > 99).save(
        path
    ),
    "white-is-zero.tif": lambda path: tifffile.imwrite(
        path, noise(1, 8, HEIGHT, WIDTH)[..., 0], photometric=0
    ),
    "premultiplied.tif": lambda path: tifffile.imwrite(
        path, noise(4, 16, HEIGHT, WIDTH), photometric="RGB", extrasamples=["ASSOCALPHA"]
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_other_files_are_held_as_integers(tmp_path: Path, name: str) -> None:
    WHOLE[name](tmp_path / name)
    source = open_source(tmp_path / name)
    image = read_image(tmp_path / name)
    assert_same(source, image)
    channels = (1 if image.grey else 3) + (image.alpha is not None)
    assert source.resident_bytes == HEIGHT * WIDTH * channels * image.bits // 8


def test_without_codecs_an_lzw_tiff_is_decoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiff(tmp_path / "x.tif", noise(3, 8, HEIGHT, WIDTH), tile=(16, 16), compression="lzw")
    monkeypatch.setattr(tiff_module, "_has_imagecodecs", lambda: False)
    assert_same(open_source(tmp_path / "x.tif"), read_image(tmp_path / "x.tif"))
    refused(lambda: open_source(tmp_path / "x.tif", max_bytes=1000), "x.tif", "diinn_fast[big]")


# -- arrays and tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels,bits", [(1, 8), (2, 16), (3, 8), (4, 16)])
def test_integer_arrays_are_not_copied(channels: int, bits: int) -> None:
    samples = noise(channels, bits, HEIGHT, WIDTH)
    source = open_source(samples)
    assert_same(source, to_image(samples))
    assert np.shares_memory(source.samples(0, 5, 0, 5), samples)
    assert source.dtype == f"uint{bits}"


def test_float_arrays_tensors_images_and_pil_pictures() -> None:
    samples = noise(3, 8, HEIGHT, WIDTH)
    image = to_image(samples)
    floats = image.rgb.permute(1, 2, 0).numpy()
    for picture, dtype in [(image, "uint8"), (image.rgb, "float32"), (floats, "float32")]:
        assert_same(open_source(picture), image)
        assert open_source(picture).dtype == dtype
    assert_same(open_source(PIL.Image.fromarray(samples)), image)
    assert_same(open_source(to_image(noise(4, 16))), to_image(noise(4, 16)))
    refused(lambda: open_source(torch.zeros(2, 3, 8, 8)), "batch of 2")
    refused(lambda: open_source(np.zeros((4, 4, 5), np.uint8)), "[4, 4, 5]")
    with pytest.raises(UpscaleError):
        open_source(42)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32", "float16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_npy_by_region(tmp_path: Path, dtype: str, channels: int) -> None:
    samples = noise(channels, 16 if dtype == ">u2" else 8, HEIGHT, WIDTH)
    stored = (samples / 255).astype(dtype) if "float" in dtype else samples.astype(dtype)
    np.save(tmp_path / "x.npy", stored if channels > 1 else stored[..., 0])
    expected = to_image(samples)
    if "float" in dtype:
        planes = torch.from_numpy(stored.astype(np.float32)).permute(2, 0, 1)
        expected.rgb = planes[:3] if channels >= 3 else planes[:1].expand(3, -1, -1)
        expected.alpha = planes[-1:] if channels in (2, 4) else None
    source = open_source(tmp_path / "x.npy")
    assert_same(source, expected)
    assert source.resident_bytes == 0
    assert source.dtype == {"uint8": "uint8", ">u2": "uint16"}.get(dtype, "float32")


def test_npy_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"

    def check(array: np.ndarray, *words: str) -> None:
        np.save(path, array, allow_pickle=True)
        refused(lambda: open_source(path), "x.npy", *words)

    check(np.zeros((4, 4, 5), np.uint8), "[4, 4, 5]")
    check(np.zeros((4, 0), np.uint8), "[4, 0]")
    check(np.zeros((4, 4), np.int32), "int32")
    check(np.zeros((4, 4), np.complex64), "complex64")
    check(np.asfortranarray(np.zeros((4, 5, 3), np.uint8)), "column by column")
    check(np.array([[{}]]), "object")
    np.save(path, np.zeros((40, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: open_source(path), "cut off")
    path.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{")
    refused(lambda: open_source(path), "x.npy")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 255.0])
def test_bad_floats_are_refused_where_they_are_read(tmp_path: Path, poison: float) -> None:
    values = np.zeros((20, 20), np.float32)
    values[15, 15] = poison
    np.save(tmp_path / "x.npy", values)
    source = open_source(tmp_path / "x.npy")
    source.read(0, 15, 0, 20)
    why = "[0, 1]" if poison == 255 else "NaN or infinite values"
    refused(lambda: source.read(0, 20, 0, 20), why)


# -- Zarr ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx"])
def test_zarr_by_region(tmp_path: Path, version: int, axes: str) -> None:
    zarr = pytest.importorskip("zarr")
    samples = noise(1 if axes == "yx" else 3, 16, HEIGHT, WIDTH)
    values = (
        samples[..., 0]
        if axes == "yx"
        else samples
        if axes == "yxc"
        else np.moveaxis(samples, 2, 0)
    )
    if version == 2 and axes == "cyx":  # where nothing names the axes, the last one is the channels
        zarr.create_array(tmp_path / "x.zarr", data=values, zarr_format=2)
        refused(lambda: open_source(tmp_path / "x.zarr"), str(list(values.shape)))
        return
    names = {"dimension_names": list(axes)} if version == 3 else {}
    zarr.create_array(
        tmp_path / "x.zarr",
        data=values,
        chunks=tuple(min(16, s) for s in values.shape),
        zarr_format=version,
        **names,
    )
    assert_same(open_source(tmp_path / "x.zarr"), to_image(samples))


def test_the_largest_level_of_an_ome_zarr_is_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    samples = noise(3, 8, HEIGHT, WIDTH)
    for version, name in [(2, "0.4.ome.zarr"), (3, "0.5.ome.zarr")]:
        group = zarr.create_group(tmp_path / name, zarr_format=version)
        group.create_array("full", data=np.moveaxis(samples, 2, 0)[None, :, None])
        axes = [{"name": axis} for axis in "tczyx"]
        scales = [{"axes": axes, "datasets": [{"path": "full"}, {"path": "half"}]}]
        group.attrs.update(
            {"multiscales": scales} if version == 2 else {"ome": {"multiscales": scales}}
        )
        assert_same(open_source(tmp_path / name), to_image(samples))


def test_zarr_stores_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_group(tmp_path / "group.zarr")
    refused(lambda: open_source(tmp_path / "group.zarr"), "group of arrays")
    zarr.create_array(tmp_path / "stack.zarr", shape=(2, 8, 8, 3), dtype="uint8")
    refused(lambda: open_source(tmp_path / "stack.zarr"), "several planes")
    zarr.create_array(
        tmp_path / "half.zarr",
        shape=(8, 8),
        dtype="uint8",
        attributes={"diinn_fast": {"complete": False}},
    )
    refused(lambda: open_source(tmp_path / "half.zarr"), "not complete")
    zarr.create_array(tmp_path / "big.zarr", shape=(800, 800), chunks=(800, 800), dtype="uint8")
    refused(lambda: open_source(tmp_path / "big.zarr", max_bytes=10**6), "chunks of")
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr/zarr.json").write_text("{}")
    refused(lambda: open_source(tmp_path / "bad.zarr"), "bad.zarr")
    (tmp_path / "empty.zarr").mkdir()
    refused(lambda: open_source(tmp_path / "empty.zarr"), "folder")


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,declare",
    [("x.png", lambda path: write_image(path, Image(torch.zeros(3, 600, 600)))),
     ("x.jpg", lambda path: write_image(path, Image(torch.zeros(3, 600, 600)))),
     ("x.tif", lambda path: save_tiff(path, np.zeros((600, 600, 3), np.uint8), rowsperstrip=600,
     compression="zlib"))],
)  # fmt: skip
def test_what_exceeds_the_bound_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, declare: Callable[[Path], Any]
) -> None:
    declare(tmp_path / name)
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("decoded"))
    refused(lambda: open_source(tmp_path / name, max_bytes=10**6), name, "tiled TIFF")


def test_a_file_that_gets_shorter_while_it_is_read(tmp_path: Path) -> None:
    for name, options in [("tiled.tif", STORAGE["tiles"]), ("raw.tif", {})]:
        save_tiff(tmp_path / name, noise(3, 8, HEIGHT, WIDTH), **options)
        source = open_source(tmp_path / name)
        with open(tmp_path / name, "r+b") as file:
            file.truncate(5000)
        refused(partial(source.read, 0, HEIGHT, 0, WIDTH), name, "restore")


def test_a_file_that_is_cut_off_before_it_is_opened(tmp_path: Path) -> None:
    for number, options in enumerate([*STORAGE.values()]):
        path = tmp_path / f"{number}.tif"
        save_tiff(path, noise(3, 8, HEIGHT, WIDTH), **options)
        data = path.read_bytes()
        for part in (1, 30, 70, 95):
            path.write_bytes(data[: len(data) * part // 100])
            refused(partial(open_source, path), path.name)


def test_damaged_tiles_are_noticed_when_they_are_read(tmp_path: Path) -> None:
    save_tiff(tmp_path / "x.tif", noise(3, 8, HEIGHT, WIDTH), **STORAGE["tiles"])
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        offset = tiff.pages.first.dataoffsets[0]
    with open(tmp_path / "x.tif", "r+b") as file:
        file.seek(offset)
        file.write(bytes(100))
    source = open_source(tmp_path / "x.tif")
    source.read(50, 60, 50, 60)
    refused(lambda: source.read(0, 60, 0, 60), "x.tif")


def test_a_zarr_store_that_vanishes_is_not_read_as_black(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "x.zarr", data=noise(3, 8, HEIGHT, WIDTH), chunks=(16, 16, 3))
    source = open_source(tmp_path / "x.zarr")
    (tmp_path / "x.zarr").rename(tmp_path / "elsewhere")
    refused(lambda: source.read(0, 20, 0, 20), "x.zarr", "vanished")


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.npy"])
def test_identity_follows_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def write(seed: int) -> str:
        samples = np.roll(noise(3, 8, HEIGHT, WIDTH), seed)
        np.save(path, samples) if name == "x.npy" else write_image(
            path, to_image(samples), overwrite=True
        )
        return open_source(path).identity

    first = write(0)
    assert open_source(path).identity == first
    assert write(1) != first


def test_identity_of_arrays_is_a_digest() -> None:
    samples = noise(3)
    assert open_source(samples).identity == open_source(samples.copy()).identity
    assert open_source(samples).identity != open_source(samples[::-1]).identity
    assert (
        open_source(to_image(samples)).identity
        != open_source(to_image(samples[::-1].copy())).identity
    )


def test_missing_files_and_other_formats(tmp_path: Path) -> None:
    refused(lambda: open_source(tmp_path / "none.png"), "does not exist")
    (tmp_path / "x.txt").write_text("hello")
    refused(lambda: open_source(tmp_path / "x.txt"), "none of the pictures")
    tifffile.imwrite(tmp_path / "signed.tif", np.zeros((8, 8), np.int16))
    refused(lambda: open_source(tmp_path / "signed.tif"), "signed")
    tifffile.imwrite(
        tmp_path / "pages.tif", np.zeros((3, 20, 20), np.uint8), photometric="MINISBLACK"
    )
    refused(lambda: open_source(tmp_path / "pages.tif"), "several pages")


def test_a_window_outside_is_a_mistake_of_the_program() -> None:
    source = open_source(noise(3))
    for window in [(0, 24, 0, 5), (-1, 5, 0, 5), (5, 5, 0, 5)]:
        with pytest.raises(IndexError):
            source.read(*window)
    assert sources_module.__all__ == ["Source", "bits_of", "open_bands", "open_source"]
    assert issubclass(ImageError, ValueError)
