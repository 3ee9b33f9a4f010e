"""Backend ``triton``: the fused decoder in Triton (folder kernels), for NVIDIA GPUs of compute
capability 8.0 and up.

With ``TRITON_INTERPRET=1`` in the environment it runs on CPU tensors, thousands of times slower:
for tests.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diinn_fast.backends import _self_check, eager
from diinn_fast.problem import Problem, query_weights

DEVICES = ("cuda",)
DTYPES = "float32, bfloat16, float16"
INTEGERS = False
NOTE = (
    "fused Triton kernels; all modes, forward and backward; not yet run on hardware, therefore "
    "only by name"
)

WIDTH_UNIT = 16
MOST_LAYERS = 16
"""Hidden widths are multiples of WIDTH_UNIT (the least a product on tensor cores takes)."""

log = logging.getLogger("diinn_fast")
_checked: dict[tuple[Any, ...], str | None] = {}


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton is not installed (pip install triton; on Linux, CUDA builds of PyTorch "
            "bring it)"
        )
    # The interpreter runs the kernels on the CPU: nothing below is needed.
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return (
            "PyTorch sees no CUDA device (it needs an NVIDIA GPU, its driver and a CUDA build "
            "of PyTorch)"
        )
    if torch.version.hip:
        return "it is written for NVIDIA GPUs, this is a ROCm build of PyTorch"
    return None


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
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
    """RGB of all queries, see `Backend.forward`."""
    with surroundings(source):
        if _refused(problem, source, weights, gradients=False):
            return eager.forward(problem, source, weights)
        return _forward(problem, source, weights)


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed; recomputed in slabs, bitwise the
    same every time.
    """
    with surroundings(source):
        if _refused(problem, source, weights, gradients=True):
            return eager.backward(problem, grad, source, weights, needs)
        return _backward(problem, grad, source, weights, needs)


@contextmanager
def surroundings(source: Tensor) -> Iterator[None]:
    """Launches go to the source's device; autocast, which reaches into operators, is off."""
    with torch.cuda.device_of(source), torch.autocast(source.device.type, enabled=False):
        yield


def _forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    from diinn_fast.kernels.launch import Network

    result: Tensor = Network(problem, source, weights).forward(problem)
    return result


def _backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    from diinn_fast.kernels.gradient import backward as fused

    result: list[Tensor] = fused(problem, grad, source, weights, needs)
    return result


def _refused(problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool) -> bool:
    """Whether eager must do it: said at debug level where the kernels do not apply, loudly where
    they are wrong.
    """
    # What `unsupported`, which knows only the source, could not see.
    named = query_weights(weights)
    width = named.width
    if width % WIDTH_UNIT or named.layers > MOST_LAYERS:
        why = f"width {width} is not a multiple of {WIDTH_UNIT}, or more than {MOST_LAYERS} layers"
        log.debug("backend 'triton' hands a decode to 'eager': %s", why)
        return True
    problem.check_source(source)
    return source.is_cuda and _distrusted(problem, source, weights, gradients) is not None


def _distrusted(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool
) -> str | None:
    """Compare the very kernels of this decode with eager on a tiny image, once per device and
    kernel (milliseconds, as they must be compiled anyway): None, or why they are refused.
    """
    from diinn_fast.kernels.launch import allows_tf32

    tf32 = source.dtype == torch.float32 and allows_tf32()
    return _self_check.once(
        _checked,
        problem,
        source,
        weights,
        lambda: compare_with_eager(problem, source, weights, gradients),
        f"the Triton kernels are not used on {source.device}, plain PyTorch is",
        *(tf32, problem.mode, gradients),
    )


def compare_with_eager(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool
) -> str | None:
    """Why the kernels of this decode are not to be trusted, or None."""
    from diinn_fast.kernels.launch import allows_tf32

    exact = source.dtype == torch.float32 and not allows_tf32()
    return _self_check.compare_with_eager(
        problem, source, weights, _forward, _backward if gradients else None, exact
    )
