"""Samples that a GeoTIFF calls missing (nodata) are no colours: they go the way of alpha, and the
output has the same value in their place, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from diinn_fast.errors import ImageError
from diinn_fast.formats import read_image, write_image
from diinn_fast.formats.missing import Missing
from diinn_fast.inference import Upscaler
from diinn_fast.inference.bleed import AROUND, CELL, bleed_picture, bleed_window
from diinn_fast.inference.plan import Plan, Task
from diinn_fast.inference.rendering import planning
from diinn_fast.metadata import Metadata
from diinn_fast.metadata.geotiff import NODATA
from diinn_fast.metadata.tags import ascii_tag
from tests.helpers.small_models import picture, small_model

H = 40
W = 50
HOLE = np.zeros((H, W), bool)
HOLE[8:20, 10:30] = HOLE[30, 40] = True

KINDS = [
    ("uint8", "0"), ("uint8", "255"), ("uint16", "65535"), ("uint16", "1000"), ("float32", "-9999"),
    ("float32", "nan"), ("float32", "-3.4028234663852886e+38"), ("float32", "-inf"),
]  # fmt: skip


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


def content(dtype: str, channels: int) -> np.ndarray:
    """Valid samples alone."""
    samples = picture(H, W, channels).astype(np.float64).clip(1, 250)
    factor = {"uint8": 1.0, "uint16": 257.0, "float32": 1 / 255}[dtype]
    return (samples * factor).astype(dtype)


def save(path: Path, samples: np.ndarray, nodata: str | None) -> Path:
    channels = samples.shape[2]
    tags = [] if nodata is None else [(NODATA, 2, len(nodata) + 1, nodata, True)]
    tifffile.imwrite(
        path, samples if channels > 1 else samples[..., 0], metadata=None, extratags=tags,
        photometric="rgb" if channels > 2 else "minisblack", planarconfig="contig",
        extrasamples=[2] if channels in (2, 4) else None,
    )  # fmt: skip
    return path


def with_hole(dtype: str, nodata: str, channels: int) -> np.ndarray:
    samples = content(dtype, channels)
    samples[HOLE] = np.float64(nodata).astype(dtype)
    return samples


def missing_in(samples: np.ndarray, nodata: str) -> np.ndarray:
    samples = samples.reshape(*samples.shape[:2], -1)
    value = np.float64(nodata).astype(samples.dtype)
    found: np.ndarray = (np.isnan(samples) if nodata == "nan" else samples == value).all(-1)
    return found


@pytest.mark.parametrize(
    ("hr", "channels"), [((80, 100), 1), ((20, 120), 3), ((20, 25), 1)], ids=str
)
@pytest.mark.parametrize(("dtype", "nodata"), KINDS)
def test_they_go_the_way_of_alpha(
    upscaler: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, nodata: str,
    channels: int, hr: tuple[int, int],
) -> None:  # fmt: skip
    """The output is that of a picture with alpha in their place, alike in memory and in pieces."""
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    alpha = np.where(HOLE, 0, top)[..., None].astype(dtype)
    save(tmp_path / "alpha.tif", np.concatenate([content(dtype, channels), alpha], -1), None)
    upscaler.render(tmp_path / "alpha.tif", tmp_path / "expected.tif", size=hr)
    expected = tifffile.imread(tmp_path / "expected.tif")

    path = save(tmp_path / "in.tif", with_hole(dtype, nodata, channels), nodata)

    def in_tiles(task: Task, base: int, bound: int) -> Plan:
        return Plan(task.lr, task.hr, task.unit, task.radius or 0, (2, 3), (16, 64), 16, 1 << 16, 0)

    monkeypatch.setattr(planning, "plan_within", in_tiles)
    upscaler.render(path, tmp_path / "pieces.tif", size=hr)
    write_image(tmp_path / "memory.tif", upscaler(path, size=hr))
    out = tifffile.imread(tmp_path / "pieces.tif")
    np.testing.assert_array_equal(out, tifffile.imread(tmp_path / "memory.tif"))

    missing = missing_in(out, nodata)
    np.testing.assert_array_equal(missing, expected[..., -1].astype(float) / top < 0.5)
    assert abs(missing.sum() - HOLE.sum() * hr[0] * hr[1] / (H * W)) < 0.15 * missing.sum()
    out = out.reshape(*out.shape[:2], -1)
    np.testing.assert_array_equal(out[~missing], expected[..., :-1][~missing])
    with tifffile.TiffFile(tmp_path / "pieces.tif") as tiff:
        tag = tiff.pages.first.tags[NODATA]
        tiff.filehandle.seek(tag.valueoffset)
        assert tiff.filehandle.read(len(nodata)).decode() == nodata


@pytest.mark.parametrize(("dtype", "nodata"), KINDS)
def test_what_is_read_is_written_again(tmp_path: Path, dtype: str, nodata: str) -> None:
    for channels in (1, 3):
        samples = with_hole(dtype, nodata, channels)
        save(tmp_path / "in.tif", samples, nodata)
        write_image(tmp_path / "out.tif", read_image(tmp_path / "in.tif"), overwrite=True)
        found = tifffile.imread(tmp_path / "out.tif").reshape(samples.shape)
        np.testing.assert_array_equal(found, samples)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_an_automatic_range_is_that_of_valid_samples(
    upscaler: Upscaler, tmp_path: Path, dtype: str
) -> None:
    """Heights of 1000 to 1249 and -9999 (or 0) where nothing was measured."""
    nodata = "-9999" if dtype == "float32" else "0"
    samples = (content("uint8", 1) + 999.0).astype(dtype)
    samples[0, 0], samples[0, 1] = 1000, 1249
    samples[HOLE] = float(nodata)
    path = save(tmp_path / "in.tif", samples, nodata)
    out = tmp_path / "out.tif"
    upscaler.render(path, out, scale=2, range="auto")
    upscaler.render(path, tmp_path / "by_hand.tif", scale=2, range=(1000, 1249))
    np.testing.assert_array_equal(tifffile.imread(out), tifffile.imread(tmp_path / "by_hand.tif"))
    valid = tifffile.imread(out)[~missing_in(tifffile.imread(out), nodata)]
    assert valid.min() >= 1000 and valid.max() <= 1249


@pytest.mark.parametrize(
    ("dtype", "value", "beside"),
    [("uint8", 0, 1), ("uint8", 255, 254), ("uint16", 7, 8), ("float32", -9999.0, None)],
)
@pytest.mark.parametrize("as_floats", [False, True])
def test_a_valid_sample_is_never_taken_for_missing(
    dtype: str, value: float, beside: float | None, as_floats: bool
) -> None:
    missing = Missing(value, dtype)
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    samples = np.full((3, 2, 2), value, np.float32 if as_floats else dtype)
    if as_floats:
        samples /= top
    alpha = torch.tensor([[[0.0, 0.49], [0.5, 1.0]]])
    missing.put(torch.from_numpy(samples), alpha, half=True)
    found = samples * top if as_floats else samples
    assert (np.round(found[:, 0]) == value).all()
    if beside is None:
        assert (value < found[:, 1]).all() and (found[:, 1] < value + 0.01).all()
    else:
        assert (np.round(found[:, 1]) == beside).all()


def test_a_pixel_of_which_one_channel_has_the_value_is_a_colour(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    samples = content("uint8", 3)
    samples[..., 1] = 0
    upscaler.render(save(tmp_path / "in.tif", samples, "0"), tmp_path / "a.tif", scale=2)
    upscaler.render(save(tmp_path / "in.tif", samples, None), tmp_path / "b.tif", scale=2)
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "a.tif"), tifffile.imread(tmp_path / "b.tif")
    )


@pytest.mark.parametrize("nodata", ["-1", "300", "0.5", "none"])
def test_a_value_that_no_sample_can_have_is_none(
    upscaler: Upscaler, tmp_path: Path, nodata: str
) -> None:
    assert Missing.of(Metadata(geo=(ascii_tag(NODATA, nodata),)), "uint8") is None


def test_with_alpha_too_both_count(upscaler: Upscaler, tmp_path: Path) -> None:
    samples = content("uint8", 4)
    samples[..., 3] = 255
    samples[HOLE, :3] = 0
    out = tmp_path / "out.tif"
    upscaler.render(save(tmp_path / "in.tif", samples, "0"), out, scale=2)
    found = tifffile.imread(out)
    assert found.shape == (80, 100, 4)
    assert (found[24:32, 28:52] == 0).all() and (found[50:58, :60, 3] == 255).all()


def test_no_metadata_is_not_no_nodata(upscaler: Upscaler, tmp_path: Path) -> None:
    """It says what samples mean, as a profile does."""
    path = save(tmp_path / "in.tif", with_hole("uint8", "0", 1), "0")
    upscaler.render(path, tmp_path / "out.tif", scale=2, metadata="none")
    assert missing_in(tifffile.imread(tmp_path / "out.tif"), "0").any()
    assert read_image(tmp_path / "out.tif").missing == Missing(0, "uint8")


def test_a_window_of_a_view_has_them_too(upscaler: Upscaler, tmp_path: Path) -> None:
    path = save(tmp_path / "in.tif", with_hole("uint8", "0", 3), "0")
    upscaler.render(path, tmp_path / "out.tif", scale=2)
    with upscaler.open(path) as view:
        found = view.render((10, 60, 0, 100), (80, 100))
        np.testing.assert_array_equal(found, tifffile.imread(tmp_path / "out.tif")[10:60])
        assert missing_in(view.bicubic(None, (80, 100)), "0")[24:32, 28:52].all()


def test_a_format_that_cannot_hold_such_floats_refuses(upscaler: Upscaler, tmp_path: Path) -> None:
    """And NaN without the tag is no number to be enlarged."""
    path = save(tmp_path / "in.tif", with_hole("float32", "-9999", 1), "-9999")
    with pytest.raises(ImageError, match=r"floats beyond \[0, 1\]: write \.tif"):
        write_image(tmp_path / "out.png", upscaler(path, scale=2))
    with pytest.raises(ImageError, match="cannot hold float32"):
        upscaler.render(path, tmp_path / "out.png", scale=2)
    save(tmp_path / "in.tif", with_hole("float32", "nan", 1), None)
    with pytest.raises(ImageError, match="NaN or infinite"):
        upscaler.render(tmp_path / "in.tif", tmp_path / "out.tif", scale=2)


# -- colour under what cannot be seen --------------------------------------------------------------


def test_filling_does_not_depend_on_windows() -> None:
    """Each pixel is filled from its cell and what is around it."""
    size = CELL + 90, 2 * CELL + 30
    rgb = torch.rand(3, *size)
    alpha = (torch.rand(1, *size) < 0.01).float()
    alpha[:, :, 40:300] = 0
    whole = bleed_picture(rgb, alpha)

    def read(window: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        y0, y1, x0, x1 = window
        return rgb[:, y0:y1, x0:x1], alpha[:, y0:y1, x0:x1]

    from diinn_fast.geometry import Window

    for window in ((0, 30, 0, size[1]), (CELL - 5, CELL + 40, 17, 411), (200, 201, 290, 330)):
        found, seen = bleed_window(read, size, Window(*window))
        y0, y1, x0, x1 = window
        assert torch.equal(found, whole[:, y0:y1, x0:x1])
        assert torch.equal(seen, alpha[:, y0:y1, x0:x1])
    assert torch.equal(whole[:, alpha[0] > 0], rgb[:, alpha[0] > 0])
    near = whole[:, :, : 40 + AROUND // 2]  # beside what is visible, colours go on
    assert near[alpha[:, :, : 40 + AROUND // 2].expand_as(near) == 0].std() < 0.25
