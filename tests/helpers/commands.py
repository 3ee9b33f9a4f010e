"""What tests of the console program share: a small picture, sizes of files, one-line errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

HEIGHT = 6
WIDTH = 8


def picture(path: Path, seed: int = 0, **options: object) -> np.ndarray:
    samples = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    PIL.Image.fromarray(samples).save(path, **options)
    return samples


def size_of(path: Path | str) -> tuple[int, int]:
    with PIL.Image.open(path) as image:
        return image.height, image.width


def one_line(err: str, *words: str) -> None:
    """``err`` is one sentence of ours, without a traceback, that contains ``words``."""
    assert err.startswith("diinn-fast: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for word in words:
        assert word in err, err
