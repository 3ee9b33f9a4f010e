"""Backend ``triton``: the fused decoder in Triton (folder kernels), for NVIDIA GPUs of compute capability 8.0 and up.

With ``TRITON_INTERPRET=1`` in the environment it runs on CPU tensors, thousands of times slower: for tests.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
_checked: dict[tuple, str | None] = {}


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
    return None


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    with _surroundings(source):
        if _refused(problem, source, weights, gradients=False):
            return eager.forward(problem, source, weights)
        return _forward(problem, source, weights)


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed; recomputed in slabs, bitwise the same every time."""
    with _surroundings(source):
        if _refused(problem, source, weights, gradients=True):
            return eager.backward(problem, grad, source, weights, needs)
        return _backward(problem, grad, source, weights, needs)


@contextmanager
def _surroundings(source: Tensor) -> Iterator[None]:
    """Launches go to the source's device; autocast, which reaches into operators, is off."""
    with torch.cuda.device_of(source), torch.autocast(source.device.type, enabled=False):
        yield


def _forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    from diinn_fast.kernels.launch import Network

    return Network(problem, source, weights).forward(problem)


def _backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    from diinn_fast.kernels.gradient import backward as fused

    return fused(problem, grad, source, weights, needs)


def _refused(problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool) -> bool:
    """Whether eager must do it: said at debug level where the kernels do not apply, loudly where they are wrong."""
    width, layers = weights[0].shape[0], len(weights[2]) + 1
    if width % WIDTH_UNIT or layers > MOST_LAYERS:
        why = f"width {width} is not a multiple of {WIDTH_UNIT}, or more than {MOST_LAYERS} layers"
        log.debug("backend 'triton' hands a decode to 'eager': %s", why)
        return True
    _check_tile(problem, source)
    return source.is_cuda and _self_check(problem, source, weights, gradients) is not None


def _check_tile(problem: Problem, source: Tensor) -> None:
    if problem.window is None:
        return
    y0, y1, x0, x1 = problem.window
    rows, columns = problem.grid(source)
    top, bottom = lr_range(y0, y1, problem.lr[0], problem.size[0])
    left, right = lr_range(x0, x1, problem.lr[1], problem.size[1])
    i, j = problem.origin
    if top < i or bottom > i + rows or left < j or right > j + columns:
        raise IndexError(f"window {tuple(problem.window)} needs LR pixels outside the source's {rows}x{columns} tile")


def _self_check(problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool) -> str | None:
    """Compare the very kernels of this decode with eager on a tiny image, once per device and kernel (milliseconds,
    as they must be compiled anyway): None, or why they are refused."""
    from diinn_fast.kernels.launch import allows_tf32

    points, tf32 = problem.window is None, source.dtype == torch.float32 and allows_tf32()
    shapes = (v.shape for v in weights)
    key = (str(source.device), source.dtype, tf32, problem.form, problem.mode, points, gradients, *shapes)
    with _check_lock:
        if key not in _checked:
            if torch.cuda.is_current_stream_capturing():
                return None  # comparing would synchronise, which a CUDA graph cannot record
            _checked[key] = compare_with_eager(problem, source, weights, gradients)
            if reason := _checked[key]:
                log.warning("the Triton kernels are not used on %s, plain PyTorch is: %s", source.device, reason)
        return _checked[key]


def compare_with_eager(problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool) -> str | None:
    """Decode 3x4 to 7x9 pixels (or as many points) with random numbers in the shape of this decode's: why backends
    disagree, or None."""
    from diinn_fast.kernels.launch import allows_tf32

    draw = torch.Generator().manual_seed(0)
    lr, size = (3, 4), (7, 9)
    count = size[0] * size[1]

    def like(tensor: Tensor, *shape: int) -> Tensor:
        values = torch.rand(shape or tensor.shape, generator=draw) * 2 - 1
        return (values * 3**0.5 / values.shape[-1] ** 0.5 if values.ndim > 1 and not shape else values).to(tensor)

    halo = 2 if problem.form == "direct" else 0
    small = like(source, 1, lr[0] + halo, lr[1] + halo, source.shape[-1])
    weights = [like(v) for v in weights]
    trial = replace(problem, lr=lr, origin=(0, 0), size=size, chunk=0)
    if problem.window is None:
        index = torch.randint(lr[0] * lr[1], (1, count), generator=draw).to(source.device)
        trial = replace(trial, index=index, offset=like(weights[1], 1, count, 2))
    else:
        trial = replace(trial, window=Window(0, size[0], 0, size[1]))
    grad = like(source, *trial.output_shape(1, len(weights[4])))
    needs = [True] * (1 + len(weights))
    try:
        ours = _backward(trial, grad, small, weights, needs) if gradients else [_forward(trial, small, weights)]
    except Exception as error:
        return f"their self-check failed: {error}"
    theirs = [eager.forward(trial, small, weights)]
    if gradients:
        theirs = eager.backward(trial, grad, small, weights, needs)
    # Gradients differ by whole terms where rounding takes relu's argument across zero.
    exact, kinks = source.dtype == torch.float32 and not allows_tf32(), 10 if gradients else 1
    tolerance = kinks * (1e-4 if exact else 5e-2 if source.dtype == torch.bfloat16 else 1e-2)
    for a, b in zip(ours, theirs, strict=True):
        difference, length = (float(v.double().norm()) for v in (a - b, b))
        if not difference <= tolerance * length:
            return f"in their self-check they differ from plain PyTorch by {difference / length:.1e}"
    return None
