"""A teacher: what it adds to the targets and to the loss, and that it stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diinn_fast.data import CropSampler, make_pairs
from diinn_fast.data.degradations import Degradations
from diinn_fast.training.module import SRModule
from diinn_fast.training.teacher import Teacher
from tests.helpers.known_models import random_model, save
from tests.helpers.threads import one_thread
from tests.helpers.train_small import checkpoint, make_photos, run


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save(random_model(), tmp_path / "teacher")


def spoiled_pairs(samples: int | None) -> Any:
    photos = [np.random.default_rng(1).integers(0, 256, (80, 90, 3)).astype(np.uint8)]
    sampler = CropSampler(photos, lr_size=8, batch=2, scales=[2], samples=samples)
    (crops,) = sampler.step(0)
    return make_pairs(crops, Degradations(clean=0, jpeg=1))


@pytest.mark.parametrize("samples", [16, None], ids=["pixels", "whole"])
def test_the_loss_is_that_of_the_formula(teacher: Path, samples: int | None) -> None:
    """0.25 of the teacher on the clean crop, 0.75 of the photograph, and the features' distance."""
    pairs = spoiled_pairs(samples)
    assert not torch.equal(pairs.lr, pairs.clean)
    module = SRModule(encoder="edsr-baseline")
    module._teacher = Teacher(str(teacher), share=0.25, features=2.0)
    net = random_model()
    net.load_state_dict(module._teacher.model.state_dict())
    shown = net.encoder(module.normalise(pairs.clean))
    found = module.net.encoder(module.normalise(pairs.lr))
    if samples:
        taught = net.sample_pixels(shown, pairs.yx, pairs.size)
        rgb = module.net.sample_pixels(found, pairs.yx, pairs.size)
    else:
        taught = net.decode(shown, pairs.size)
        rgb = module.net.decode(found, pairs.size)
    target = 0.25 * taught + 0.75 * module.normalise(pairs.target)
    want = F.l1_loss(rgb, target) + 2 * F.l1_loss(found, shown) / shown.std()
    got = module.loss(module.normalise(pairs.lr), [pairs])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_run_with_a_teacher_saves_its_own_model_only(tmp_path: Path, teacher: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    options = [f"--model.teacher={teacher}", "--trainer.max_steps=1", "--checkpoints.every=1"]
    with one_thread():
        run(photos, tmp_path / "run", *options, "--trainer.val_check_interval=1")
        run(photos, tmp_path / "alone", *options[1:], "--trainer.val_check_interval=1")
    names = set(checkpoint(tmp_path / "run" / "last.ckpt")["current_model_state"])
    alone = checkpoint(tmp_path / "alone" / "last.ckpt")["current_model_state"]
    assert names == set(alone)


def test_the_teacher_learns_nothing(teacher: Path) -> None:
    module = SRModule(encoder="edsr-baseline")
    module._teacher = Teacher(str(teacher), share=1.0, features=1.0)
    pairs = spoiled_pairs(16)
    module.loss(module.normalise(pairs.lr), [pairs]).backward()
    assert all(p.grad is None for p in module._teacher.model.parameters())
    assert any(p.grad is not None for p in module.net.encoder.parameters())
    assert not any(name.startswith("_teacher") for name, _ in module.named_parameters())
