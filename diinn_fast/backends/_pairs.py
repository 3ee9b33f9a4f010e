"""Convolutions of an encoder for precision ``int8``: each number as the sum of two of bfloat16,
each product as the sum of three, nearly as exact as float32 (csrc/cpu/conv3x3_pairs.h).

On CPUs with AMX, whose products of bfloat16 are that much faster. A pixel has the same bits however
the image is cut and by any number of threads.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.backends import cpu

UNIT = 32
"""Numbers of channels and outputs are multiples of it."""

SET = "amx"

CHECK_TOLERANCE = 1e-4
"""Of the self-check, relative to the norm: some thirty times what is left out of the products."""

_check_lock = threading.Lock()
_checked: list[str | None] = []


def unavailable() -> str | None:
    """Why there are none on this machine, or None."""
    if reason := cpu.unavailable():
        return reason
    if cpu.bf16_instruction_set() != SET:
        return "they need a CPU with AMX"
    with _check_lock, torch.autocast("cpu", enabled=False):
        if not _checked:
            _checked.append(_self_check())
        return _checked[0]


def convolve(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    add: Tensor | None = None,
    rectify: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """3x3 convolution of ``[h, w, C]`` with zeros around it by ``[O, C, 3, 3]``, plus bias ``[O]``,
    plus ``add`` ``[h, w, O]`` or, if ``rectify``, then relu: ``[h, w, O]``.

    All contiguous and float32, C and O multiples of UNIT. ``out`` may be ``add``, not ``image``.
    """
    h, w, channels = image.shape
    outputs = weight.shape[0]
    out = image.new_empty(h, w, outputs) if out is None else out
    # The kernel has addresses alone: what is converted here must live until it has run.
    weight = weight.detach().contiguous()
    tensors = [image, weight, bias.detach().contiguous(), out if add is None else add, out]
    if any(v.dtype != torch.float32 or not v.is_contiguous() or not v.is_cpu for v in tensors):
        raise ValueError("convolutions in pairs are of contiguous float32 tensors on the CPU")
    shapes = [(h, w, channels), (outputs, channels, 3, 3), (outputs,)] + [(h, w, outputs)] * 2
    if any(v.shape != shape for v, shape in zip(tensors, shapes, strict=True)):
        found = ", ".join(str(list(v.shape)) for v in tensors)
        raise ValueError(f"these shapes do not go together: {found}")
    addresses = [v.data_ptr() for v in tensors]
    addresses[3] = 0 if add is None else addresses[3]
    shape = [h, w, channels, outputs]
    if out.numel():
        cpu._kernels().convolve(SET, addresses, shape, rectify, torch.get_num_threads())
    return out


def _self_check() -> str | None:
    """None, or why they are refused: a tiny image against plain PyTorch."""
    draw = torch.Generator("cpu").manual_seed(0)
    shapes = ((5, 37, UNIT), (UNIT, UNIT, 3, 3), (UNIT,), (5, 37, UNIT))
    drawn = [torch.empty(s, dtype=torch.float32, device="cpu") for s in shapes]
    image, weight, bias, add = (v.uniform_(-1, 1, generator=draw) for v in drawn)
    try:
        got = convolve(image, weight, bias, add=add)
    except Exception as error:
        return f"the self-check failed: {error}"
    exact = F.conv2d(image.permute(2, 0, 1)[None], weight, bias, padding=1)
    want = exact[0].permute(1, 2, 0) + add
    apart = float((got - want).norm() / want.norm())
    if not apart <= CHECK_TOLERANCE:
        return f"the self-check differs from plain PyTorch by {apart:.1e}"
    return None
