"""How much the GPU backends give the CPU to do: small problems, and training, are bound by it.

Launches are counted, not made: no GPU is needed, and no kernel runs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.launches import Kernel, Launches, zero_product

from diinn_fast.backends import _cuda_gradient, _gradients
from diinn_fast.geometry import Window
from diinn_fast.problem import Problem

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
