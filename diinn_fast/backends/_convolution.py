"""The compiled 3x3 convolutions of the backends ``cpu`` and ``int8``: what they take, the call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OUTPUTS_UNIT = 32
"""Numbers of outputs are multiples of it."""


def takes(padded: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether these are on the CPU, in float32, and whole panels of outputs."""
    if any(v.device.type != "cpu" or v.dtype != torch.float32 for v in (padded, weight, bias)):
        return False
    return weight.shape[0] % OUTPUTS_UNIT == 0


def run(kernel: Callable[..., None], padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What ``kernel``, of one instruction set, makes of what `takes`."""
    # It has addresses alone: what is converted here must live until it has run.
    padded, weight, bias = (v.detach().contiguous() for v in (padded, weight, bias))
    batch, rows, columns, channels = padded.shape
    out = padded.new_empty(batch, rows - 2, columns - 2, weight.shape[0])
    if out.numel():
        shape = [*out.shape[:3], channels, weight.shape[0]]
        addresses = [v.data_ptr() for v in (padded, weight, bias, out)]
        kernel(*addresses, shape, torch.get_num_threads())
    return out
