"""Where the network is used: never to make an axis shorter, nor to colour neutral pictures."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diinn_fast.geometry import Window
from diinn_fast.inference import Upscaler, rendering
from diinn_fast.inference.bicubic import resize_bicubic
from diinn_fast.inference.reduced import ReducedSource
from diinn_fast.inference.rendering import planning
from diinn_fast.inference.sources import open_source
from tests.helpers.plans import six_tiles
from tests.helpers.small_models import picture, small_model


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every render in six tiles of several blocks."""
    six_tiles(monkeypatch, (16, 20), 7)


def three_ways(upscaler: Upscaler, image: np.ndarray, size: tuple[int, int], folder: Path) -> Any:
    """The output in memory, of a render in tiles, and of a view in two windows."""
    out = upscaler.render(image, folder / "out.npy", size=size, overwrite=True)
    half = size[0] // 2
    with upscaler.open(image) as view:
        parts = [
            view.render(w, size) for w in ((0, half, 0, size[1]), (half, *size[:1], 0, size[1]))
        ]
    return upscaler(image, size=size), np.load(out), np.concatenate(parts)


def smooth(height: int = 120, width: int = 90) -> np.ndarray:
    """A picture of what survives a reduction."""
    y, x = np.mgrid[:height, :width] / 20
    planes = [np.sin(x + y), np.cos(x - y / 2), np.sin(y) * np.cos(x)]
    return (127.5 + 120 * np.stack(planes, -1)).astype(np.uint8)


@pytest.mark.parametrize("size", [(60, 45), (30, 23), (12, 9), (119, 90), (120, 31)])
def test_a_smaller_output_is_a_clean_reduction(
    upscaler: Upscaler,
    size: tuple[int, int],
    tiles: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pillow's antialiased bicubic within its rounding; the network is not asked."""
    monkeypatch.setattr(Upscaler, "encode", lambda *_: pytest.fail("the network enlarges"))
    monkeypatch.setattr(planning, "measure_rates", lambda *_: (1.0, 1.0))
    whole, *others = three_ways(upscaler, smooth(), size, tmp_path)
    expected = PIL.Image.fromarray(smooth()).resize(size[::-1], PIL.Image.Resampling.BICUBIC)
    np.testing.assert_allclose(whole.astype(int), np.asarray(expected).astype(int), atol=2)
    for other in others:
        np.testing.assert_array_equal(other, whole)
    assert upscaler.used_backend == "bicubic"


@pytest.mark.parametrize("size", [(60, 270), (360, 45), (60, 110)])
def test_one_axis_is_reduced_and_the_other_enlarged(
    upscaler: Upscaler, size: tuple[int, int], tiles: None, tmp_path: Path
) -> None:
    image = picture(120, 90)
    whole, *others = three_ways(upscaler, image, size, tmp_path)
    planes = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    small = min(120, size[0]), min(90, size[1])
    first = resize_bicubic(planes, small, Window(0, small[0], 0, small[1]))
    alike = upscaler.for_bits(8)  # floats are not in integers of themselves
    second = (alike(first, size=size) * 255 + 0.5).byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(whole, second)
    for other in others:
        np.testing.assert_array_equal(other, whole)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_alpha_and_grey_of_a_smaller_output(
    upscaler: Upscaler, channels: int, tiles: None, tmp_path: Path
) -> None:
    image = picture(120, 90, channels)
    kept = image[..., 0] if channels == 1 else image
    if channels == 2:
        kept = np.asarray(image)
    np.save(tmp_path / "in.npy", kept)
    for size in ((50, 40), (50, 120)):
        out = np.load(upscaler.render(tmp_path / "in.npy", tmp_path / "out.npy", size=size))
        (tmp_path / "out.npy").unlink()
        with upscaler.open(tmp_path / "in.npy") as view:
            np.testing.assert_array_equal(view.render(None, size), out)
        if channels != 2:
            np.testing.assert_array_equal(upscaler(kept, size=size), out)


def test_the_same_size_is_made_by_the_network(upscaler: Upscaler) -> None:
    image = picture(40, 50)
    assert not np.array_equal(upscaler(image, scale=1), image)


@pytest.mark.long
def test_regions_of_a_strong_reduction_are_bitwise_the_whole(seed: random.Random) -> None:
    """A source reads at most so much at a time, whatever the factor."""
    source = ReducedSource(open_source(picture(1500, 1300)), (11, 700))
    whole, _ = source.read(0, 11, 0, 700)
    for _ in range(5):
        (y0, y1), (x0, x1) = (sorted(seed.sample(range(n + 1), 2)) for n in (11, 700))
        assert torch.equal(source.read(y0, y1, x0, x1)[0], whole[:, y0:y1, x0:x1])


def test_one_warning_per_picture(
    upscaler: Upscaler, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        upscaler(picture(40, 50), scale=0.5)
        upscaler.render(picture(40, 50), tmp_path / "out.npy", scale=(0.5, 2))
    first, second = (record.getMessage() for record in caplog.records)
    assert "25x20 pixels is smaller than the picture of 50x40" in first
    assert "100x20 pixels is smaller than the picture of 50x40" in second


# -- neutral pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(140, 170), (70, 30), (30, 40)])
def test_a_neutral_picture_stays_neutral(
    upscaler: Upscaler, size: tuple[int, int], tiles: None, tmp_path: Path
) -> None:
    """As the grey picture that it is, in three channels."""
    grey = picture(70, 85, 1)[..., 0]
    image = np.repeat(grey[..., None], 3, 2)
    expected = np.repeat(upscaler(grey, size=size)[..., None], 3, 2)
    for found in three_ways(upscaler, image, size, tmp_path):
        np.testing.assert_array_equal(found, expected)


def test_one_coloured_pixel_makes_a_picture_coloured(
    upscaler: Upscaler, tiles: None, tmp_path: Path
) -> None:
    image = np.repeat(picture(70, 85, 1), 3, 2)
    image[69, 84] = (1, 2, 3)
    whole, *others = three_ways(upscaler, image, (140, 170), tmp_path)
    assert np.ptp(whole.astype(int), axis=2).max() > 0
    for other in others:
        np.testing.assert_array_equal(other, whole)


def test_colour_that_nobody_sees_does_not_count(upscaler: Upscaler) -> None:
    image = np.repeat(picture(40, 50, 1), 4, 2)
    image[..., 3] = 255
    image[10:20, 10:20] = (250, 3, 80, 0)
    found = upscaler(image, scale=2)
    assert np.ptp(found[..., :3].astype(int), axis=2).max() == 0


@pytest.mark.parametrize("rows", [1, 4])
def test_neutral_tensors_of_a_batch(upscaler: Upscaler, rows: int) -> None:
    grey = torch.rand(1, 1, 30, rows * 10).expand(1, 3, -1, -1)
    both = torch.cat([grey, torch.rand(1, 3, 30, rows * 10)])
    found = upscaler(both, scale=1.5)
    assert torch.equal(found[0, 0], found[0, 1]) and torch.equal(found[0, 1], found[0, 2])
    assert not torch.equal(found[1, 0], found[1, 1])


def test_a_dry_run_names_the_size_of_the_picture(upscaler: Upscaler, tmp_path: Path) -> None:
    spec = rendering.prepare(upscaler, picture(40, 50), tmp_path / "out.npy", scale=0.5)
    first, *lines = rendering.describe(spec, rendering.make_plan(spec)).splitlines()
    assert first.startswith("50x40 -> ") and "25x20" in first
    assert any(line.startswith("halo       0 LR pixels (exact)") for line in lines)
