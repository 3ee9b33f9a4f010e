"""Random problems, and the float64 reference they are judged by."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from diinn_fast import ImplicitDecoder, reference

MODES = [(mode, init_q) for mode in (1, 2, 3, 4) for init_q in (False, True)]


def make_decoder(
    mode: int, init_q: bool = False, width: int = 256, channels: int = 64, layers: int = 4
):
    """A decoder whose weights are larger than PyTorch's default, so that every branch matters in
    the output.
    """
    decoder = ImplicitDecoder(channels, [width] * layers, mode=mode, init_q=init_q)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
    return decoder


def oracle(
    decoder: ImplicitDecoder, features: Tensor, size, window=None, dtype=torch.float64
) -> Tensor:
    """The literal definition with this decoder's weights, in float64 unless told."""
    weights = {k: v.to(dtype) for k, v in decoder.state_dict(keep_vars=True).items()}
    return reference.decode(weights, features.to(dtype), size, decoder.mode, window)


def random_geometry(rng: random.Random, mode: int = 3) -> tuple[int, int, int, int]:
    """LR and HR sizes: odd, tiny, anisotropic, up- and down-scaling."""
    h = rng.randint(1, 11)
    w = rng.randint(1, 11)
    least = 2 if mode == 4 else 1
    return h, w, rng.randint(least, 5 * h + 3), rng.randint(least, 5 * w + 3)
