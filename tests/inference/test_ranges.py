"""Sample ranges: data that does not fill its type is seen as it is meant, and given back alike."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diinn_fast
from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.formats import read_image, write_image
from diinn_fast.inference import Upscaler
from diinn_fast.inference.ranges import check_range
from tests.helpers.small_models import small_model


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


def content(height: int = 40, width: int = 50) -> np.ndarray:
    """8 bits of content, both ends of the range in it."""
    samples = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    samples[0, 0] = 0
    samples[0, 1] = 255
    return samples


STORED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, int]] = {
    "8 bits": (lambda unit: np.round(unit * 255).astype(np.uint8), 0, 255),
    "16 bits": (lambda unit: np.round(unit * 65535).astype(np.uint16), 0, 65535),
    "12 bits in 16": (lambda unit: np.round(unit * 4095).astype(np.uint16), 0, 4095),
    "10 bits and an offset": (
        lambda unit: (500 + np.round(unit * 1023)).astype(np.uint16),
        500,
        1523,
    ),
    "8 bits in 16": (lambda unit: np.round(unit * 255).astype(np.uint16), 0, 255),
    "1000 to 1255": (lambda unit: (1000 + np.round(unit * 255)).astype(np.uint16), 1000, 1255),
    "floats": (lambda unit: unit.astype(np.float32), 0, 1),
    "floats to 4095": (lambda unit: (unit * 4095).astype(np.float32), 0, 4095),
    "signed floats": (lambda unit: (unit * 2000 - 1000).astype(np.float32), -1000, 1000),
}
"""How content in [0, 1] is stored, and its lowest and highest sample."""


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("by_hand", [False, True])
def test_what_is_meant_alike_is_seen_alike(upscaler: Upscaler, kind: str, by_hand: bool) -> None:
    """However it is stored, the output is that of the full range, within rounding."""
    unit = content() / 255
    store, low, high = STORED[kind]
    expected = upscaler(unit.astype(np.float32), scale=2)
    given = store(unit)
    out = upscaler(given, scale=2, range=(low, high) if by_hand else "auto")
    assert out.dtype == given.dtype
    step = 1 / (high - low) if given.dtype.kind == "u" else 5e-6
    seen = (out.astype(np.float64) - low) / (high - low)
    # Samples of few bits differ at the input and at the output by half a step.
    np.testing.assert_allclose(seen, expected, atol=0.6 * step + 2e-3 * (step > 1e-5))
    assert out.min() >= low and out.max() <= high


def test_the_type_is_the_default(upscaler: Upscaler) -> None:
    samples = content().astype(np.uint16) * 257
    expected = upscaler(samples, scale=2)
    np.testing.assert_array_equal(upscaler(samples, scale=2, range="dtype"), expected)
    np.testing.assert_array_equal(upscaler(samples, scale=2, range="auto"), expected)


@pytest.mark.parametrize("kind", STORED)
def test_files_are_as_arrays(upscaler: Upscaler, tmp_path: Path, kind: str) -> None:
    """In pieces, from and into files."""
    store, _, _ = STORED[kind]
    given = store(content() / 255)
    expected = upscaler(given, scale=2, range="auto")
    np.save(tmp_path / "in.npy", given)
    upscaler.render(tmp_path / "in.npy", tmp_path / "out.npy", scale=2, range="auto")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    with upscaler.open(tmp_path / "in.npy", range="auto") as view:
        np.testing.assert_array_equal(view.render(None, expected.shape[:2]), expected)
        seen = view.bicubic(None, given.shape[:2])
        np.testing.assert_allclose(seen, given, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("value", [1000, 0, 65535])
def test_a_constant_picture_stays_exactly_constant(upscaler: Upscaler, value: int) -> None:
    samples = np.full((20, 30, 3), value, np.uint16)
    assert (upscaler(samples, scale=2, range="auto") == value).all()


def test_reductions_keep_the_range(upscaler: Upscaler) -> None:
    samples = (1000 + content().astype(np.uint16) % 256).astype(np.uint16)
    out = upscaler(samples, scale=0.5, range="auto")
    assert out.min() >= 1000 and out.max() <= 1255
    np.testing.assert_allclose(out, upscaler(samples, scale=0.5), atol=1)


def test_transparent_pixels_do_not_count_and_alpha_is_no_sample(upscaler: Upscaler) -> None:
    given = np.zeros((20, 30, 4), np.uint16)
    given[..., :3] = 1000 + np.random.default_rng(1).integers(0, 256, (20, 30, 3))
    given[..., 3] = 65535
    given[5:9, 5:9] = 0
    out = upscaler(given, scale=2, range="auto")
    opaque = out[out[..., 3] == 65535][:, :3]
    assert opaque.min() >= 1000 and opaque.max() <= 1255
    assert out[..., 3].max() == 65535 and out[13, 13, 3] == 0


def test_each_picture_of_a_batch_has_its_own(upscaler: Upscaler) -> None:
    one = torch.rand(1, 3, 20, 30)
    out = upscaler(torch.cat([one, one * 100 - 50]), scale=2, range="auto")
    np.testing.assert_allclose(out[1].numpy(), out[0].numpy() * 100 - 50, atol=2e-3)


def test_what_is_beyond_is_cut_off(upscaler: Upscaler) -> None:
    samples = content().astype(np.uint16) * 40
    expected = upscaler(samples.clip(1000, 4095), scale=2, range=(1000, 4095))
    np.testing.assert_array_equal(upscaler(samples, scale=2, range=(1000, 4095)), expected)
    assert expected.min() >= 1000 and expected.max() <= 4095


# -- warnings and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_picture_that_uses_little_of_its_range_is_warned_of(
    upscaler: Upscaler, tmp_path: Path, caplog: pytest.LogCaptureFixture, in_pieces: bool
) -> None:
    def upscale(samples: np.ndarray, **options: Any) -> str:
        caplog.clear()
        if in_pieces:
            out = tmp_path / "out.npy"
            upscaler.render(samples, out, scale=2, overwrite=True, **options)
        else:
            upscaler(samples, scale=2, **options)
        return caplog.text

    dark = content().astype(np.uint16) * 16
    dark[0, 1] = 4080
    assert "uses 0 to 4080 of the sample range 0 to 65535" in upscale(dark)
    assert '(range="auto")' in caplog.text
    assert upscale(dark, range="auto") == upscale(dark, range=(0, 4095)) == ""
    assert upscale(dark * 5) == "", "it uses more than a quarter"
    assert upscale(content() // 8) == "", "8 bits are never stretched unasked"
    assert "uses 0 to 0.1 of" in upscale((content() / 2550).astype(np.float32))


@pytest.mark.parametrize("asked", ["automatic", (1, 1), (5, 2), (0, float("nan")), (1,), 7, None])
def test_ranges_that_are_none_are_refused(
    asked: str | tuple[int, int] | tuple[int, float] | tuple[int] | int | None,
) -> None:
    with pytest.raises(UpscaleError, match='"dtype", "auto", or the lowest'):
        check_range(asked)


@pytest.mark.parametrize("asked", [(-1, 255), (0, 256)])
def test_ranges_beyond_the_type_are_refused(
    upscaler: Upscaler, tmp_path: Path, asked: tuple[int, int]
) -> None:
    for upscale in (
        lambda: upscaler(content(), scale=2, range=asked),
        lambda: upscaler.render(content(), tmp_path / "out.npy", scale=2, range=asked),
    ):
        with pytest.raises(UpscaleError, match="beyond what the picture's samples can be"):
            upscale()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(
    upscaler: Upscaler, tmp_path: Path, value: Any
) -> None:
    samples = (content() * 16.0).astype(np.float32)
    samples[3, 3, 1] = value
    np.save(tmp_path / "in.npy", samples)
    for asked in ("auto", (0.0, 4080.0)):
        with pytest.raises((UpscaleError, ImageError, FloatingPointError), match="NaN"):
            upscaler.render(tmp_path / "in.npy", tmp_path / "out.npy", scale=2, range=asked)
    with pytest.raises(UpscaleError, match="NaN"):
        upscaler(np.where(np.isinf(samples), np.nan, samples), scale=2, range="auto")


def test_floats_beyond_0_and_1_are_refused_and_the_remedy_is_named(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    samples = (content() * 16.0).astype(np.float32)
    np.save(tmp_path / "in.npy", samples)
    with pytest.raises(UpscaleError, match='range="auto"'):
        upscaler(samples, scale=2)
    with pytest.raises((UpscaleError, ImageError), match="--range auto"):
        upscaler.render(tmp_path / "in.npy", tmp_path / "out.npy", scale=2)
    assert not (tmp_path / "out.npy").exists()


# -- files -----------------------------------------------------------------------------------------


def test_float_pictures_of_any_range_are_read_and_written(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    import tifffile

    samples = (content() * 16.0).astype(np.float32)
    tifffile.imwrite(tmp_path / "in.tif", samples, photometric="rgb")
    with pytest.raises(ImageError, match="--range auto"):
        read_image(tmp_path / "in.tif")
    out = upscaler(tmp_path / "in.tif", scale=2, range="auto")
    write_image(tmp_path / "out.tif", out)
    written = tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(written, upscaler(samples, scale=2, range="auto"))
    with pytest.raises(ImageError, match=r"floats beyond \[0, 1\]: write \.tif"):
        write_image(tmp_path / "out.png", out)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("tags", (0, 4095)),
        ("OME-XML", (0, 4095)),
        ("less than there is", (100, 3000)),
        ("more than can be", (100, 3000)),
        ("nothing", (100, 3000)),
    ],
)
def test_auto_is_what_a_file_states_if_that_can_be(
    upscaler: Upscaler, tmp_path: Path, in_pieces: bool, stated: str, expected: tuple[int, int]
) -> None:
    import tifffile

    samples = (content()[..., 0] * 10 + 100).clip(100, 3000).astype(np.uint16)
    samples[0, :2] = 100, 3000
    most = {"tags": 4095, "less than there is": 2000, "more than can be": 70000}.get(stated)
    tags = [] if most is None else [(340, 4, 1, 0, True), (341, 4, 1, most, True)]
    xml = '<OME xmlns="x"><Image><Pixels SignificantBits="12"/></Image></OME>'
    if stated == "OME-XML":
        tifffile.imwrite(tmp_path / "in.tif", samples, metadata=None, description=xml)
    else:
        tifffile.imwrite(tmp_path / "in.tif", samples, metadata=None, extratags=tags)
    hand = upscaler(samples, scale=2, range=expected)
    if in_pieces:
        upscaler.render(tmp_path / "in.tif", tmp_path / "out.npy", scale=2, range="auto")
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), hand)
    else:
        write_image(tmp_path / "out.tif", upscaler(tmp_path / "in.tif", scale=2, range="auto"))
        with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
            np.testing.assert_array_equal(tiff.pages.first.asarray(), hand)


def test_the_range_is_part_of_the_job(upscaler: Upscaler, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", content().astype(np.uint16) + 1000)
    job = {"out": tmp_path / "out.png", "scale": 2}
    upscaler.render(tmp_path / "in.npy", range="auto", **job)
    before = Path(job["out"]).read_bytes()
    upscaler.render(tmp_path / "in.npy", range=(1000, 1255), resume=True, **job)
    with pytest.raises(ImageError, match="already exists"):
        upscaler.render(tmp_path / "in.npy", range=(0, 4095), resume=True, **job)
    assert Path(job["out"]).read_bytes() == before


def test_a_view_in_another_process_has_the_same_range(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", content().astype(np.uint16) + 1000)
    with diinn_fast.open(tmp_path / "in.npy", range="auto", device="cpu") as view:
        other = pickle.loads(pickle.dumps(view))
        with other:
            window = (0, 8, 0, 8)
            np.testing.assert_array_equal(
                other.render(window, (80, 100)), view.render(window, (80, 100))
            )
