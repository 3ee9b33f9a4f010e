"""LR crops as cameras and the web spoil them: seeded, of the same size, only where asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diinn_fast.data import CropSampler, make_pairs
from diinn_fast.data.degradations import Degradations
from tests.helpers.threads import one_thread
from tests.helpers.train_small import checkpoint, make_photos, run

IMAGE = np.random.default_rng(0).integers(60, 200, (40, 33, 3)).astype(np.uint8)
NOTHING = Degradations(clean=0, blur=0, resized=0, sharpen=0, noise=0, jpeg=0)


def one(**only: object) -> Degradations:
    """Degradations of which only those named are applied, always."""
    return Degradations(**{**vars(NOTHING), **only})


def test_equal_seeds_give_equal_images_and_others_do_not() -> None:
    spoil = Degradations(clean=0)
    first = spoil(IMAGE, (1, 2, 3))
    assert first.shape == IMAGE.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, spoil(IMAGE, (1, 2, 3)))
    assert (first != spoil(IMAGE, (1, 2, 4))).any()


def test_clean_images_stay_as_they_are() -> None:
    np.testing.assert_array_equal(Degradations(clean=1)(IMAGE, (0,)), IMAGE)
    np.testing.assert_array_equal(NOTHING(IMAGE, (0,)), IMAGE)


@pytest.mark.parametrize(
    "only",
    [
        {"blur": 1},
        {"resized": 1},
        {"sharpen": 1},
        {"noise": 1},
        {"jpeg": 1},
        {"jpeg": 1, "twice": 1},
    ],
    ids=lambda only: "+".join(only),
)
def test_each_step_changes_the_image_and_keeps_its_place(only: dict[str, int]) -> None:
    smooth = np.zeros((48, 48, 3), np.uint8) + np.linspace(40, 210, 48).astype(np.uint8)[:, None]
    smooth[20:30, 10:40] = 90
    spoiled = one(**only)(smooth, (7,))
    assert (spoiled != smooth).any()
    error = spoiled.astype(float) - smooth
    assert abs(error.mean()) < 3 and np.abs(error).mean() < 12


def test_noise_has_the_strength_that_was_asked_for() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    noisy = one(noise=1, noise_sigma=(6.0, 6.0))(grey, (3,))
    assert abs((noisy.astype(float) - 128).std() - 6) < 0.3


def test_lower_quality_is_farther_from_the_image() -> None:
    errors = [
        np.abs(one(jpeg=1, jpeg_quality=(q, q))(IMAGE, (5,)).astype(float) - IMAGE).mean()
        for q in (95, 70, 30)
    ]
    assert errors[0] < errors[1] < errors[2]


def test_crops_of_training_are_spoiled_and_targets_are_not() -> None:
    photos = [
        np.random.default_rng(n).integers(0, 256, (80, 90, 3)).astype(np.uint8) for n in (1, 2)
    ]
    sampler = CropSampler(photos, lr_size=12, batch=3, scales=[2], samples=16)
    (crops,) = sampler.step(4)
    clean = make_pairs(crops)
    spoiled = make_pairs(crops, Degradations(clean=0, jpeg=1))
    assert torch.equal(clean.target, spoiled.target) and torch.equal(clean.yx, spoiled.yx)
    assert clean.lr.shape == spoiled.lr.shape
    assert all((a != b).any() for a, b in zip(clean.lr, spoiled.lr, strict=True))
    again = make_pairs(sampler.step(4)[0], Degradations(clean=0, jpeg=1))
    assert torch.equal(again.lr, spoiled.lr)


@pytest.mark.long
def test_a_frozen_encoder_stays_as_it_was_and_the_decoder_learns(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    options = ["--trainer.max_steps=2", "--checkpoints.every=1", "--trainer.val_check_interval=2"]
    options += ["--model.frozen_encoder=true", "--data.degradations.noise=1"]
    with one_thread():
        run(photos, tmp_path / "run", *options[1:], "--trainer.max_steps=1")
        after_one = checkpoint(tmp_path / "run" / "last.ckpt")["current_model_state"]
        run(photos, tmp_path / "run", *options)
    after_two = checkpoint(tmp_path / "run" / "last.ckpt")["current_model_state"]
    changed = {name for name in after_one if not torch.equal(after_one[name], after_two[name])}
    assert changed and all(".decoder." in name for name in changed)
    assert any(".encoder." in name for name in after_one)
