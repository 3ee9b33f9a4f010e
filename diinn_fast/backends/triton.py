"""Backend ``triton``: the fused decoder in Triton (folder kernels), for NVIDIA GPUs of compute capability 8.0 and up.

With ``TRITON_INTERPRET=1`` in the environment it runs on CPU tensors, thousands of times slower: for tests.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diinn_fast.backends import eager
from diinn_fast.geometry import Window, lr_range

if TYPE_CHECKING:
    from diinn_fast.ops import Problem

DEVICES = ("cuda",)
DTYPES = "float32, bfloat16, float16"
NOTE = "fused Triton kernels; all modes, forward and backward; not yet run on hardware, therefore only by name"

WIDTH_UNIT, MOST_LAYERS = 16, 16
"""Hidden widths are multiples of WIDTH_UNIT (the least a product on tensor cores takes)."""

log = logging.getLogger("diinn_fast")
_check_lock = threading.Lock()
_checked: dict[tuple[str, torch.dtype], str | None] = {}


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; on Linux, CUDA builds of PyTorch bring it)"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device (it needs an NVIDIA GPU, its driver and a CUDA build of PyTorch)"
    if torch.version.hip:
        return "it is written for NVIDIA GPUs, this is a ROCm build of PyTorch"
    return None


def unsupported(problem: Problem, source: Tensor) -> str | None:
    if source.device.type != ("cpu" if interpreted() else "cuda"):
        return f"it needs tensors on a CUDA device, got {source.device}"
    if source.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in {DTYPES}, got {source.dtype}"
    if source.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(source.device)
        if major < 8:
            return f"it needs compute capability 8.0 or higher, {source.device} has {major}.{minor}"
        return _self_check(source)
    return None


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    if reason := _refuses(problem, source, weights):
        log.debug("backend 'triton' hands a decode to 'eager': %s", reason)
        return eager.forward(problem, source, weights)
    from diinn_fast.kernels.launch import Network

    return Network(problem, source, weights).forward(problem)


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed; recomputed in slabs, bitwise the same every time."""
    if reason := _refuses(problem, source, weights):
        log.debug("backend 'triton' hands a backward to 'eager': %s", reason)
        return eager.backward(problem, grad, source, weights, needs)
    from diinn_fast.kernels.gradient import backward as fused

    return fused(problem, grad, source, weights, needs)


def _refuses(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why these weights do not suit the kernels (which ``unsupported`` cannot see), or None."""
    width, layers = weights[0].shape[0], len(weights[2]) + 1
    if width % WIDTH_UNIT or layers > MOST_LAYERS:
        return f"width {width} is not a multiple of {WIDTH_UNIT}, or more than {MOST_LAYERS} layers"
    return _outside(problem, source)


def _outside(problem: Problem, source: Tensor) -> str | None:
    if problem.window is None:
        return None
    y0, y1, x0, x1 = problem.window
    rows, columns = problem.grid(source)
    top, bottom = lr_range(y0, y1, problem.lr[0], problem.size[0])
    left, right = lr_range(x0, x1, problem.lr[1], problem.size[1])
    (i, j) = problem.origin
    if top < i or bottom > i + rows or left < j or right > j + columns:
        raise IndexError(f"window {tuple(problem.window)} needs LR pixels outside the source's {rows}x{columns} tile")
    return None


def _self_check(source: Tensor) -> str | None:
    """Decode a tiny problem once per device and dtype and compare with eager: None, or why the kernels are refused."""
    key = str(source.device), source.dtype
    with _check_lock:
        if key not in _checked:
            _checked[key] = compare_with_eager(source.device, source.dtype)
            if reason := _checked[key]:
                log.warning("the Triton kernels are not used on %s: %s", source.device, reason)
        return _checked[key]


def compare_with_eager(device: torch.device, dtype: torch.dtype) -> str | None:
    """Forward and backward of one small problem, on both: why they disagree, or None."""
    from diinn_fast.kernels.launch import allows_tf32
    from diinn_fast.ops import Problem

    width, layers, lr, size = 64, 3, (3, 4), (7, 9)
    draw = torch.Generator().manual_seed(0)

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        return ((torch.rand(shape, generator=draw) * 2 - 1) * scale).to(device)

    source, grad = values(1, *lr, layers * width).to(dtype), values(1, 3, *size).to(dtype)
    weights = [values(width, 3), values(width), values(layers - 1, 2 * width, width, scale=0.25).to(dtype)]
    weights += [values(layers - 1, width), values(3, width, scale=0.25).to(dtype), values(3)]
    problem = Problem("content", 3, lr, (0, 0), size, Window(0, size[0], 0, size[1]), None, None, 0)
    needs = [True] * (1 + len(weights))
    try:
        ours = [forward(problem, source, weights), *backward(problem, grad, source, weights, needs)]
    except Exception as error:
        return f"their self-check failed: {error}"
    theirs = [eager.forward(problem, source, weights), *eager.backward(problem, grad, source, weights, needs)]
    tolerance = {torch.float32: 1e-2 if allows_tf32() else 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for a, b in zip(ours, theirs, strict=True):
        difference, size_of = (float(v.double().square().mean().sqrt()) for v in (a - b, b))
        if not difference <= tolerance * size_of:
            return (
                f"their self-check differs from plain PyTorch by {difference:.1e}, root mean square, of {size_of:.1e}"
            )
    return None
