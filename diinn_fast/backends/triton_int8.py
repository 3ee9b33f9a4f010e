"""Backend ``triton_int8``: the Triton kernels with 8-bit integers in the hidden products, for
NVIDIA GPUs of compute capability 8.0 and up. Inference only.

Their arithmetic is that of the backend ``int8`` of CPUs: hidden weights are quantised by their
rows, each query's activations by their largest value at run time; all else is float32. What comes
before them, the projection, is in the features' dtype. Forms content and modulation. With
``TRITON_INTERPRET=1`` it runs on CPU tensors, as ``triton`` does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diinn_fast.backends import _self_check, eager, triton
from diinn_fast.errors import BackendError
from diinn_fast.problem import Problem, query_weights

DEVICES = ("cuda",)
DTYPES = "float32, bfloat16, float16"
INTEGERS = True
NOTE = (
    "fused Triton kernels with int8 products; all modes without init_q, forward only; not yet run "
    "on hardware, therefore only by name"
)

WIDTH_UNIT = 32
"""Hidden widths are multiples of it: a product of integers takes as many terms at least."""

CHECK_TOLERANCE = 0.03
"""Of the self-check, relative to the norm, as of the backend ``int8``."""

log = logging.getLogger("diinn_fast")
_checked: dict[tuple[Any, ...], str | None] = {}


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    return triton.unavailable()


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
    if reason := triton.unsupported(problem, source):
        return reason
    if problem.form == "direct":
        return "it has no direct form (init_q, down-scaling, few points): use backend 'triton'"
    return None


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """RGB of all queries in the dtype of ``source``, see `Backend.forward`."""
    # What `unsupported`, which knows only the source, could not see.
    width = query_weights(weights).width
    if width % WIDTH_UNIT:
        log.debug(
            "backend 'triton_int8' hands a decode to 'triton': width %d is not a multiple of %d",
            *(width, WIDTH_UNIT),
        )
        return triton.forward(problem, source, weights)
    with triton.surroundings(source):
        problem.check_source(source)
        if source.is_cuda and _distrusted(problem, source, weights) is not None:
            return eager.forward(problem, source, weights)
        return _forward(problem, source, weights)


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Refused: rounding to integers has no gradient."""
    raise BackendError(
        "backend 'triton_int8' has no gradients: train with the backend triton, or decode under "
        "torch.no_grad()"
    )


def _forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    from diinn_fast.kernels.launch_quantised import QuantisedNetwork

    result: Tensor = QuantisedNetwork(problem, source, weights).forward(problem)
    return result


def _distrusted(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> str | None:
    """As of the backend ``triton``: why the kernels of this decode are refused, or None."""
    return _self_check.once(
        _checked,
        problem,
        source,
        weights,
        lambda: compare_with_eager(problem, source, weights),
        f"the int8 Triton kernels are not used on {source.device}, plain PyTorch is",
    )


def compare_with_eager(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why the kernels of this decode are not to be trusted, or None."""
    return _self_check.compare_with_eager(
        problem, source, weights, _forward, None, exact=False, least=CHECK_TOLERANCE
    )
