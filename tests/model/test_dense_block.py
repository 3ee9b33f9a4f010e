"""Dense blocks with gradients: the modules' function and gradients by Winograd's convolution, with
less memory, and only where nothing else was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diinn_fast.encoders import RDB, RDN, dense
from diinn_fast.encoders.winograd import Tiling, kernel_at_points, kernel_gradient, transforms

SIZES = [(4, 4), (8, 12), (1, 1), (5, 7), (3, 9)]


def modules(block: RDB, x: Tensor) -> Tensor:
    """The block as its authors' code runs it."""
    result: Tensor = block.LFF(block.convs(x)) + x
    return result


def saved_bytes(encoder: RDN, run: Callable[[Tensor], Tensor]) -> int:
    """What the backward of ``run`` keeps, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept = []  # the tensors themselves: freed memory may be given out again

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = run(torch.rand(1, 3, 16, 16))
    assert out.requires_grad
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in kept}
    return sum(size for address, size in storages.items() if address not in parameters)


@pytest.mark.parametrize("size", SIZES)
def test_winograds_convolution_is_the_convolution(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    tiling = Tiling(2, *size)
    at_points = tiling.at_points(image.permute(0, 2, 3, 1))
    got = tiling.from_points(torch.bmm(at_points, kernel_at_points(weight)))
    torch.testing.assert_close(got.permute(0, 3, 1, 2), F.conv2d(image, weight, padding=1))


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_its_steps_are_their_adjoints(size: tuple[int, int]) -> None:
    tiling = Tiling(2, *size)
    image = torch.randn(2, *size, 3, dtype=torch.float64)
    points = torch.randn(36, tiling.tiles, 3, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    kernel = torch.randn(36, 3, 5, dtype=torch.float64)
    pairs = [
        ((tiling.at_points(image), points), (image, tiling.image_gradient(points))),
        ((tiling.from_points(points), image), (points, tiling.sums_gradient(image))),
        ((kernel_at_points(weight), kernel), (weight, kernel_gradient(kernel))),
    ]
    for left, right in pairs:
        torch.testing.assert_close((left[0] * left[1]).sum(), (right[0] * right[1]).sum())


def test_rounding_is_that_of_a_direct_convolution() -> None:
    """Of 288 channels: 9.5e-7 measured; the usual points of evaluation would give 2e-6."""
    image = torch.relu(torch.randn(1, 288, 16, 16, dtype=torch.float64))
    weight = torch.randn(64, 288, 3, 3, dtype=torch.float64) / 50
    want = F.conv2d(image, weight, padding=1)
    tiling = Tiling(1, 16, 16)
    at_points = tiling.at_points(image.float().permute(0, 2, 3, 1))
    got = tiling.from_points(torch.bmm(at_points, kernel_at_points(weight.float())))
    error = (got.permute(0, 3, 1, 2).double() - want).norm() / want.norm()
    assert error < 1.5e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_those_of_the_modules(size: tuple[int, int], bias: bool) -> None:
    block = RDB(6, 4, 3).double()
    if not bias:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.bias = None
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    out = block(x)
    want = modules(block, x)
    assert out.grad_fn.name().startswith("_DenseBlock")
    torch.testing.assert_close(out, want)
    grad = torch.randn_like(out)
    pairs = zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True
    )
    for got, expected in pairs:
        torch.testing.assert_close(got, expected)


@pytest.mark.long
def test_first_and_second_derivatives_by_differences() -> None:
    block = RDB(2, 2, 2).double()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    parameters = list(block.parameters())

    def run(x: Tensor, *_: Tensor) -> Tensor:
        result: Tensor = block(x)
        return result

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_frozen_parts_have_no_gradient() -> None:
    block = RDB(6, 4, 3)
    block.convs.requires_grad_(False)
    block(torch.randn(1, 6, 5, 7)).sum().backward()
    assert all(p.grad is None for p in block.convs.parameters())
    assert block.LFF.weight.grad is not None
    block.requires_grad_(False)
    assert not block(torch.randn(1, 6, 5, 7)).requires_grad


def test_parameters_and_gradients_have_the_same_strides() -> None:
    """Distributed training warns and copies otherwise."""
    for layout in (torch.contiguous_format, torch.channels_last):
        block = RDB(6, 4, 3).to(memory_format=layout)  # type: ignore[call-overload]
        block(torch.randn(1, 6, 5, 7)).sum().backward()
        for parameter in block.parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()


def test_training_keeps_a_quarter_of_what_the_modules_keep() -> None:
    encoder = RDN(channels=16, growth=16, blocks=2, convs=8)
    plain = saved_bytes(encoder, encoder.plain)
    assert saved_bytes(encoder, encoder) < plain / 4
    encoder.recompute = True
    assert saved_bytes(encoder, encoder) < plain / 8


def test_blocks_that_are_computed_twice_give_the_same_bits() -> None:
    encoder = RDN(channels=8, growth=8, blocks=2, convs=2)
    x = torch.rand(1, 3, 9, 8)
    gradients = []
    for encoder.recompute in (False, True):
        out = encoder(x)
        gradients.append([out, *torch.autograd.grad(out.sum(), list(encoder.parameters()))])
    for once, twice in zip(*gradients, strict=True):
        assert torch.equal(once, twice)


@pytest.mark.parametrize("case", ["autocast", "16 bit", "edited"])
def test_elsewhere_the_modules_are_called(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "dense_block", None)
    block = RDB(6, 4, 3)
    x = torch.randn(1, 6, 5, 7)
    if case == "edited":
        block.convs[1].conv[1] = nn.Tanh()  # type: ignore[assignment]
    if case == "16 bit":
        block, x = block.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(block(x), modules(block, x))


AROUND: dict[str, Callable[[], Any]] = {
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "inference": torch.inference_mode,
    "meta device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", AROUND)
def test_a_first_call_in_a_mode_leaves_nothing_behind(mode: str) -> None:
    transforms.cache_clear()
    block = RDB(8, 4, 2)
    x = torch.rand(1, 8, 5, 7)
    with AROUND[mode](), torch.enable_grad():
        block(x)
    torch.testing.assert_close(block(x), modules(block, x))
