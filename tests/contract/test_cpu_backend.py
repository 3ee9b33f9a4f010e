"""The compiled CPU kernels beyond the contract: their sine, convolution and bfloat16 kernels, the
choice among them, processes and memory.
"""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from diinn_fast import BackendError, backends, use_backend
from diinn_fast.backends import cpu, eager
from diinn_fast.geometry import Window
from diinn_fast.packing import pack
from diinn_fast.problem import Problem, query_weights
from tests.helpers.measure import rms
from tests.helpers.problems import make_decoder, operands

if os.environ.get("DIINN_FAST_NO_KERNELS") == "1" or isinstance(cpu._load(), str):
    pytest.skip(f"no CPU kernels: {cpu._load()}", allow_module_level=True)

ISAS = cpu._kernels().instruction_sets()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", request.param)
    assert cpu.unavailable() is None
    return str(request.param)


def test_sine_and_cosine_against_double_precision(isa: str) -> None:
    """Every 499th float32 up to 10,000 and the neighbourhood of the multiples of pi/2."""
    bound = 2e-7 if isa == "portable" else 1.4e-7
    bits = torch.arange(0, torch.tensor(1e4).view(torch.int32).item(), 499, dtype=torch.int32)
    near = (torch.arange(0, 6366, dtype=torch.float64) * (torch.pi / 2)).float()
    near = torch.cat(
        [near, torch.nextafter(near, torch.tensor(1e9)), torch.nextafter(near, torch.tensor(-1e9))]
    )
    for x in (bits.view(torch.float32), near.clamp(max=1e4)):
        for signed in (x, -x):
            s, c = _sine(isa, signed)
            assert (s - signed.double().sin()).abs().max() <= bound
            assert (c - signed.double().cos()).abs().max() <= bound
    beyond = torch.tensor([1.1e4, -3e6, 1e20, 3e38, 0.5])  # the C library's
    s, c = _sine(isa, beyond)
    torch.testing.assert_close(s.double(), beyond.double().sin(), rtol=0, atol=1e-7)
    torch.testing.assert_close(c.double(), beyond.double().cos(), rtol=0, atol=1e-7)
    s, c = _sine(isa, torch.tensor([float("nan"), float("inf"), -float("inf")]))
    assert s.isnan().all() and c.isnan().all()


def _sine(isa: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    s = torch.full_like(x, 7)
    c = torch.full_like(x, 7)
    cpu._kernels().sine(isa, x.data_ptr(), s.data_ptr(), c.data_ptr(), x.numel())
    return s, c


def test_arguments_beyond_the_vector_sines_range_come_out_as_from_eager(isa: str) -> None:
    decoder = make_decoder(3, width=64, channels=5).requires_grad_(False)
    features = torch.randn(1, 5, 4, 5)
    decoder.Q[0][0].weight.mul_(3e5)
    got = decoder(features, (9, 10), backend="cpu")
    want = decoder(features, (9, 10), backend="eager")
    assert got.isfinite().all()
    assert rms(got - want) <= 0.05 * rms(want)  # arguments of 1e5 are themselves uncertain by 1e-2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_decodes() -> None:
    torch.set_num_threads(2)
    problem = operands("content", 3)
    want = problem.decode("cpu")
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(problem.decode("cpu"), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("channels", [1, 5, 64])
def test_conv3x3_is_the_convolution_and_tiles_bitwise(channels: int, isa: str) -> None:
    padded = torch.randn(2, 9, 12, channels)
    weight = torch.randn(96, 9 * channels)
    bias = torch.randn(96)
    got = cpu.conv3x3(padded, weight, bias)
    kernel = weight.view(96, channels, 3, 3)
    exact = F.conv2d(padded.permute(0, 3, 1, 2).double(), kernel.double(), bias.double()).permute(
        0, 2, 3, 1
    )
    plain = F.conv2d(padded.permute(0, 3, 1, 2), kernel, bias).permute(0, 2, 3, 1)
    assert rms(got - exact) <= 2 * rms(plain - exact) + 1e-6
    for y, x in ((0, 0), (3, 5), (6, 9)):
        assert torch.equal(
            cpu.conv3x3(padded[1:, y : y + 3, x : x + 3], weight, bias)[0, 0, 0], got[1, y, x]
        )


def test_conv3x3_leaves_other_cases_to_the_framework() -> None:
    padded = torch.randn(1, 4, 4, 2)
    weight = torch.randn(32, 18)
    bias = torch.randn(32)
    assert cpu.conv3x3(padded, weight, bias) is not None
    assert cpu.conv3x3(padded.double(), weight.double(), bias.double()) is None
    assert cpu.conv3x3(padded, weight[:31], bias[:31]) is None
    assert cpu.conv3x3(padded, weight.requires_grad_(), bias) is None


@pytest.fixture(params=["amx", "avx512_bf16"])
def bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bfloat16 kernels; what they computed, outputs and lists of gradients, is listed."""
    if request.param not in cpu._bf16_sets():
        pytest.skip(f"no {request.param}")
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", request.param)
    assert cpu.bf16_instruction_set() == request.param
    assert cpu._self_check(f"{request.param} bf16") is None
    computed: list[Any] = []

    def listed(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a: computed.append(kernel(*a)) or computed[-1]

    for name in ("_forward_bf16", "_backward_bf16"):
        monkeypatch.setattr(cpu, name, listed(getattr(cpu, name)))
    return computed


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_bf16_rgb_is_not_rounded_before_its_sum(form: str, bf16: list[Any]) -> None:
    """Nearly plain PyTorch's own error is all that is left."""
    problem = operands(form, 3 if form == "content" else 1, width=256, dtype=torch.bfloat16)
    exact = problem.to(torch.float64).decode("eager")
    error = rms(problem.decode("cpu") - exact)
    assert bf16 and error <= 1.1 * rms(problem.decode("eager") - exact)


def test_bf16_rounds_the_hidden_weights_and_no_others(bf16: list[Any]) -> None:
    problem = operands("content", 3)
    problem = replace(problem, source=problem.source.bfloat16())
    got = problem.decode("cpu")
    weights = query_weights(problem.weights)
    for name in weights._fields:
        rounded = weights._replace(**{name: getattr(weights, name).bfloat16()})
        same = torch.equal(replace(problem, weights=list(rounded)).decode("cpu"), got)
        assert same == (name == "hidden"), name
    assert len(bf16) == 7


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_bf16_gradients_at_points_have_the_bits_of_a_windows(form: str, bf16: list[Any]) -> None:
    """Column by column, the order in which the kernel takes a pixel's queries."""
    window = operands(form, 3 if form == "content" else 1, batch=4, dtype=torch.bfloat16)
    grad = window.output_gradient()
    want = window.gradients(grad, "cpu")
    listed = grad.transpose(2, 3).flatten(2).transpose(1, 2)
    got = window.as_points(columns_first=True).gradients(listed, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len(bf16) == 2


@pytest.mark.parametrize("mode", [1, 3])
def test_training_under_autocast_takes_the_bf16_kernels_both_ways(
    mode: int, bf16: list[Any]
) -> None:
    decoder = make_decoder(mode, width=64, channels=5)
    features = torch.randn(2, 5, 6, 7, requires_grad=True)
    yx = torch.stack([torch.randint(n, (2, 50)) for n in (18, 21)], dim=-1)
    for backend in ("auto", "eager"):
        with torch.autocast("cpu", torch.bfloat16):
            sampled = decoder.sample_pixels(features, yx, (18, 21), backend=backend)
            whole = decoder(features, (18, 21), backend=backend)
        (sampled.float().abs().mean() + whole.float().abs().mean()).backward()
        assert len(bf16) == 4
    assert all(parameter.grad.dtype == torch.float32 for parameter in decoder.parameters())


def test_bf16_arguments_beyond_the_vector_sines_range_are_finite(bf16: list[Any]) -> None:
    problem = operands("content", 3, dtype=torch.bfloat16)
    query_weights(problem.weights).position.mul_(3e5)
    assert problem.decode("cpu").isfinite().all() and bf16


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_elsewhere_is_computed_in_float32(
    isa: str, bf16: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The direct form, float16, and other instruction sets."""
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", isa)

    def is_float32s(dtype: torch.dtype, form: str) -> bool:
        problem = operands(form, 1 if form == "modulation" else 3).to(dtype)
        grad = problem.output_gradient()
        got = [problem.decode("cpu"), *problem.gradients(grad, "cpu")]
        wide = problem.to(torch.float32)
        want = [wide.decode("cpu"), *wide.gradients(grad.float(), "cpu")]
        return all(torch.equal(a, b.to(dtype)) for a, b in zip(got, want, strict=True))

    assert is_float32s(torch.bfloat16, "direct") and is_float32s(torch.float16, "content")
    if isa != "avx512":
        assert is_float32s(torch.bfloat16, "content") and is_float32s(torch.bfloat16, "modulation")
    assert not bf16


@pytest.mark.parametrize("wrong", ["_forward_bf16", "_backward_bf16"])
def test_a_wrong_bf16_kernel_leaves_the_float32_kernels_in_use(
    wrong: str, bf16: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = getattr(cpu, wrong)

    def off(*arguments: Any) -> Any:
        result = kernel(*arguments)
        return [g * 1.05 for g in result] if isinstance(result, list) else result * 1.05

    monkeypatch.setattr(cpu, wrong, off)
    monkeypatch.setattr(cpu, "_checked", {})
    problem = operands("content", 3, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        got, again = (problem.decode("cpu") for _ in range(2))
    assert [r.getMessage().count("for bfloat16 are not used") for r in caplog.records] == [1]
    assert cpu.unavailable() is None and len(bf16) == 2
    assert torch.equal(got, again)
    assert torch.equal(got, problem.to(torch.float32).decode("cpu").bfloat16())


def test_auto_takes_it_and_leaves_float64_to_eager() -> None:
    lr = (2, 2)
    problem = Problem("content", 3, lr, (0, 0), lr, Window(0, 2, 0, 2), None, None, 0)
    source = torch.randn(1, *lr, 4 * 64)
    assert backends.choose("auto", problem, source) is cpu
    assert backends.choose("auto", problem, source.double()) is eager
    with pytest.raises(BackendError, match="float32"):
        backends.choose("cpu", problem, source.double())


def test_unknown_instruction_set_is_an_error_that_lists_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", "mmx")
    with pytest.raises(BackendError, match="portable"):
        use_backend("cpu")


def test_without_the_compiled_module_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diinn_fast._cpu", None)
    fresh = types.FunctionType(cpu._load.__wrapped__.__code__, vars(cpu))
    assert "compiler" in fresh()


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_bounded(dtype: torch.dtype) -> None:
    """Peak resident memory of forward and backward beyond inputs and outputs, on two threads: at
    most 64 MiB.
    """
    if dtype == torch.bfloat16 and cpu.bf16_instruction_set() is None:
        pytest.skip("no kernels in bfloat16")
    torch.set_num_threads(2)
    decoder = make_decoder(3)
    lr = (96, 96)
    size = (300, 300)
    features = torch.randn(1, 64, *lr)
    with torch.no_grad():
        weights = [w.to(dtype) for w in pack(decoder.layers(), 3, "content").query]
        source = decoder.project(F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()).to(
            dtype
        )
    problem = Problem("content", 3, lr, (0, 0), size, Window(0, size[0], 0, size[1]), None, None, 0)
    grad = torch.randn(1, 3, *size).to(dtype)
    outputs = {"forward": grad.nbytes, "backward": source.nbytes + sum(w.nbytes for w in weights)}
    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: cpu.forward(problem, source, weights),
        "backward": lambda: cpu.backward(problem, grad, source, weights, [True] * 7),
    }
    for name, run in runs.items():
        before = _resident("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM
        run()
        assert _resident("VmHWM") - before - outputs[name] <= 64 << 20, name


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024
