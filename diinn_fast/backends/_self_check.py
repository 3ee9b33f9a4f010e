"""The first-use check of the GPU backends: a decode's kernels on a tiny image, compared with
``eager``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diinn_fast.backends import eager
from diinn_fast.geometry import Window
from diinn_fast.problem import Problem, query_weights

LR = (3, 4)
SIZE = (7, 9)

log = logging.getLogger("diinn_fast")
_lock = threading.Lock()


def once(
    checked: dict[tuple[Any, ...], str | None],
    problem: Problem,
    source: Tensor,
    weights: Sequence[Tensor],
    compare: Callable[[], str | None],
    refusal: str,
    *variant: object,
) -> str | None:
    """What ``compare`` says of the kernel of this decode: asked at its first use, kept in
    ``checked``, and logged after the words of ``refusal`` if it is a reason to refuse it.
    ``variant``: what else tells one kernel of the backend from another.
    """
    points = problem.window is None
    shapes = (v.shape for v in weights)
    key = (str(source.device), source.dtype, problem.form, points, *variant, *shapes)
    with _lock:
        if key not in checked:
            # Comparing would synchronise, which a CUDA graph cannot record.
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return None
            checked[key] = compare()
            if reason := checked[key]:
                log.warning("%s: %s", refusal, reason)
        return checked[key]


def compare_with_eager(
    problem: Problem,
    source: Tensor,
    weights: Sequence[Tensor],
    forward: Callable[[Problem, Tensor, Sequence[Tensor]], Tensor],
    backward: Callable[[Problem, Tensor, Tensor, Sequence[Tensor], Sequence[bool]], list[Tensor]]
    | None,
    exact: bool,
    least: float = 0.0,
) -> str | None:
    """Decode 3x4 to 7x9 pixels (or as many points) with random numbers in the shape of this
    decode's: why a backend's forward, or its backward if given, is not to be trusted, or None.

    Tolerances are relative to the norm: ``exact`` float32, float16 and TF32, bfloat16; or
    ``least``, if it is larger.
    """
    trial, small, weights, grad = _trial(problem, source, weights)
    tolerance = 1e-4 if exact else 5e-2 if source.dtype == torch.bfloat16 else 1e-2
    tolerance = max(tolerance, least)
    try:
        if backward is None:
            ours = [forward(trial, small, weights)]
            theirs = [eager.forward(trial, small, weights)]
        else:
            needs = [True] * (1 + len(weights))
            ours = backward(trial, grad, small, weights, needs)
            theirs = eager.backward(trial, grad, small, weights, needs)
            # Whole terms differ where rounding takes relu's argument across zero.
            tolerance *= 10
        apart = [_apart(a, b) for a, b in zip(ours, theirs, strict=True)]
    # Whatever goes wrong in here would go wrong in the decode.
    except Exception as error:
        return f"their self-check failed: {error}"
    # NaN is not within any tolerance.
    wrong = next((v for v in apart if not v <= tolerance), None)
    if wrong is None:
        return None
    return f"in their self-check they differ from plain PyTorch by {wrong:.1e}"


def _trial(
    problem: Problem, source: Tensor, weights: Sequence[Tensor]
) -> tuple[Problem, Tensor, list[Tensor], Tensor]:
    """A tiny problem of the same kind, its source, its weights and a gradient of its output."""
    draw = torch.Generator().manual_seed(0)

    def values(like: Tensor, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=draw) * 2 - 1).to(like)

    # Rows of unit length on average, so that the network neither dies nor explodes.
    scaled = [
        values(v, *v.shape) * (3 / v.shape[-1]) ** 0.5 if v.ndim > 1 else values(v, *v.shape)
        for v in weights
    ]
    query = query_weights(scaled)
    # Features of the direct form come with a border of one pixel.
    halo = 2 if problem.form == "direct" else 0
    small = values(source, 1, LR[0] + halo, LR[1] + halo, source.shape[-1])
    trial = replace(problem, lr=LR, origin=(0, 0), size=SIZE, chunk=0)
    if problem.window is None:
        count = SIZE[0] * SIZE[1]
        index = torch.randint(LR[0] * LR[1], (1, count), generator=draw).to(source.device)
        trial = replace(trial, index=index, offset=values(query.position_bias, 1, count, 2))
    else:
        trial = replace(trial, window=Window(0, SIZE[0], 0, SIZE[1]))
    return trial, small, scaled, values(source, *trial.output_shape(1, query.channels))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Their distance, relative to the norm; infinite or NaN where either is."""
    difference = float((ours - theirs).double().norm())
    length = float(theirs.double().norm())
    return difference / length if length else difference
