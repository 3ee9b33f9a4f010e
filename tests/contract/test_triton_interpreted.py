"""The Triton kernels beyond the contract: geometry, trigonometry and the self-check, in the
interpreter's process (`tests.helpers.interpreter`).

The functions with a leading underscore run there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diinn_fast import backends, geometry
from diinn_fast.problem import Problem
from tests.helpers import interpreter
from tests.helpers.problems import Operands, operands

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
FLOATS = [
    torch.float32,
    *(pytest.param(half, marks=pytest.mark.long) for half in (torch.float16, torch.bfloat16)),
]

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from diinn_fast.kernels.network import local, nearest
    from diinn_fast.kernels.trig import cos, sin
    from triton import jit

    @jit(do_not_specialize=["n_in", "n_out", "scale"])  # type: ignore[untyped-decorator]
    def nearest_and_local(
        position: Any,
        index: Tensor | None,
        offset: Tensor | None,
        n_in: Any,
        n_out: Any,
        scale: Any,
    ) -> None:
        at = tl.arange(0, 64)
        y = tl.load(position + at)
        i = nearest(y, scale, n_in)
        tl.store(index + at, i)
        tl.store(offset + at, local(y, i, n_in, n_out))

    @jit  # type: ignore[untyped-decorator]
    def sine_and_cosine(x: Tensor, sine: Any, cosine: Any) -> None:
        at = tl.program_id(0) * 16384 + tl.arange(0, 16384)
        v = tl.load(x + at)
        tl.store(sine + at, sin(v, False))
        tl.store(cosine + at, cos(v, False))


def test_index_and_offset_have_the_bits_of_geometry(seed: random.Random) -> None:
    """For a position's whole path through the kernel: Y, X to LR index and (dy, dx), up to the
    longest axis.
    """
    longest = geometry.MAX_LENGTH
    axes = [(4, 166), (2, 41), (4, 82), (1, 64)]
    axes += [(longest, longest), (longest - 1, longest), (3, longest), (longest, 64)]
    axes += [
        (seed.randint(1, 10 ** seed.randint(1, 6)), seed.randint(1, 10 ** seed.randint(2, 7)))
        for _ in range(200)
    ]
    places = [
        (n_in, n_out, max(0, seed.choice([0, n_out // 2, n_out - 64]))) for n_in, n_out in axes
    ]
    located = interpreter.call(_locate, places)
    for (n_in, n_out, start), (index, offset) in zip(places, located, strict=True):
        want = geometry.nearest_index(start, start + 64, n_in, n_out)
        exact = geometry.local_offset(start, start + 64, want, n_in, n_out, torch.float32)
        assert torch.equal(index, want), (n_in, n_out)
        assert torch.equal(offset, exact), (n_in, n_out)


def _locate(places: list[tuple[int, int, int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """LR index and offset of 64 positions from ``start`` on, for each (n_in, n_out, start)."""
    found = []
    for n_in, n_out, start in places:
        index = torch.empty(64, dtype=torch.int64)
        offset = torch.empty(64)
        position = torch.arange(start, start + 64, dtype=torch.int32)
        ratio = geometry.round_float32(n_in / n_out)
        nearest_and_local[(1,)](position, index, offset, n_in, n_out, ratio)
        found.append((index, offset))
    return found


def test_sine_and_cosine() -> None:
    """The accurate ones: the interpreter has no special-function unit."""
    for limit in (8.0, 1e2, 1e4):
        x = (torch.rand(1 << 18) * 2 - 1) * limit
        quarter = torch.pi / 2
        x[:8] = torch.tensor([0.0, -0.0, torch.pi, -torch.pi, quarter, 3 * quarter, limit, -limit])
        sine, cosine = interpreter.call(_sine_and_cosine, x)
        assert (sine - x.double().sin()).abs().max() <= 2.5e-7
        assert (cosine - x.double().cos()).abs().max() <= 2.5e-7
        assert sine[0] == 0
    x = torch.full((16384,), float("nan"))
    x[::2] = float("inf")
    sine, cosine = interpreter.call(_sine_and_cosine, x)
    assert sine.isnan().all() and cosine.isnan().all()


def _sine_and_cosine(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sine = torch.empty_like(x)
    cosine = torch.empty_like(x)
    sine_and_cosine[(len(x) // 16384,)](x, sine, cosine)
    return sine, cosine


@pytest.mark.long
@pytest.mark.parametrize(("form", "mode"), [("modulation", 1), ("content", 3)])
def test_every_structure_of_the_kernel_gives_the_same_values(form: str, mode: int) -> None:
    """Output, and what the backward keeps, whether k and s are one product, to NumPy's rounding of
    products of other widths; whether each layer has a loop of its own, to the bit.
    """
    dtype = torch.float16
    case = operands(form, mode, width=32, layers=3, dtype=dtype, small=True)
    arguments = (case.problem, case.source.contiguous(), case.weights)
    plain, nested, paired, both = interpreter.call(_by_every_structure, *arguments)
    for one, other, most in ((plain, nested, 0), (paired, both, 0), (plain, paired, 1)):
        for a, b in zip(one, other, strict=True):
            apart = (a.double() - b.double()).norm() / a.double().norm()
            assert apart <= most * torch.finfo(dtype).eps


def _by_every_structure(
    problem: Problem, source: torch.Tensor, weights: list[torch.Tensor]
) -> list[list[torch.Tensor]]:
    from diinn_fast.kernels.launch import Network
    from diinn_fast.kernels.tiles import Tile

    found = []
    for paired, nested in ((False, False), (False, True), (True, False), (True, True)):
        tile = Tile(8, 8, 16, 1, 4, paired and problem.form == "content", nested)
        network = Network(problem, source, weights, tile)
        found.append([network.forward(problem), *network.recompute(problem, slice(0, 1))])
    return found


# -- the self-check, which the backend itself does on a GPU alone ----------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("form", "mode"), [("modulation", 1), ("content", 3)])
def test_self_check_passes_and_finds_a_wrong_kernel(
    form: str, mode: int, dtype: torch.dtype
) -> None:
    window = operands(form, mode, width=32, layers=2, dtype=dtype, small=True)
    for problem in (window, window.at_points(5)):
        arguments = (problem.problem, problem.source.contiguous(), problem.weights)
        assert interpreter.call(_reasons, *arguments) == [None, None]
        # Gradients in bfloat16 may be off by half: whole terms change where a relu does.
        values, gradients = interpreter.call(_reasons, *arguments, 2.0)
        assert "differ" in values and "differ" in gradients
        values, _ = interpreter.call(_reasons, *arguments, None)
        assert "unsupported operand" in values


def _reasons(
    problem: Problem, source: torch.Tensor, weights: list[torch.Tensor], factor: Any = 1
) -> list[str | None]:
    """What the self-checks of values and gradients say of kernels whose results are off by a
    factor.
    """
    module = backends.load("triton")
    forward = module._forward
    backward = module._backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_forward", lambda *given: forward(*given) * factor)
        patch.setattr(module, "_backward", lambda *given: [g * factor for g in backward(*given)])
        return [
            module.compare_with_eager(problem, source, weights, gradients)
            for gradients in (False, True)
        ]


def test_a_failed_self_check_falls_back_loudly_and_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = backends.load("triton")
    case: Operands = operands("content", 3, small=True)
    source = case.source
    on_gpu = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=source.dtype, shape=source.shape)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(module, "compare_with_eager", lambda *arguments: "they differ")
    monkeypatch.setattr(Problem, "check_source", lambda *arguments: None)
    monkeypatch.setattr(module, "_checked", {})
    problem = replace(case.problem, chunk=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert module._refused(problem, on_gpu, case.weights, gradients=False)
    assert [r.getMessage() for r in caplog.records] == [
        "the Triton kernels are not used on cuda:0, plain PyTorch is: they differ"
    ]
