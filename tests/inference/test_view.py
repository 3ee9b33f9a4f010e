"""Windows on demand: the pixels of the whole at any size, and features that are made once."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.small_models import picture, small_model

import diinn_fast
from diinn_fast.errors import UpscaleError
from diinn_fast.inference import Upscaler, View, view


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


@pytest.fixture
def tiles(monkeypatch) -> None:
    """Tiles of 40 LR pixels: six of them for the picture."""
    monkeypatch.setattr(view, "TILE", 40)


def opened(image, **options) -> View:
    return diinn_fast.open(image, small_model(), device="cpu", **options)


def test_any_window_at_any_size_is_that_of_the_whole(upscaler, tiles, seed):
    image = picture(80, 110)
    shown = opened(image)
    for size in ((80, 110), (173, 301), (33, 50), (400, 123)):
        whole = upscaler(image, size=size)
        np.testing.assert_array_equal(shown.render(None, size), whole)
        for _ in range(5):
            (y0, y1), (x0, x1) = (sorted(seed.sample(range(n + 1), 2)) for n in size)
            np.testing.assert_array_equal(shown.render((y0, y1, x0, x1), size), whole[y0:y1, x0:x1])


def test_tiles_of_a_narrow_picture(upscaler, tiles):
    whole = upscaler(picture(4, 290), scale=2)
    np.testing.assert_array_equal(opened(picture(4, 290)).render(None, whole.shape[:2]), whole)


@pytest.mark.parametrize("mode", [1, 4])
def test_other_modes(mode, tiles):
    shown = diinn_fast.open(picture(), small_model(mode=mode), device="cpu")
    for size in ((201, 170), (41, 60)):
        whole = Upscaler(small_model(mode=mode), device="cpu")(picture(), size=size)
        np.testing.assert_array_equal(shown.render((30, 41, 20, 60), size), whole[30:41, 20:60])


def test_each_tile_is_encoded_once_whatever_the_sizes(tiles):
    with opened(picture(80, 110)) as shown:
        shown.render((0, 10, 0, 10), (160, 220))
        assert shown.encoded == 1
        shown.render((0, 20, 0, 20), (320, 440))
        assert shown.encoded == 1
        shown.render(None, (160, 220))
        shown.render(None, (240, 330))
        assert shown.encoded == 6


def test_the_features_kept_are_bounded_and_the_last_used_stay(tiles):
    shown = opened(picture(80, 110), max_features=2 * 40 * 40 * 32 * 4)  # two tiles
    corner = (0, 5, 0, 5)
    for window in (corner, (0, 5, 50, 60), corner, (0, 5, 90, 95)):
        shown.render(window, (80, 110))
    assert shown.encoded == 3
    shown.render(corner, (80, 110))
    assert shown.encoded == 3, "the corner was used after the tile that made room"
    shown.render((0, 5, 50, 60), (80, 110))
    assert shown.encoded == 4


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(upscaler, channels):
    image = picture(channels=channels)
    image = image[..., 0] if channels == 1 else image
    whole = upscaler(image, scale=1.7)
    part = opened(image).render((40, 90, 30, 120), whole.shape[:2])
    np.testing.assert_array_equal(part, whole[40:90, 30:120])


def test_slices_like_an_array(upscaler):
    whole = upscaler(picture(), scale=2)
    lazy = opened(picture()).at(whole.shape[:2])
    assert (lazy.shape, lazy.dtype, lazy.ndim) == (whole.shape, whole.dtype, 3)
    for key in (
        np.s_[10:20, 30:50], np.s_[5], np.s_[-3:, ..., 1], np.s_[::-7, 3::5], np.s_[..., 0],
        np.s_[4, -6, 2],
        np.s_[9:9],
    ):  # fmt: skip
        np.testing.assert_array_equal(lazy[key], whole[key])
    np.testing.assert_array_equal(np.asarray(lazy), whole)
    with pytest.raises(IndexError):
        lazy[1000]


def test_nothing_is_encoded_for_an_empty_slice():
    shown = opened(picture())
    assert shown.at((50, 60))[3:3, :].shape == (0, 60, 3)
    assert shown.encoded == 0


def test_windows_outside_are_refused():
    shown = opened(picture())
    for window, size in (((0, 5, 0, 500), (90, 110)), ((5, 5, 0, 1), (90, 110)), (None, (0, 10))):
        with pytest.raises(UpscaleError):
            shown.render(window, size)
