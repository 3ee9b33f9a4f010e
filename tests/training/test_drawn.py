"""Drawn and framed pictures among the crops of training."""

from __future__ import annotations

import numpy as np
import pytest

from diinn_fast.data import CropSampler
from diinn_fast.data import crops as crops_module
from diinn_fast.data.drawn import add_frame, draw_picture
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


@pytest.mark.parametrize("side", [1, 40])
def test_a_frame_lies_along_the_border_and_leaves_the_rest(side: int) -> None:
    picture = np.full((side, side, 3), 128, np.uint8)
    widths = set()
    for seed in range(60):
        framed = add_frame(np.random.default_rng(seed), picture)
        assert (picture == 128).all() and framed.shape == picture.shape
        assert np.array_equal(framed, add_frame(np.random.default_rng(seed), picture))
        assert (framed[4:-4, 4:-4] == 128).all()
        changed = (framed != 128).any(-1)
        # On each side all of the line or none of it, and one colour in all.
        widths.add(int(changed[:, side // 2].sum() + changed[side // 2].sum()))
        assert len(np.unique(framed[changed], axis=0)) <= 1
        for turns in range(4):
            middle = np.rot90(changed, turns)[0, side // 2]
            assert not middle or np.rot90(changed, turns)[0].all()
    assert len(widths) > (1 if side == 1 else 5)


def test_framed_crops_are_as_many_as_asked_for_and_photographs_otherwise_the_same() -> None:
    photo = np.full((64, 64, 3), 200, np.uint8)
    made = CropSampler([photo], lr_size=8, batch=4, framed=0.25, seed=2)
    changed = sum(int((made.step(n)[0].hr != 200).any((1, 2, 3)).sum()) for n in range(100))
    assert 50 <= changed <= 140
    plain = CropSampler([photo], lr_size=8, batch=4, seed=2).step(5)[0]
    none = CropSampler([photo], lr_size=8, batch=4, framed=0.0, seed=2).step(5)[0]
    assert np.array_equal(plain.hr, none.hr)


@pytest.mark.parametrize("name", ["drawn", "framed"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(name: str, share: float) -> None:
    with pytest.raises(DataError, match=rf"--data\.{name} is .*: it is a share, from 0 to 1"):
        PhotoData("photos", **{name: share})
