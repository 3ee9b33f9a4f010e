"""The ComfyUI node, called as ComfyUI calls it: images are [B, H, W, 3] in [0, 1]."""

from __future__ import annotations

import pytest
import torch

import diinn_fast
from examples import comfyui
from tests.helpers.known_models import random_model, save


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(random_model(), tmp_path_factory.mktemp("weights")))


def call(image: torch.Tensor, weights: str, **options: float) -> torch.Tensor:
    """The node's function with what its inputs have by default, as ComfyUI finds them."""
    node = comfyui.NODE_CLASS_MAPPINGS["DIINNUpscale"]
    inputs = node.INPUT_TYPES()["required"]
    default = {name: kind[1]["default"] for name, kind in inputs.items() if len(kind) > 1}
    arguments = {**default, "weights": weights, **options, "image": image}
    (found,) = getattr(node(), node.FUNCTION)(**arguments)
    result: torch.Tensor = found
    return result


def test_every_image_of_a_batch_is_enlarged_by_the_factor(weights: str) -> None:
    image = torch.rand(2, 5, 7, 3)
    found = call(image, weights, factor=2.5)
    assert found.shape == (2, 13, 18, 3)
    assert found.is_contiguous()
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    for n in range(2):
        alone = diinn_fast.upscale(image[n].movedim(-1, 0), scale=2.5, model=weights)
        assert torch.equal(found[n].movedim(-1, 0), alone)


def test_a_size_may_be_given_by_one_side(weights: str) -> None:
    image = torch.rand(1, 4, 8, 3)
    assert call(image, weights, width=20).shape == (1, 10, 20, 3)
    assert call(image, weights, height=12).shape == (1, 12, 24, 3)
    assert call(image, weights, width=9, height=11).shape == (1, 11, 9, 3)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_are_kept(weights: str, channels: int) -> None:
    image = torch.rand(2, 5, 7, channels)
    found = call(image, weights, factor=2.0)
    assert found.shape == (2, 10, 14, channels)
    alone = diinn_fast.upscale(image[1].numpy(), scale=2, model=weights)
    assert torch.equal(found[1], torch.from_numpy(alone))


def test_values_beyond_the_range_are_cut_off(weights: str) -> None:
    image = torch.rand(1, 5, 7, 3) * 1.5 - 0.25
    assert torch.equal(call(image, weights), call(image.clamp(0, 1), weights))
