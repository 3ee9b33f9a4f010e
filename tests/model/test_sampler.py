"""Points: a size for each image of a batch, chunks of one projection, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diinn_fast import ImplicitDecoder
from tests.helpers.problems import make_decoder

SIZES = [(9, 14), (20, 21), (9, 14)]


@pytest.fixture(params=[(1, False), (3, False), (2, True)])
def decoder(request: pytest.FixtureRequest) -> ImplicitDecoder:
    mode, init_q = request.param
    return make_decoder(mode, init_q, width=32, channels=8, layers=3)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, 8, 5, 6)


@pytest.mark.parametrize("form", [list, torch.tensor, np.array])
@pytest.mark.parametrize("count", [7, 200])  # directly, and from projected features
def test_a_size_for_each_image(
    decoder: ImplicitDecoder, features: Tensor, form: str, count: int
) -> None:
    coords = torch.rand(3, count, 2) * 2 - 1
    got = decoder.sample(features, coords, form(SIZES))
    for n, size in enumerate(SIZES):
        one = decoder.sample(features[n : n + 1], coords[n : n + 1], size)
        assert torch.equal(got[n : n + 1], one)


def test_pixels_of_a_size_for_each_image_are_those_of_forward(
    decoder: ImplicitDecoder, features: Tensor
) -> None:
    yx = torch.stack([torch.randint(0, n, (3, 40)) for n in (9, 14)], dim=-1)
    got = decoder.sample_pixels(features, yx, SIZES)
    for n, size in enumerate(SIZES):
        whole = decoder(features[n : n + 1], size)[0]
        want = whole[:, yx[n, :, 0], yx[n, :, 1]].t()
        torch.testing.assert_close(got[n], want, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_size_for_each_image(decoder: ImplicitDecoder, features: Tensor) -> None:
    coords = torch.rand(3, 40, 2) * 2 - 1
    parameters = list(decoder.parameters())
    got = torch.autograd.grad(decoder.sample(features, coords, SIZES).square().sum(), parameters)
    parts = [
        decoder.sample(features[n : n + 1], coords[n : n + 1], size).square().sum()
        for n, size in enumerate(SIZES)
    ]
    for a, b in zip(got, torch.autograd.grad(sum(parts), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_chunks_of_one_projection_are_the_whole(decoder: ImplicitDecoder, features: Tensor) -> None:
    coords = torch.rand(3, 200, 2) * 2 - 1
    with torch.no_grad():
        sampler = decoder.sampler(features)
        parts = [sampler(part, (9, 14)) for part in coords.split(30, dim=1)]
        whole = decoder.sample(features, coords, (9, 14))
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_features_are_projected_once(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    calls = []
    sampler = decoder.sampler(features)
    monkeypatch.setattr("diinn_fast.fused.Fused.project", lambda *a: calls.append(a))
    for _ in range(3):
        sampler(torch.rand(3, 10, 2), (9, 14))
    assert not calls


@pytest.mark.parametrize("yx", [[-1, 0], [0, -1], [9, 0], [0, 14]])
def test_pixels_outside_the_image_are_refused(
    decoder: ImplicitDecoder, features: Tensor, yx: list[int]
) -> None:
    points = torch.tensor(yx).expand(3, 1, 2)
    with pytest.raises(IndexError, match="inside the output"):
        decoder.sample_pixels(features, points, (9, 14))


def test_a_list_of_sizes_must_be_one_for_each_image(
    decoder: ImplicitDecoder, features: Tensor
) -> None:
    with pytest.raises(ValueError, match="one for each of 3 images"):
        decoder.sample(features, torch.rand(3, 4, 2), SIZES[:2])
