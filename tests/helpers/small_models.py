"""Models small enough for many renders in a test, in whose output every pixel matters; a picture to
go with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diinn_fast import DIINN, ImplicitDecoder
from diinn_fast.encoders import EDSR, RDN

ENCODERS: dict[str, Callable[..., Any]] = {
    "edsr": lambda: EDSR(channels=32, blocks=2),
    "rdn": lambda: RDN(channels=32, growth=32, blocks=2, convs=3),
}


@torch.no_grad()
def small_model(encoder: str = "edsr", mode: int = 3) -> DIINN:
    """The same weights in each run."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = DIINN(mode=mode, encoder=ENCODERS[encoder]())
        model.decoder = ImplicitDecoder(32, [32] * 3, mode=mode)
        for parameter in model.parameters():
            parameter.mul_(2.0)
        model.decoder.last_layer.weight.mul_(0.1)
    return model.eval()


def picture(
    height: int = 90, width: int = 110, channels: int = 3, dtype: type = np.uint8, seed: int = 0
) -> np.ndarray:
    most = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, most, (height, width, channels)).astype(dtype)
