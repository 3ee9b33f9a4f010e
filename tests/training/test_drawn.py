"""Drawn pictures among the crops of training."""

from __future__ import annotations

import numpy as np
import pytest

from diinn_fast.data import CropSampler
from diinn_fast.data import crops as crops_module
from diinn_fast.data.drawn import draw_picture
from diinn_fast.errors import DataError
from diinn_fast.training.datamodule import PhotoData


def drawn(seed: int, side: int = 48) -> np.ndarray:
    return draw_picture(np.random.default_rng(seed), side)


@pytest.mark.parametrize("side", [1, 2, 31, 192])
def test_a_picture_is_a_square_of_its_seed_alone(side: int) -> None:
    for seed in range(20):
        picture = drawn(seed, side)
        assert picture.shape == (side, side, 3) and picture.dtype == np.uint8
        assert np.array_equal(picture, drawn(seed, side))


def test_pictures_differ_and_most_have_edges() -> None:
    pictures = [drawn(seed) for seed in range(60)]
    assert len({picture.tobytes() for picture in pictures}) > 55
    steps = [np.abs(np.diff(picture.astype(int), axis=1)).max() for picture in pictures]
    assert np.mean(np.array(steps) > 60) > 0.8


@pytest.mark.parametrize(
    ("share", "least", "most"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)]
)
def test_the_share_of_drawn_crops_is_the_one_asked_for(
    share: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(rng: np.random.Generator, side: int) -> np.ndarray:
        made.append(side)
        return np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr(crops_module, "draw_picture", counted)
    photo = np.full((40, 40, 3), 255, np.uint8)
    sampler = CropSampler([photo], lr_size=4, batch=4, drawn=share, max_scale=4.0, seed=3)
    found = [crops for step in range(100) for crops in sampler.step(step)]
    assert least <= len(made) <= most
    assert sum(int((crops.hr == 0).all((1, 2, 3)).sum()) for crops in found) == len(made)


def test_crops_with_drawn_ones_depend_on_seed_and_step_alone() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sampler = CropSampler([photo], lr_size=8, batch=4, samples=9, drawn=0.5, seed=1)
    whole = sampler.step(7)[0]
    halves = [sampler.step(7, rank, 2)[0] for rank in range(2)]
    assert np.array_equal(whole.hr, np.concatenate([half.hr for half in halves]))
    assert whole.yx is not None and whole.yx.max() < whole.hr.shape[-1]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(DataError, match=r"--data\.drawn is .*: it is a share, from 0 to 1"):
        PhotoData("photos", drawn=share)
