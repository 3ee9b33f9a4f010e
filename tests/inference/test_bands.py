"""Bands that are no picture: refused by name, or each upscaled as a grey picture of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.formats.bands import Bands
from diinn_fast.inference import Upscaler
from diinn_fast.inference.plan import Task, make_plan
from diinn_fast.inference.sources import open_bands, open_source
from tests.helpers.plans import six_tiles
from tests.helpers.small_models import picture, small_model

H = 40
W = 50
LAYOUTS: dict[str, dict[str, Any]] = {
    "RGB and infrared": {"photometric": "rgb", "extrasamples": [0]},
    "RGB and two": {"photometric": "rgb", "extrasamples": [0, 0]},
    "RGB, alpha and one": {"photometric": "rgb", "extrasamples": [2, 0]},
    "RGB, one and alpha": {"photometric": "rgb", "extrasamples": [0, 2]},
    "two of grey": {"photometric": "minisblack", "extrasamples": [0]},
    "thirteen": {"photometric": "minisblack", "extrasamples": [0] * 12},
}


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    six_tiles(monkeypatch, (16, 64))


def samples_of(count: int, dtype: type = np.uint8) -> np.ndarray:
    samples = picture(H, W, count, seed=3)
    if dtype is np.float32:
        return (samples / 255).astype(np.float32)
    return samples.astype(dtype) * (257 if dtype is np.uint16 else 1)


def save(path: Path, kind: str, dtype: type = np.uint8, planar: str = "contig") -> np.ndarray:
    layout = LAYOUTS[kind]
    count = (3 if layout["photometric"] == "rgb" else 1) + len(layout["extrasamples"])
    samples = samples_of(count, dtype)
    stored = samples if planar == "contig" else samples.transpose(2, 0, 1)
    tifffile.imwrite(path, stored, planarconfig=planar, metadata=None, **layout)
    return samples


def read(path: Path) -> np.ndarray:
    """[H, W, C] of an output, by an independent reader."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    if path.suffix == ".tif":
        return np.asarray(tifffile.imread(path))
    import zarr

    node: Any = zarr.open(store=str(path), mode="r")
    return np.asarray(node) if hasattr(node, "shape") else np.moveaxis(np.asarray(node["0"]), 0, 2)


PAIRS = [(kind, "out.tif") for kind in LAYOUTS]
PAIRS += [("RGB, one and alpha", out) for out in ("out.npy", "out.zarr", "out.ome.zarr")]


@pytest.mark.parametrize(("kind", "out"), PAIRS)
def test_each_band_is_a_grey_picture(
    upscaler: Upscaler, tiles: None, tmp_path: Path, kind: str, out: str
) -> None:
    """Alpha stays alpha, wherever it stands, and the tags say what they said."""
    samples = save(tmp_path / "in.tif", kind)
    extra = LAYOUTS[kind]["extrasamples"]
    alpha = samples.shape[2] - len(extra) + extra.index(2) if 2 in extra else None
    upscaler.render(tmp_path / "in.tif", tmp_path / out, scale=2, bands="each")
    found = read(tmp_path / out)
    assert found.shape == (2 * H, 2 * W, samples.shape[2]) and found.dtype == np.uint8
    for n in range(samples.shape[2]):
        alone = samples[..., n] if alpha is None else samples[..., [n, alpha]]
        expected = upscaler(alone, scale=2)
        if alpha is not None:
            expected = expected[..., 0 if n != alpha else 1]
        np.testing.assert_array_equal(found[..., n], expected, err_msg=f"band {n}")
    if out == "out.tif":
        with tifffile.TiffFile(tmp_path / out) as tiff:
            page = tiff.pages.first
            assert page.photometric.name == LAYOUTS[kind]["photometric"].upper()
            assert list(page.extrasamples) == extra


@pytest.mark.parametrize(
    ("dtype", "planar", "hr"),
    [
        (np.uint8, "separate", (20, 25)),
        (np.uint16, "contig", (20, 120)),
        (np.float32, "separate", (60, 100)),
    ],
)
def test_of_any_type_and_size(
    upscaler: Upscaler, tmp_path: Path, dtype: type, planar: str, hr: tuple[int, int]
) -> None:
    """Smaller, too; and an array gives what a file does."""
    samples = save(tmp_path / "in.tif", "RGB and two", dtype, planar)
    upscaler.render(tmp_path / "in.tif", tmp_path / "out.tif", size=hr, bands="each")
    found = tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(found, upscaler(samples, size=hr, bands="each"))
    np.testing.assert_array_equal(found[..., 4], upscaler(samples[..., 4], size=hr))
    np.save(tmp_path / "in.npy", samples)
    upscaler.render(tmp_path / "in.npy", tmp_path / "again.tif", size=hr, bands="each")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "again.tif"), found)


def test_an_output_can_be_an_input(upscaler: Upscaler, tmp_path: Path) -> None:
    save(tmp_path / "in.tif", "RGB, alpha and one")
    upscaler.render(tmp_path / "in.tif", tmp_path / "a.tif", scale=1.5, bands="each")
    upscaler.render(tmp_path / "a.tif", tmp_path / "b.ome.zarr", scale=1.5, bands="each")
    upscaler.render(tmp_path / "b.ome.zarr", tmp_path / "c.tif", scale=1.5, bands="each")
    assert tifffile.imread(tmp_path / "c.tif").shape == (135, 170, 5)


@pytest.mark.parametrize(("name", "channels"), [("x.png", 3), ("x.png", 4), ("x.jpg", 3)])
def test_channels_of_a_picture_can_be_asked_for_too(
    upscaler: Upscaler, tmp_path: Path, name: str, channels: int
) -> None:
    import PIL.Image

    PIL.Image.fromarray(samples_of(channels)).save(tmp_path / name)
    upscaler.render(tmp_path / name, tmp_path / "out.png", scale=2, bands="each")
    given = np.asarray(PIL.Image.open(tmp_path / name))
    found = np.asarray(PIL.Image.open(tmp_path / "out.png"))
    assert found.shape == (2 * H, 2 * W, channels)
    red = given[..., 0] if channels == 3 else given[..., [0, 3]]
    expected = upscaler(red, scale=2).reshape(2 * H, 2 * W, -1)[..., 0]
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_they_are_refused_unless_asked_for(upscaler: Upscaler, tmp_path: Path, kind: str) -> None:
    count = save(tmp_path / "in.tif", kind).shape[2]
    for action in (
        lambda: upscaler.render(tmp_path / "in.tif", tmp_path / "out.tif"),
        lambda: upscaler(tmp_path / "in.tif"),
        lambda: upscaler.open(tmp_path / "in.tif"),
    ):
        with pytest.raises(ImageError, match=f"has {count} channels.*--bands each"):
            action()
    with pytest.raises(ImageError, match=f"cannot hold {count} bands"):
        upscaler.render(tmp_path / "in.tif", tmp_path / "out.png", bands="each")
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]


def test_arrays_of_other_shapes(upscaler: Upscaler, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", samples_of(7))
    for given in (tmp_path / "in.npy", samples_of(7)):
        with pytest.raises(ImageError, match=r"array \[40, 50, 7\]: give one of \[h, w\].*each"):
            open_source(given)
    with pytest.raises(UpscaleError, match='give bands="each"'):
        upscaler(samples_of(7))
    with pytest.raises(UpscaleError, match='bands must be "each"'):
        upscaler(samples_of(7), bands="all")
    with pytest.raises(UpscaleError, match="use render"):
        upscaler(tmp_path / "in.npy", bands="each")


def test_tensors(upscaler: Upscaler) -> None:
    given = torch.rand(2, 5, 10, 12)
    out = upscaler(given, scale=2, bands="each")
    assert out.shape == (2, 5, 20, 24)
    alone = upscaler(given[1, 3].numpy(), scale=2)
    np.testing.assert_array_equal(out[1, 3].numpy(), alone)
    assert torch.equal(upscaler(given[1], scale=2, bands="each"), out[1])


def test_each_band_has_its_range_and_its_missing_samples(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    samples = samples_of(4, np.uint16) // 257 + 1000
    samples[..., 3] = samples[..., 3] * 10
    samples[5:15, 5:15, 1] = 0
    tags = [(42113, 2, 2, "0", True)]
    tifffile.imwrite(tmp_path / "in.tif", samples, metadata=None, extratags=tags, **LAYOUTS[
        "RGB and infrared"])  # fmt: skip
    upscaler.render(tmp_path / "in.tif", tmp_path / "out.tif", scale=2, bands="each", range="auto")
    found = tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(found[..., 3], upscaler(samples[..., 3], scale=2, range="auto"))
    assert (found[12:28, 12:28, 1] == 0).all()
    assert (found[..., [0, 2, 3]] > 900).all()


def test_memory_of_all_bands_is_planned_for() -> None:
    model = small_model()
    plans = [
        make_plan(Task(model.encoder, model.decoder, (500, 500), (1000, 1000), 1, bands=n), 1 << 27)
        for n in (1, 30)
    ]
    assert plans[1].tiles[0] * plans[1].tiles[1] > 2 * plans[0].tiles[0] * plans[0].tiles[1]
    assert all(plan.peak_bytes <= 1 << 27 for plan in plans)


def test_it_is_part_of_the_job(upscaler: Upscaler, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", samples_of(3))
    upscaler.render(tmp_path / "in.npy", tmp_path / "out.tif", bands="each")
    upscaler.render(tmp_path / "in.npy", tmp_path / "out.tif", bands="each", resume=True)
    with pytest.raises(ImageError, match="already exists"):
        upscaler.render(tmp_path / "in.npy", tmp_path / "out.tif", resume=True)


def test_many_bands_take_no_time_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    alpha = Bands.alpha.fget
    assert alpha is not None

    def counted(bands: Bands) -> int | None:
        asked.append(bands)
        found: int | None = alpha(bands)
        return found

    monkeypatch.setattr(Bands, "alpha", property(counted))
    bands, _ = open_bands(np.zeros((1, 1, 3000), np.uint8))
    assert len(bands) == 3000
    assert len(asked) < 10
