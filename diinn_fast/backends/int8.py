"""Backend ``int8``: the fused decoder of csrc/cpu with 8-bit integers in the projection and in the
hidden products.

Inference only, on CPUs with AMX, AVX512_VNNI, AVX-VNNI, AVX2, or the dot product of AArch64.
Weights are quantised by their rows, at run time the features around each LR pixel (two integers
for each number, 15 bits) and each query's activations by their largest value; all else is float32.
About as exact as bfloat16. The few queries whose activations are so large that 8 bits would show
(pixels that alternate between black and white, not photographs) are computed again in float32.
Results have the same bits for any number of threads and however queries are cut, and those in
integers on every instruction set. Forms content and modulation: the direct form (init_q, scales
below 1, few points), and all that its kernels do not take, is computed in float32 by the backend
``cpu``.

``DIINN_FAST_CPU_ISA`` (amx, avx512_vnni, avx_vnni, avx2, dotprod or portable) overrides the choice
of instruction set; a name of the backend ``cpu`` stands for the sets of the same CPUs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from diinn_fast.backends import _convolution, cpu, eager
from diinn_fast.errors import BackendError
from diinn_fast.problem import Problem, Weights, query_weights

DEVICES = ("cpu",)
DTYPES = "int8 projection and products; all else, the direct form included, in float32"
INTEGERS = True
NOTE = "compiled C++, fused; forward only; auto takes it for pictures of 8 bits, not on AVX2"

LARGEST = 127
"""Of the integers."""

MOST_TERMS = 65536
"""Up to so many terms (the hidden width) no sum overflows 32 bits, whatever the numbers."""

MOST_TAPS = 1032
"""The same of the projection's products of two digits: nine times the features' channels."""

COARSE = 0.006
"""Root mean square error of a sine's argument, in radians, up to which a query's activations may be
rounded: docs/kernels/cpu.md.
"""

AGAIN = 1 << 16
"""Queries that are computed again at a time."""

NATIVE = ("amx", "avx512_vnni", "avx_vnni", "dotprod")
"""Instruction sets that multiply 8-bit integers and sum the products in one instruction."""

SLOW = "portable"
"""The instruction set that is there for comparison: it is not used unless asked for."""

CHECK_TOLERANCE = 0.03
"""Of the self-check, relative to the norm: twice what rounding to 8 bits costs there."""

_check_lock = threading.Lock()
_checked: dict[str, str | None] = {}


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    if reason := cpu.unavailable():
        return reason
    if not cpu.int8_instruction_sets():
        return "the compiled kernels are older than the package: reinstall diinn_fast"
    name = instruction_set()
    if name is None:
        return (
            "it needs AVX2, AVX-VNNI, AVX512_VNNI, AMX or AArch64's dot product, which this CPU or "
            "this build has not: use the backend cpu"
        )
    return _self_check(name)


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
    return cpu.unsupported(problem, source)


def instruction_set() -> str | None:
    """The instruction set in use, None if only the portable one would do and is not asked for."""
    sets = cpu.int8_instruction_sets()
    asked = os.environ.get("DIINN_FAST_CPU_ISA")
    if not asked:
        return next((name for name in sets if name != SLOW), None)
    if asked in sets:
        return asked
    return next((name for name, base in sets.items() if base == cpu.instruction_set()), None)


def not_native() -> str | None:
    """Why ``--precision auto`` does not take int8 on this CPU, or None if it does: the instruction
    set in use is one of NATIVE.
    """
    if reason := unavailable():
        return reason
    name = instruction_set()
    return None if name in NATIVE else f"{name} has no dot product of 8-bit integers"


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """RGB of all queries, see `Backend.forward`."""
    query = query_weights(weights)
    if problem.form == "direct" or not takes_layers(query.width, query.layers):
        return cpu.forward(problem, source, weights)
    name = instruction_set()
    assert name is not None, "unavailable"
    # The kernel rounds the hidden products' operands itself; all else is float32.
    exact = source.float()
    floats = [v.float() for v in weights]
    out, coarse = _marked(name, problem, exact, floats)
    if coarse.any():
        _compute_again(coarse, out, problem, exact, floats)
    return out.to(source.dtype)


def takes_layers(width: int, layers: int) -> bool:
    """Whether the kernels take so many layers of this hidden width: else all is in float32."""
    return width <= MOST_TERMS and cpu.refuses_shape(width, layers) is None


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Refused: rounding to integers has no gradient."""
    raise BackendError(
        "backend 'int8' has no gradients: train with the backend auto, or decode under "
        "torch.no_grad()"
    )


def conv3x3(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
    """As of the backend ``cpu``, by integer products: 3x3 convolution of ``[B, h+2, w+2, C]`` by
    ``[out, 9C]`` (columns c*9 + tap) plus ``[out]``: ``[B, h, w, out]``.

    Every pixel has the same bits, however the image is cut. None where it does not apply: kernels
    not available, not float32, ``out`` not a multiple of 32, more than MOST_TAPS / 9 channels.
    """
    if not _convolution.takes(padded, weight, bias) or weight.shape[1] > MOST_TAPS:
        return None
    name = None if unavailable() else instruction_set()
    if name is None:
        return None
    return _convolve(name, *(v.detach() for v in (padded, weight, bias)))


def _convolve(name: str, padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """All pixels by the integer kernels of one instruction set."""
    return _convolution.run(partial(cpu._kernels().int8_conv3x3, name), padded, weight, bias)


def _decode(name: str, problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """All queries by the integer kernels of one instruction set, in the dtype of ``source``."""
    out, _ = _marked(name, problem, source.float(), [v.float() for v in weights])
    return out.to(source.dtype)


def _marked(
    name: str, problem: Problem, source: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same of float32, and of each query [B, N] whether 8 bits are too coarse for it."""
    query = query_weights(weights)
    out = source.new_empty(problem.output_shape(source.shape[0], query.channels))
    queries = out.numel() // query.channels // max(1, len(out))
    coarse = torch.zeros(len(out), queries, dtype=torch.bool)
    if out.numel():
        marks = [_limits(query), coarse]
        arguments, alive = cpu._arguments(problem, source, weights, marks)
        cpu._kernels().forward_int8(name, arguments, out.data_ptr())
        del alive
    return out, coarse


def _limits(query: Weights) -> Tensor:
    """Of each hidden layer, the unit of q at which COARSE is reached, [L-1] float32.

    Rounding moves each of q's numbers by a unit / sqrt(12), root mean square, and so a row's sum by
    that times the row's norm.
    """
    norms = query.hidden.detach().norm(dim=2).amax(dim=1)
    limits: Tensor = COARSE * 12**0.5 / norms
    return limits


def _compute_again(
    coarse: Tensor, out: Tensor, problem: Problem, source: Tensor, weights: Sequence[Tensor]
) -> None:
    """Overwrite the marked queries with their values in float32."""
    for image in range(len(out)):
        pixels = out[image] if problem.window is None else out[image].flatten(1).T
        # Few at a time: their positions are longer than their values.
        for queries in coarse[image].nonzero().flatten().split(AGAIN):
            points = _as_points(problem, source, image, queries)
            pixels[queries] = cpu.forward(points, source[image : image + 1], weights)[0]


def _as_points(problem: Problem, source: Tensor, image: int, queries: Tensor) -> Problem:
    """A problem of some queries of one image, by their places in it."""
    if problem.window is None:
        assert problem.index is not None and problem.offset is not None
        index = problem.index[image, queries]
        offset = problem.offset[image, queries]
    else:
        rows, columns = problem.grid(source)
        i, dy, j, dx = cpu._window_positions(problem, problem.window, rows, columns)
        y = queries // problem.window.shape[1]
        x = queries % problem.window.shape[1]
        index = i[y] * columns + j[x]
        offset = torch.stack([dy[y], dx[x]], dim=1)
    return replace(problem, window=None, index=index[None], offset=offset[None])


def _self_check(name: str) -> str | None:
    """Decode and project a tiny problem once per instruction set: None, or why the kernels are
    refused.
    """
    with _check_lock, torch.autocast("cpu", enabled=False):
        if name not in _checked:
            problem, source, weights, _ = cpu._check_problem()
            features, *projection = _check_projection()
            _checked[name] = _compare(
                name,
                lambda isa: _decode(isa, problem, source, weights),
                lambda: eager.forward(problem, source, weights),
            ) or _compare(
                name,
                lambda isa: _convolve(isa, features, *projection),
                lambda: eager.conv3x3(features, *projection),
            )
        return _checked[name]


def _compare(
    name: str, compute: Callable[[str], Tensor], plain: Callable[[], Tensor]
) -> str | None:
    """Why these kernels do not give the portable ones' bits, or the values of ``eager``; or
    None.
    """
    # Integer sums are exact: any difference from the portable kernels is a fault.
    try:
        ours = compute(name)
        portable = compute(SLOW)
    except Exception as error:
        return f"the self-check failed: {error}"
    if not torch.equal(ours, portable):
        return "the self-check gave other bits than the portable kernels"
    exact = plain()
    apart = float((ours - exact).norm() / exact.norm())
    if not apart <= CHECK_TOLERANCE:
        return f"the self-check differs from plain PyTorch by {apart:.1e}"
    return None


def _check_projection() -> list[Tensor]:
    """Padded features, weight and bias of a tiny projection."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 5, 6, 7), (32, 63), (32,))
    return [torch.rand(shape, generator=draw) * 2 - 1 for shape in shapes]
