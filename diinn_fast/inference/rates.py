"""How fast this machine encodes and decodes, from a first small run, which also warms the libraries
up.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from diinn_fast.inference.engine import Engine

SIDE = 40
"""LR pixels of the square that is tried; more than PyTorch's threshold between two ways to
convolve.
"""


@lru_cache(maxsize=8)
def measure_rates(engine: Engine, lr: tuple[int, int], hr: tuple[int, int]) -> tuple[float, float]:
    """Seconds per LR pixel encoded, and per HR pixel decoded at this scale (rough: single small
    runs).
    """
    scales = [min(16.0, out / n) for out, n in zip(hr, lr, strict=True)]
    size = max(2, round(SIDE * scales[0])), max(2, round(SIDE * scales[1]))
    rows = max(1, min(size[0], (1 << 16) // size[1]))
    picture = torch.zeros(3, SIDE, SIDE)
    encoding = []
    decoding = []
    # The first run compiles, allocates and chooses: the second is the one that counts.
    for _ in range(2):
        start = time.perf_counter()
        features = engine.encode(picture)
        _wait(engine)
        encoding.append(time.perf_counter() - start)
        start = time.perf_counter()
        engine.decode(features, size, (0, rows, 0, size[1]))
        _wait(engine)
        decoding.append(time.perf_counter() - start)
    return encoding[-1] / SIDE**2, decoding[-1] / (rows * size[1])


def _wait(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
