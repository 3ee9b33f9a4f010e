"""What a served picture's samples are on the screen: 8 bits, from black to white."""

from __future__ import annotations

import numpy as np
import pytest

import diinn_fast
from diinn_fast.inference import Upscaler
from diinn_fast.serve import Picture
from diinn_fast.serve.picture import Cut
from tests.helpers.known_models import random_model

SIZE = (6, 8)
WHOLE = Cut(diinn_fast.geometry.Window(0, 6, 0, 8), SIZE)


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(random_model(), device="cpu")


def picture(upscaler: Upscaler, samples: np.ndarray, **options: object) -> Picture:
    return Picture("leaf", upscaler.open(samples, **options))


def deep(low: int, high: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(0)
    samples = random.integers(low, high + 1, (*SIZE, channels)).astype(np.uint16)
    samples[0, 0] = low
    samples[0, 1] = high
    return samples


def test_sixteen_bits_become_the_nearest_eight(upscaler: Upscaler) -> None:
    samples = deep(0, 65535)
    expected = np.floor(samples / 65535 * 255 + 0.5)
    np.testing.assert_array_equal(picture(upscaler, samples).bicubic(WHOLE), expected)


@pytest.mark.parametrize("asked", ["auto", (1000, 3000)])
def test_a_range_is_shown_from_black_to_white(upscaler: Upscaler, asked: object) -> None:
    samples = deep(1000, 3000)
    shown = picture(upscaler, samples, range=asked)
    expected = (samples.astype(float) - 1000) / 2000 * 255
    assert abs(shown.bicubic(WHOLE) - expected).max() < 0.51
    # The network's, too: what it makes of the range is stretched as the picture is.
    twice = Cut(diinn_fast.geometry.Window(0, 12, 0, 16), (12, 16))
    made = upscaler(samples, scale=2, range=asked).astype(float)
    stretched = ((made - 1000) / 2000 * 255).clip(0, 255)
    assert abs(shown.sharp(twice) - stretched).max() < 0.6


def test_alpha_has_no_range(upscaler: Upscaler) -> None:
    samples = deep(1000, 3000, 4)
    samples[..., 3] = 65535
    samples[2:, :, 3] = 32768
    shown = picture(upscaler, samples, range=(1000, 3000)).bicubic(WHOLE)
    np.testing.assert_array_equal(shown[..., 3], np.where(samples[..., 3] == 65535, 255, 128))


def test_one_colour_alone_is_black(upscaler: Upscaler) -> None:
    shown = picture(upscaler, np.full((*SIZE, 3), 700, np.uint16), range="auto")
    assert not shown.bicubic(WHOLE).any()


def test_floats_have_their_own_range(upscaler: Upscaler) -> None:
    heights = np.linspace(-400, 8000, 48, dtype=np.float32).reshape(SIZE)
    shown = picture(upscaler, heights, range="auto").bicubic(WHOLE)
    assert (shown[0, 0], shown[-1, -1]) == (0, 255)
    assert (np.diff(shown.ravel().astype(int)) > 0).all()
