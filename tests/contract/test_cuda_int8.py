"""The CUDA kernel with 8-bit integers beyond the contract: the integers, and that they are the
CPU's; on the emulated machine.
"""

from __future__ import annotations

import ctypes
import logging

import pytest
import torch
from torch import Tensor

from diinn_fast.backends import _cuda, cpu, cuda, cuda_int8, int8
from diinn_fast.problem import query_weights
from tests.helpers import emulated_gpu
from tests.helpers.measure import rms
from tests.helpers.problems import Operands, operands

pytestmark = pytest.mark.skipif(
    emulated_gpu.unavailable() is not None, reason=str(emulated_gpu.unavailable())
)
LARGEST = 127
LEAST = 2.0**-100
FORMS = [("modulation", 1), ("content", 3)]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend ``cuda_int8`` as if this were a GPU."""
    emulated_gpu.install(monkeypatch, "portable")


def example(form: str, mode: int, dtype: torch.dtype = torch.float16, **changes: int) -> Operands:
    return operands(form, mode, width=_cuda.WIDTH, layers=3, small=True, dtype=dtype, **changes)


def spoil(hidden: Tensor) -> Tensor:
    """Its rows, some of which are none, tiny, or end in a tie; in order of their units."""
    rows = hidden.view(-1, hidden.shape[-1])
    rows *= torch.logspace(-20, 15, len(rows))[:, None]
    rows[1] = 0
    rows[2] = LEAST / 3
    rows[3] = 0
    rows[3, 7] = -LEAST
    # Halves of a unit go to the even integer.
    rows[4] = torch.arange(rows.shape[1]) % 96 / 2 - 20
    rows[4, 0] = -LARGEST
    rows[5, 5] = float("nan")
    rows[6, 6] = -float("inf")
    return rows


@pytest.mark.parametrize(("form", "mode"), FORMS)
def test_weights_become_the_integers_and_units_of_the_definition(form: str, mode: int) -> None:
    """n = round(x * (127 / a)) to the nearest even, a the row's largest magnitude, and a / 127; of
    rows that cannot be scaled NaN or zero. Each weight stands in one place.
    """
    problem = example(form, mode)
    weights = [v.float() for v in problem.weights]
    rows = spoil(query_weights(weights).hidden)
    integers, units = packed(problem, weights)
    largest = rows.abs().amax(-1)
    whole = largest.isfinite() & (largest >= LEAST)
    assert whole[3] and int((~whole).sum()) == 4
    assert torch.equal(units[whole], largest[whole] / LARGEST)
    assert units[~largest.isfinite()].isnan().all() and (units[largest < LEAST] == 0).all()
    # Products of two float32 numbers are exact in float64.
    inverse = torch.tensor(float(LARGEST)) / largest
    want = (rows.double() * inverse[:, None].double()).round()[whole].to(torch.int8)
    assert torch.equal(integers[whole], want)
    assert (integers[largest < LEAST] == 0).all()


def packed(problem: Operands, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Integers [rows, H] and units [rows] as the kernel finds them in its work space."""
    library = emulated_gpu.library()
    out = torch.empty(problem.problem.output_shape(len(problem.source), 3))
    decode = _cuda.describe(problem.problem, problem.source, weights, out, _cuda.INTEGERS)
    size = _cuda.packed_bytes(decode)
    assert size == library.diinn_packed_bytes(ctypes.byref(decode))
    work = torch.zeros(size, dtype=torch.uint8)
    decode.packed = work.data_ptr()
    library.diinn_emulate_pack(ctypes.byref(decode))
    hidden = query_weights(weights).hidden
    count = hidden.numel()
    place = torch.empty(count, dtype=torch.int64)
    library.diinn_emulate_places(decode.modulation, count, ctypes.c_void_p(place.data_ptr()))
    integers = torch.full((count,), -128, dtype=torch.int8)
    integers[place] = work[:count].view(torch.int8)
    units = work[count:].view(torch.float32)
    return integers.view(-1, hidden.shape[-1]), units


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("form", "mode"), FORMS)
def test_weights_in_16_bit_are_widened_first(form: str, mode: int, dtype: torch.dtype) -> None:
    """As if the caller had done so, to the bit."""
    problem = example(form, mode, dtype)
    source = problem.source.contiguous()
    narrow = cuda_int8.forward(problem.problem, source, problem.weights)
    wide = cuda_int8.forward(problem.problem, source, [v.float() for v in problem.weights])
    assert torch.equal(narrow, wide)


@pytest.mark.skipif(isinstance(cpu._load(), str), reason=f"no CPU kernels: {cpu._load()}")
@pytest.mark.parametrize(("form", "mode"), FORMS)
def test_values_are_those_of_the_cpu_to_float_rounding(form: str, mode: int) -> None:
    """All but where rounding moves a number from one integer to the next; windows and points."""
    window = example(form, mode)
    for problem in (window, window.at_points(41)):
        source = problem.source.contiguous()
        weights = [v.float() for v in problem.weights]
        # In float32, as the CPU's: the rounding to 16 bit is not the question.
        got = torch.full(problem.problem.output_shape(len(source), 3), float("nan"))
        decode = _cuda.describe(problem.problem, source, weights, got, _cuda.INTEGERS)
        cuda._launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))
        want = int8._decode(int8.SLOW, problem.problem, source.float(), weights)
        quantisation = rms(want - problem.to(torch.float64).decode("eager"))
        assert (got - want).abs().median() <= 1e-6 * rms(want)
        assert rms(got - want) <= 0.1 * quantisation


def test_the_self_check_finds_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one then does the work, and it is said."""
    right = cuda_int8._forward
    monkeypatch.setattr(cuda_int8, "_forward", lambda *given: 1.1 * right(*given))
    problem = example("content", 3)
    got = problem.decode("cuda_int8")
    assert torch.equal(got, problem.decode("eager"))
    assert "differ from plain PyTorch" in caplog.text


@pytest.mark.parametrize("backend", ["cuda", "cuda_int8"])
def test_a_single_layer_has_no_products_and_is_handed_on(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "diinn_fast")
    problem = operands("content", 3, width=_cuda.WIDTH, layers=1, small=True, dtype=torch.float16)
    assert torch.equal(problem.decode(backend), problem.decode("eager"))
    assert "do not take width 256 (not 256), 1 layers or 3 channels" in caplog.text
