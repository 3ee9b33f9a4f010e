"""How much the GPU backends give the CPU to do: small problems, and training, are bound by it.

Launches are counted, not made: no GPU is needed, and no kernel runs.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from diinn_fast import ImplicitDecoder, fused
from diinn_fast.backends import _cuda, _cuda_gradient, _gradients, cuda
from diinn_fast.geometry import Window
from diinn_fast.inference.upscaler import Upscaler
from diinn_fast.packing import Packing, pack
from diinn_fast.problem import Problem
from tests.helpers.launches import Kernel, Launches, zero_product
from tests.helpers.small_models import small_model

H = 256
BATCH = 16
MOST = 40
"""Launches of a training step, an image of 48x48 x4: at some 4 microseconds each less than what the
GPU needs for the image."""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def training_step(form: str) -> tuple[Problem, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Problem, gradient, source and weights of a batch; the numbers are not looked at."""
    half = torch.float16
    source = torch.empty(1, dtype=half).expand(BATCH, 48, 48, 4 * H)
    grad = torch.empty(1, dtype=half).expand(BATCH, 3, 192, 192)
    rows = 2 * H if form == "content" else H
    weights = [torch.empty(H, 3), torch.empty(H), torch.empty(3, rows, H, dtype=half)]
    weights += [torch.empty(3, H), torch.empty(3, H, dtype=half), torch.empty(3)]
    size = (192, 192)
    window = Window(0, 192, 0, 192)
    problem = Problem(
        form, 3 if form == "content" else 1, (48, 48), (0, 0), size, window, None, None, 0
    )
    return problem, grad, source, weights


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Launches:
    found = Launches()
    product = partial(zero_product, found)
    for module in (_gradients, _cuda_gradient):
        monkeypatch.setattr(module, "product", product)
    return found


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_cuda_training_step(form: str, counted: Launches) -> None:
    problem, grad, source, weights = training_step(form)

    def launch(name: str, arguments: Any, *_: object) -> None:
        # Weights are packed; the forward, or the chain through the layers and the content's sums.
        counted.launch(name, 2 if name == "diinn_forward" else 3)

    with counted:
        _cuda_gradient.backward(problem, grad, source, weights, [True] * 7, launch)
    assert counted.total <= MOST * BATCH, counted.counts


@needs_triton
@pytest.mark.parametrize("form", ["content", "modulation"])
def test_triton_training_step(
    form: str, counted: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diinn_fast.kernels import gradient, launch

    monkeypatch.setattr(gradient, "product", partial(zero_product, counted))
    for name in ("split", "step_back", "sum_queries"):
        monkeypatch.setattr(gradient, name, Kernel(name, counted))
    monkeypatch.setattr(launch, "projected", Kernel("projected", counted))
    problem, grad, source, weights = training_step(form)
    with counted:
        gradient.backward(problem, grad, source, weights, [True] * 7)
    assert counted.total <= MOST * BATCH, counted.counts


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_small_images_share_a_slab(form: str, counted: Launches) -> None:
    """A batch of small images costs the launches of few slabs, not of as many as there are
    images.
    """
    problem, grad, source, weights = training_step(form)
    small = replace(problem, window=Window(0, 64, 0, 64))
    slabs = []
    with counted:
        _cuda_gradient.backward(
            small, grad[..., :64, :64], source, weights, [True] * 7, lambda *a: slabs.append(a[0])
        )
    assert slabs == ["diinn_forward", "diinn_gradient"]


def cuda_decode(
    features: torch.Tensor, monkeypatch: pytest.MonkeyPatch, prepared: bool = False
) -> Launches:
    """What a decode x2 starts through the backend ``cuda``, its kernels stubbed; ``prepared``: as
    of every window of a render but the first.
    """
    decoder = ImplicitDecoder(64, mode=3).half()
    counted = Launches()

    def launch(name: str, arguments: Any, *_: object) -> None:
        counted.launch(name, 2)  # the weights are packed first

    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(cuda, "unsupported", cuda._unsuited)
    monkeypatch.setattr(cuda, "_distrusted", lambda *_: None)
    monkeypatch.setattr(cuda, "_architecture", lambda source: "90a")
    monkeypatch.setattr(cuda, "_launch", launch)
    monkeypatch.setattr(fused, "_cut_to_the_bit", lambda *_: False)  # as on a GPU
    size = (2 * features.shape[-2], 2 * features.shape[-1])
    with torch.no_grad():
        path = decoder.prepare(features, backend="cuda")
        if prepared:
            decoder(features, size, prepared=path)
        counted.counts.clear()
        with counted:
            decoder(features, size, prepared=path)
    return counted


def test_a_small_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights H wide, content weights, memory format, convolution, the operator, two launches."""
    counted = cuda_decode(torch.zeros(1, 64, 48, 48, dtype=torch.float16), monkeypatch)
    assert counted.total <= 7, counted.counts


def test_a_small_decode_of_a_render(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are there: memory format, convolution, the operator, two launches."""
    features = torch.zeros(1, 64, 48, 48, dtype=torch.float16)
    counted = cuda_decode(features, monkeypatch, prepared=True)
    assert counted.total <= 5, counted.counts


def test_a_render_packs_the_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each of its strips; the next picture, which may find other weights, does it again."""
    calls = []

    def counted(*given: Any) -> Packing:
        calls.append(given)
        return pack(*given)

    monkeypatch.setattr(fused, "pack", counted)
    engine = Upscaler(small_model())
    for count in (1, 2):
        strips = list(engine.strips(torch.rand(3, 6, 5), (18, 15), rows=4))
        assert len(strips) == 5 and len(calls) == count


def test_what_was_prepared_has_no_gradients() -> None:
    decoder = ImplicitDecoder(4, [32] * 3, mode=3)
    features = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        path = decoder.prepare(features)
        assert torch.equal(decoder(features, (7, 7), prepared=path), decoder(features, (7, 7)))
    with pytest.raises(ValueError, match="no_grad"):
        decoder(features, (7, 7), prepared=path)


def test_bands_share_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each further band: padding, memory format, convolution, two launches, and its copy into
    the output.
    """
    features = torch.zeros(1, 64, 48, 48, dtype=torch.float16)
    whole = cuda_decode(features, monkeypatch)
    row_bytes = 48 * 4 * H * 4 // 2
    monkeypatch.setattr(fused, "STRIP_BYTES", 24 * row_bytes)
    strips = cuda_decode(features, monkeypatch)
    count = strips.counts["convolution"]
    assert count == 4
    extra = strips.counts - whole.counts
    expected = {"diinn_forward": 2, "convolution": 1, "clone": 1, "decode": 1}
    own = {"constant_pad_nd": count, "copy_": count}
    assert extra == Counter({k: n * (count - 1) for k, n in expected.items()} | own)


@pytest.mark.parametrize("asked", ["", "portable"])
def test_the_portable_kernel_can_be_asked_for(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_architecture", lambda source: "90a")
    monkeypatch.setenv("DIINN_FAST_CUDA_KERNEL", asked)
    assert cuda._kernel(torch.empty(0)) == (_cuda.PORTABLE if asked else _cuda.HOPPER)
