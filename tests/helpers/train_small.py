"""What the tests of training share: small photographs, and a run that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diinn_fast.training.run import train

SMALL = [
    "--model.encoder=edsr-baseline",
    "--model.betas=[0.9, 0.99]",
    "--model.schedule=cosine",
    "--data.lr_size=8",
    "--data.batch=2",
    "--data.groups=2",
    "--data.samples=16",
    "--data.val_scales=[2]",
    "--data.val_size=48",
    "--data.hold_out=1",
    "--trainer.max_steps=6",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=3",
    "--checkpoints.every=3",
]
"""Arguments of the run; ``config`` is a file without any content."""


def make_photos(folder: Path, count: int = 4) -> Path:
    """Bright blurred noise: a first thing to learn is that it is bright."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(count):
        pixels = rng.integers(150, 256, (60 + n, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((140, 120 + n), Image.Resampling.BICUBIC).save(
            folder / f"{n}.png"
        )
    return folder


def run(photos: Path, out: Path, *more: str, **keywords: Any) -> tuple[int, str]:
    """Train SMALL into ``out``; ``more`` comes last and wins."""
    config = photos.parent / "empty.yaml"
    config.write_text("{}\n")
    own = None if "from_run" in keywords else str(config)
    return train(out, own, [*(SMALL if own else []), f"--data.folder={photos}", *more], **keywords)


def checkpoint(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(path, weights_only=True)
    return result


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, averaged weights and Adam's moments, to the last bit."""
    for part in ("state_dict", "current_model_state"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), (part, name)
    states = [c["optimizer_states"][0]["state"] for c in (one, other)]
    for key, moments in states[0].items():
        assert all(torch.equal(v, states[1][key][n]) for n, v in moments.items()), key
