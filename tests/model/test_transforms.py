"""PyTorch's transforms of a model: each is right, whatever the operator itself supports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from diinn_fast import DIINN
from diinn_fast.encoders import RDN
from tests.helpers.problems import make_decoder

SIZE = (9, 8)


@pytest.fixture(params=[1, 3, 4])
def model(request: pytest.FixtureRequest) -> DIINN:
    torch.manual_seed(0)
    net = DIINN(mode=request.param, encoder=RDN(channels=8, growth=4, blocks=2, convs=2))
    return net.double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 4, 5, dtype=torch.float64) - 0.5


def loss(model: DIINN, x: Tensor) -> Tensor:
    result: Tensor = model(x, SIZE).square().sum()
    return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("no_grad", [False, True])
def test_jvp_is_the_directional_derivative(
    model: DIINN, x: Tensor, frozen: bool, no_grad: bool
) -> None:
    model.requires_grad_(not frozen)
    direction = torch.randn_like(x)
    step = 1e-6
    want = (model(x + step * direction, SIZE) - model(x - step * direction, SIZE)) / (2 * step)
    with torch.set_grad_enabled(not no_grad):
        out, got = jvp(lambda v: model(v, SIZE), (x,), (direction,))[:2]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(out, model(x, SIZE))


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_differentiation(model: DIINN, x: Tensor, frozen: bool) -> None:
    model.requires_grad_(not frozen)
    direction = torch.randn_like(x)
    want = jvp(lambda v: model(v, SIZE), (x,), (direction,))[1]
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(x, direction), SIZE)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, want)


def test_forward_mode_of_the_parameters(model: DIINN, x: Tensor) -> None:
    names = dict(model.named_parameters())
    tangents = {name: torch.randn_like(p) for name, p in names.items()}
    got = jvp(lambda p: functional_call(model, p, (x, SIZE)), (names,), (tangents,))[1]
    gradient = torch.autograd.grad(model(x, SIZE).sum(), list(names.values()))
    want = sum((g * tangents[n]).sum() for g, n in zip(gradient, names, strict=True))
    torch.testing.assert_close(got.sum(), want)


def test_grad_vjp_and_jacrev(model: DIINN, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(model, leaf), leaf)
    torch.testing.assert_close(grad(lambda v: loss(model, v))(x), want)
    out, pull = vjp(lambda v: model(v, SIZE), x)[:2]
    torch.testing.assert_close(pull(2 * out)[0], want)
    jacobian = jacrev(lambda v: model(v, (3, 2)).mean(dim=(1, 2, 3)))(x)
    assert jacobian.shape == (2, *x.shape)


def test_gradients_of_each_sample(model: DIINN, x: Tensor) -> None:
    parameters = dict(model.named_parameters())

    def one(parameters: Any, image: Any) -> Any:
        return functional_call(model, parameters, (image[None], SIZE)).square().sum()

    got = vmap(grad(one), in_dims=(None, 0))(parameters, x)
    want = torch.autograd.grad(loss(model, x[1:]), model.decoder.K[1][0].weight)[0]
    torch.testing.assert_close(got["decoder.K.1.0.weight"][1], want)


@pytest.mark.parametrize("no_grad", [False, True])
def test_vmap_over_images_and_over_models(model: DIINN, x: Tensor, no_grad: bool) -> None:
    with torch.set_grad_enabled(not no_grad):
        want = model(x, SIZE)
        got = vmap(lambda image: model(image[None], SIZE)[0])(x)
        torch.testing.assert_close(got, want)
        stacked = {n: torch.stack([p, 2 * p]) for n, p in model.named_parameters()}
        both = vmap(lambda p: functional_call(model, p, (x, SIZE)))(stacked)
    torch.testing.assert_close(both[0], want)


def test_vmap_over_coordinates() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3).double()
    features = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    coords = torch.rand(4, 1, 7, 2, dtype=torch.float64)
    got = vmap(lambda c: decoder.sample(features, c, SIZE))(coords)
    for n in range(4):
        torch.testing.assert_close(got[n], decoder.sample(features, coords[n], SIZE))


def test_coordinates_have_a_gradient() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3).double()
    features = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    coords = (torch.rand(1, 7, 2, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c: decoder.sample(features, c, SIZE), (coords,), atol=1e-4
    )


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [SIZE, (3, 4)])
@pytest.mark.parametrize("backend", ["eager", "plain"])
def test_second_derivatives(mode: int, size: tuple[int, int], backend: str) -> None:
    """A gradient penalty, and gradgradcheck of both."""
    decoder = make_decoder(mode, width=16, channels=2, layers=3).double()
    features = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = decoder.K[1][0].weight

    def penalty(path: Any) -> Any:
        out = decoder(features, size, backend=path)
        (first,) = torch.autograd.grad(out.square().sum(), features, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [features, weight])

    for got, want in zip(penalty(backend), penalty("plain"), strict=True):
        torch.testing.assert_close(got, want)


def test_a_gradient_penalty_in_float32_by_the_default_backend() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    features = torch.rand(1, 8, 5, 6, requires_grad=True)
    penalties = []
    for backend in (None, "plain"):
        out = decoder(features, SIZE, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), features, create_graph=True)
        penalties.append(torch.autograd.grad(first.norm(), decoder.Q[1][0].weight)[0])
    torch.testing.assert_close(*penalties, rtol=1e-3, atol=1e-4)


def test_vectorised_jacobian() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3).double()
    features = torch.rand(1, 8, 3, 3, dtype=torch.float64)
    got, want = (
        torch.autograd.functional.jacobian(
            lambda f: decoder(f, (4, 4)).sum(dim=1), features, vectorize=vectorize
        )
        for vectorize in (True, False)
    )
    torch.testing.assert_close(got, want)


def test_meta_tensors_have_the_right_shape(model: DIINN, x: Tensor) -> None:
    out = model.to("meta")(x.to("meta"), SIZE)
    assert out.is_meta
    assert out.shape == (2, 3, *SIZE)


class AtFixedSize(nn.Module):
    def __init__(self, net: DIINN) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x, SIZE)
        return result


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_runs_at_another_input_size(model: DIINN, x: Tensor) -> None:
    traced = torch.jit.trace(AtFixedSize(model), (x,))
    torch.testing.assert_close(traced(x), model(x, SIZE))
    other = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(traced(other), model(other, SIZE))


class Doubling(nn.Module):
    def __init__(self, net: DIINN) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return result


def test_an_exported_program_serves_all_sizes() -> None:
    sides = {n: torch.export.Dim(name, min=2, max=512) for n, name in ((2, "h"), (3, "w"))}
    doubling = Doubling(DIINN(encoder=nn.Conv2d(3, 64, 1))).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 4, 5)
        program = torch.export.export(doubling, (x,), dynamic_shapes=(sides,))
        other = torch.rand(1, 3, 6, 3)
        torch.testing.assert_close(program.module()(other), doubling(other))
