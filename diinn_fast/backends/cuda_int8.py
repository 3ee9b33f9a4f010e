"""Backend ``cuda_int8``: the portable CUDA kernel with 8-bit integers in the hidden products
(csrc/cuda/portable_int8.h), for NVIDIA GPUs of compute capability 8.0 and up. Inference only.

Their arithmetic is that of the backend ``int8`` of CPUs: hidden weights are quantised by their
rows, each query's activations by their largest value at run time; all else is float32, but for the
source, which is in 16 bit. What comes before them, the projection, is in the features' dtype.
Compiled, launched and proven as the backend ``cuda``, whose library it shares.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diinn_fast.backends import Backend, _cuda, _self_check, cuda, eager, triton_int8
from diinn_fast.errors import BackendError
from diinn_fast.problem import Problem

DEVICES = ("cuda",)
DTYPES = cuda.DTYPES
INTEGERS = True
NOTE = (
    "CUDA C++, fused, with int8 products; all modes without init_q, forward only; not yet run on "
    "hardware, therefore only by name"
)

CHECK_TOLERANCE = 0.03
"""Of the self-check, relative to the norm, as of the backend ``int8``."""

log = logging.getLogger("diinn_fast")
_checked: dict[tuple[Any, ...], str | None] = {}


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    return cuda.unavailable()


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
    return cuda.unsupported(problem, source)


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """RGB of all queries in the dtype of ``source``, see `Backend.forward`."""
    with torch.cuda.device_of(source):
        if why := cuda.unsuited_weights(weights):
            log.debug("backend 'cuda_int8' hands a decode on: its kernels do not take %s", why)
            return _fallback(problem, source).forward(problem, source, weights)
        problem.check_source(source)
        if _distrusted(problem, source, weights) is not None:
            return _fallback(problem, source).forward(problem, source, weights)
        return _forward(problem, source, weights)


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Refused: rounding to integers has no gradient."""
    raise BackendError(
        "backend 'cuda_int8' has no gradients: train with the backend cuda, or decode under "
        "torch.no_grad()"
    )


def _forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return cuda.launch_forward(problem, source, weights, _cuda.INTEGERS)


def _fallback(problem: Problem, source: Tensor) -> Backend:
    if triton_int8.unavailable() or triton_int8.unsupported(problem, source):
        return eager
    return triton_int8


def _distrusted(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> str | None:
    """As of the backend ``cuda``: why the kernel of this decode is refused, or None."""
    return _self_check.once(
        _checked,
        problem,
        source,
        weights,
        lambda: compare_with_eager(problem, source, weights),
        f"the int8 CUDA kernel is not used on {source.device}, another backend is",
    )


def compare_with_eager(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why the kernel of this decode is not to be trusted, or None."""
    return _self_check.compare_with_eager(
        problem, source, weights, _forward, None, exact=False, least=CHECK_TOLERANCE
    )
