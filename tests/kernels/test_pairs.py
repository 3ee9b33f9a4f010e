"""Convolutions in pairs of bfloat16, on CPUs with AMX: values against float64, the same bits
however an image is cut, refusals; the encoder and precision int8 by them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast import Upscaler
from diinn_fast.backends import _pairs, cpu, int8
from diinn_fast.encoders import EDSR
from diinn_fast.inference.engine import Engine
from tests.helpers.measure import rms

MISSING = _pairs.unavailable()
on_amx = pytest.mark.skipif(MISSING is not None, reason=f"no convolutions in pairs: {MISSING}")


@pytest.fixture
def threads() -> Any:
    """Sets the thread count."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def operands(h: int, w: int, channels: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)
    return torch.randn(h, w, channels), weight, torch.randn(outputs)


def plain(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution in the operands' dtype, [h, w, O]."""
    return F.conv2d(image.permute(2, 0, 1)[None], weight, bias, padding=1)[0].permute(1, 2, 0)


SHAPES = [(1, 1, 32, 32), (5, 7, 64, 32), (9, 33, 32, 96), (17, 290, 64, 64), (8, 256, 96, 64)]


@on_amx
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("after", ["nothing", "relu", "add"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_nearly_those_of_float32(shape: tuple[int, int, int, int], after: str) -> None:
    given = operands(*shape)
    add = torch.randn(*shape[:2], shape[3]) if after == "add" else None
    got = _pairs.convolve(*given, add=add, rectify=after == "relu")
    exact = plain(*(v.double() for v in given))
    exact = exact + add if add is not None else exact.relu() if after == "relu" else exact
    assert got.isfinite().all(), "not every output was written"
    assert 1e-8 < rms(got - exact) / rms(exact) < 1e-5


@on_amx
def test_the_summand_may_be_overwritten() -> None:
    given = operands(11, 300, 64, 64)
    add = torch.randn(11, 300, 64)
    want = _pairs.convolve(*given, add=add)
    assert _pairs.convolve(*given, add=add, out=add) is add
    assert torch.equal(add, want)


@on_amx
def test_a_pixel_has_the_same_bits_however_the_image_is_cut(threads: Any) -> None:
    image, weight, bias = operands(23, 301, 64, 32)
    whole = _pairs.convolve(image, weight, bias)
    for y, x, h, w in ((0, 0, 23, 301), (3, 5, 9, 260), (10, 200, 13, 50)):
        part = _pairs.convolve(image[y : y + h, x : x + w].contiguous(), weight, bias)
        assert torch.equal(part[1:-1, 1:-1], whole[y : y + h, x : x + w][1:-1, 1:-1])
    for count in (1, 3, 7):
        threads(count)
        assert torch.equal(_pairs.convolve(image, weight, bias), whole)


@on_amx
def test_nan_and_infinity_reach_their_neighbours_alone() -> None:
    image, weight, bias = operands(9, 40, 32, 32)
    image[2, 3, 5] = float("nan")
    image[6, 30, 1] = float("inf")
    lost = _pairs.convolve(image, weight, bias).isfinite().logical_not().all(-1)
    want = torch.zeros(9, 40, dtype=torch.bool)
    want[1:4, 2:5] = want[5:8, 29:32] = True
    assert torch.equal(lost, want)


@on_amx
def test_other_operands_are_refused() -> None:
    image, weight, bias = operands(4, 5, 32, 32)
    for wrong in (image.double(), image.transpose(0, 1)):
        with pytest.raises(ValueError, match="contiguous float32"):
            _pairs.convolve(wrong, weight, bias)
    for given in ((image, weight[:, :16], bias), (image, weight, bias[:1])):
        with pytest.raises(ValueError, match="do not go together"):
            _pairs.convolve(*given)
    with pytest.raises(ValueError, match="do not go together"):
        _pairs.convolve(image, weight, bias, out=torch.empty(1, 1, 1))
    with pytest.raises(ValueError, match="no convolution of this set or shape"):
        _pairs.convolve(image, weight[:31], bias[:31])


@on_amx
@torch.inference_mode()
def test_the_encoder_by_them() -> None:
    encoder = EDSR(blocks=3).eval()
    x = torch.rand(2, 3, 37, 41) * 2 - 1
    got = encoder.in_pairs(x)
    assert got is not None
    exact = encoder.double()(x.double())
    assert rms(got - exact) < 1e-5 * rms(exact)


@on_amx
@torch.inference_mode()
def test_other_pictures_and_models_are_left_to_the_layers() -> None:
    encoder = EDSR(blocks=1).eval()
    x = torch.rand(1, 3, 9, 8)
    assert encoder.in_pairs(x) is not None
    assert encoder.in_pairs(x[:0]) is None
    assert encoder.in_pairs(x.double()) is None
    assert encoder.double().in_pairs(x) is None
    with torch.inference_mode(False):
        assert EDSR(blocks=1).in_pairs(torch.rand(1, 3, 9, 8)) is None, "it would have gradients"


class Wrapped(nn.Module):
    """Somebody's layer around others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


@on_amx
@torch.inference_mode()
def test_changed_layers_are_called() -> None:
    x = torch.rand(1, 3, 9, 8)
    encoder = EDSR(blocks=2).eval()
    encoder.register_module("body", Wrapped(encoder.body))
    assert encoder.in_pairs(x) is None
    encoder = EDSR(blocks=2).eval()
    encoder.body[0].get_submodule("body").register_module("1", nn.LeakyReLU())
    assert encoder.in_pairs(x) is None
    encoder = EDSR(blocks=2).eval()
    encoder.body[1].register_forward_hook(lambda *_: None)
    assert encoder.in_pairs(x) is None
    assert EDSR(channels=48, blocks=2).in_pairs(x) is None
    assert EDSR(blocks=2).in_pairs(x.to("meta")) is None


def test_precision_int8_encodes_so_and_fp32_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not to be had int8's features are float32's."""
    if int8.unavailable():
        monkeypatch.setenv("DIINN_FAST_CPU_ISA", int8.SLOW)
    lr = torch.rand(3, 20, 30)
    exact = Engine(precision="fp32", device="cpu").encode(lr)
    ours = Engine(precision="int8", device="cpu").encode(lr)
    assert rms(ours - exact) < 1e-5 * rms(exact)
    assert torch.equal(ours, exact) == (_pairs.unavailable() is not None)
    monkeypatch.setattr(_pairs, "unavailable", lambda: "none here")
    assert torch.equal(Engine(precision="int8", device="cpu").encode(lr), exact)


@on_amx
def test_an_autocast_around_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is computed nor whether the kernels pass their check."""
    upscaler = Upscaler(device="cpu", precision="int8")
    photo = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    want = upscaler(photo, scale=2)
    monkeypatch.setattr(_pairs, "_checked", [])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(upscaler(photo, scale=2), want)
        assert _pairs.unavailable() is None
    monkeypatch.setattr(_pairs, "_checked", [])
    torch.set_default_dtype(torch.float64)
    try:
        assert _pairs.unavailable() is None
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_was_encoded_otherwise_is_of_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    if int8.unavailable():
        monkeypatch.setenv("DIINN_FAST_CPU_ISA", int8.SLOW)
    engine = Engine(precision="int8", device="cpu")
    assert Engine(precision="fp32", device="cpu").rounding("cpu") == []
    for reason, want in ((None, ["digits", "pairs"]), ("none here", ["digits"])):
        monkeypatch.setattr(_pairs, "unavailable", lambda reason=reason: reason)
        assert engine.rounding("int8") == want


def test_kernels_that_give_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pairs, "_checked", [])
    monkeypatch.setattr(cpu, "bf16_instruction_set", lambda: _pairs.SET)
    monkeypatch.setattr(_pairs, "convolve", lambda image, *_, **__: image * 1.001)
    assert "differs from plain PyTorch" in (_pairs.unavailable() or "")
    monkeypatch.setattr(_pairs, "_checked", [])
    monkeypatch.setattr(cpu, "bf16_instruction_set", lambda: "avx512_bf16")
    assert "AMX" in (_pairs.unavailable() or "")
