"""The Triton kernels with 8-bit integers beyond the contract: the integers, and that they are the
CPU's; in the interpreter's process (`tests.helpers.interpreter`).

The functions with a leading underscore run there.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from diinn_fast.backends import cpu, int8
from diinn_fast.problem import Problem
from tests.helpers import interpreter
from tests.helpers.measure import rms
from tests.helpers.problems import Operands, operands

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
LARGEST = 127
LEAST = 2.0**-100


def rows() -> Tensor:
    """Random rows, and those that are none, tiny, huge, or end in a tie."""
    x = torch.randn(33, 96) * torch.logspace(-20, 20, 33)[:, None]
    x[1] = 0
    x[2] *= 1e-30
    x[3, :2] = torch.tensor([LEAST, -LEAST / 3])
    x[3, 2:] = 0
    x[4, 5] = float("nan")
    x[5, 6] = float("inf")
    x[6, 7] = -float("inf")
    # Halves of a unit go to the even integer.
    x[7] = torch.arange(96) / 2 - 20
    x[7, 0] = -LARGEST
    return x


def test_integers_are_those_of_the_definition() -> None:
    """n = round(x * (127 / a)) to the nearest even, a the row's largest magnitude, and a / 127; of
    rows that cannot be scaled NaN or zero.
    """
    x = rows()
    integers, units = interpreter.call(_quantised, x)
    largest = x.abs().amax(-1)
    whole = largest.isfinite() & (largest >= LEAST)
    assert units[~largest.isfinite()].isnan().all() and int((~largest.isfinite()).sum()) == 3
    nothing = largest < LEAST
    assert (units[nothing] == 0).all() and (integers[nothing] == 0).all()
    assert int(nothing.sum()) >= 2 and whole[3]
    # Products of two float32 numbers are exact in float64.
    inverse = torch.tensor(float(LARGEST)) / largest[whole]
    want = (x[whole].double() * inverse[:, None].double()).round()
    assert torch.equal(integers[whole].double(), want)
    assert torch.equal(units[whole], largest[whole] / LARGEST)
    assert want.abs().amax(-1).eq(LARGEST).all()
    assert integers[7, 25] == -8 and x[7, 25] == -7.5


def test_half_precision_weights_are_widened_first() -> None:
    x = torch.randn(16, 64).half()
    for got, want in zip(
        interpreter.call(_quantised, x), interpreter.call(_quantised, x.float()), strict=True
    ):
        assert torch.equal(got, want)


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    from diinn_fast.kernels.launch_quantised import quantised_rows

    integers, units = quantised_rows(x)
    return integers, units


@pytest.mark.skipif(isinstance(cpu._load(), str), reason=f"no CPU kernels: {cpu._load()}")
@pytest.mark.parametrize(("form", "mode"), [("modulation", 1), ("content", 3)])
def test_values_are_those_of_the_cpu_to_float_rounding(form: str, mode: int) -> None:
    """All but where rounding moves a number from one integer to the next; windows and points."""
    window = operands(form, mode, width=64, layers=3, small=True)
    for problem in (window, window.at_points(41)):
        arguments = (problem.problem, problem.source.contiguous(), problem.weights)
        got = interpreter.call(_decoded, *arguments)
        want = int8._decode(int8.SLOW, *arguments)
        quantisation = rms(want - exact_values(problem))
        assert (got - want).abs().median() <= 1e-6 * rms(want)
        assert rms(got - want) <= 0.1 * quantisation


def exact_values(problem: Operands) -> Tensor:
    return problem.to(torch.float64).decode("eager")


def _decoded(problem: Problem, source: Tensor, weights: list[Tensor]) -> Tensor:
    from diinn_fast.backends import triton_int8

    return triton_int8.forward(problem, source, weights)


def test_every_structure_and_tile_gives_the_same_bits() -> None:
    """Integer sums are exact in any order: k and s by one product or two, any queries."""
    problem = operands("content", 3, width=64, layers=3, small=True)
    arguments = (problem.problem, problem.source.contiguous(), problem.weights)
    first, *others = interpreter.call(_by_every_structure, *arguments)
    assert all(torch.equal(other, first) for other in others)


def _by_every_structure(problem: Problem, source: Tensor, weights: list[Tensor]) -> list[Tensor]:
    from diinn_fast.kernels.launch_quantised import QuantisedNetwork
    from diinn_fast.kernels.tiles import Tile

    tiles = [Tile(ty, 8, 32, 1, 4, paired) for ty in (4, 8) for paired in (False, True)]
    return [QuantisedNetwork(problem, source, weights, tile).forward(problem) for tile in tiles]


def test_the_self_check_finds_a_wrong_kernel() -> None:
    """Which the backend itself does on a GPU alone."""
    window = operands("content", 3, width=64, layers=3, dtype=torch.float16, small=True)
    for problem in (window, window.at_points(5)):
        arguments = (problem.problem, problem.source.contiguous(), problem.weights)
        assert interpreter.call(_reason, *arguments, 1.0) is None
        assert "differ" in interpreter.call(_reason, *arguments, 1.1)


def _reason(problem: Problem, source: Tensor, weights: list[Tensor], factor: float) -> str | None:
    from diinn_fast.backends import triton_int8

    forward = triton_int8._forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_int8, "_forward", lambda *given: factor * forward(*given))
        return triton_int8.compare_with_eager(problem, source, weights)
