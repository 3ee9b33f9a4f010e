"""The first-use check of the GPU backends: the very kernels of a decode on a tiny image, against
``eager``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diinn_fast.backends import eager
from diinn_fast.geometry import Window
from diinn_fast.problem import Problem, query_weights

LR = (3, 4)
SIZE = (7, 9)


def compare_with_eager(
    problem: Problem,
    source: Tensor,
    weights: Sequence[Tensor],
    forward: Callable[[Problem, Tensor, Sequence[Tensor]], Tensor],
    backward: Callable[[Problem, Tensor, Tensor, Sequence[Tensor], Sequence[bool]], list[Tensor]]
    | None,
    exact: bool,
) -> str | None:
    """Decode 3x4 to 7x9 pixels (or as many points) with random numbers in the shape of this
    decode's: why a backend's forward, or its backward if given, is not to be trusted, or None.

    Tolerances are relative to the norm: ``exact`` float32, float16 and TF32, bfloat16.
    """
    draw = torch.Generator().manual_seed(0)

    def like(tensor: Tensor, *shape: int) -> Tensor:
        values = torch.rand(shape or tensor.shape, generator=draw) * 2 - 1
        return (
            values * 3**0.5 / values.shape[-1] ** 0.5 if values.ndim > 1 and not shape else values
        ).to(tensor)

    halo = 2 if problem.form == "direct" else 0
    small = like(source, 1, LR[0] + halo, LR[1] + halo, source.shape[-1])
    weights = [like(v) for v in weights]
    query = query_weights(weights)
    trial = replace(problem, lr=LR, origin=(0, 0), size=SIZE, chunk=0)
    if problem.window is None:
        count = SIZE[0] * SIZE[1]
        index = torch.randint(LR[0] * LR[1], (1, count), generator=draw).to(source.device)
        trial = replace(trial, index=index, offset=like(query.position_bias, 1, count, 2))
    else:
        trial = replace(trial, window=Window(0, SIZE[0], 0, SIZE[1]))
    tolerance = 1e-4 if exact else 5e-2 if source.dtype == torch.bfloat16 else 1e-2
    try:
        if backward is None:
            ours = [forward(trial, small, weights)]
            theirs = [eager.forward(trial, small, weights)]
        else:
            grad = like(source, *trial.output_shape(1, query.channels))
            needs = [True] * (1 + len(weights))
            ours = backward(trial, grad, small, weights, needs)
            theirs = eager.backward(trial, grad, small, weights, needs)
            tolerance *= (
                10  # they differ by whole terms where rounding takes relu's argument across zero
            )
        for a, b in zip(ours, theirs, strict=True):
            difference = float((a - b).double().norm())
            length = float(b.double().norm())
            if not difference <= tolerance * length:
                return (
                    "in their self-check they differ from plain PyTorch by "
                    f"{difference / length:.1e}"
                )
    except Exception as error:
        return f"their self-check failed: {error}"
    return None
