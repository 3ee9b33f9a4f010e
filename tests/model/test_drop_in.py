"""Small things that the published class does and ours must do alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diinn_fast import DIINN, ImplicitDecoder
from diinn_fast.geometry import check_size
from tests.helpers.problems import MODES, make_decoder


@pytest.mark.parametrize("mode", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", [(9, 14), (3, 4)])
def test_any_number_of_output_channels(
    mode: int, channels: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diinn_fast.fused.STRIP_BYTES", 8000)
    decoder = make_decoder(mode, width=32, channels=8, layers=3)
    old = decoder.last_layer
    decoder.last_layer = nn.Conv2d(
        32, channels, old.kernel_size, padding=old.padding, padding_mode=old.padding_mode
    )
    assert decoder.edit() is None
    features = torch.randn(2, 8, 5, 6)
    want = decoder(features, size, backend="plain")
    torch.testing.assert_close(decoder(features, size), want, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(decoder(features, size), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_layers_without_bias(mode: int, init_q: bool) -> None:
    decoder = make_decoder(mode, init_q, width=32, channels=8, layers=3)
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
    features = torch.randn(1, 8, 5, 6)
    want = decoder(features, (9, 14), backend="plain")
    torch.testing.assert_close(decoder(features, (9, 14)), want, rtol=1e-4, atol=1e-5)
    decoder(features, (9, 14)).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager", "plain"])
def test_a_batch_of_no_images(grad: bool, backend: str) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    with torch.set_grad_enabled(grad):
        assert decoder(torch.randn(0, 8, 5, 6), (9, 14), backend=backend).shape == (0, 3, 9, 14)


@pytest.mark.parametrize("init_q", [False, True])
def test_the_same_seed_gives_the_weights_of_the_published_class(init_q: bool) -> None:
    """It makes K_i and Q_i in turn, then the last layer."""
    torch.manual_seed(123)
    expected = {}
    if init_q:
        expected["first_layer.0.weight"] = nn.Conv2d(3, 72, 1).weight
    for n in range(3):
        expected[f"K.{n}.0.weight"] = nn.Conv2d(32 + 72 if n else 72, 32, 1).weight
        inputs = 32 if n else 72 if init_q else 3
        expected[f"Q.{n}.0.weight"] = nn.Conv2d(inputs, 32, 1).weight
    expected["last_layer.weight"] = nn.Conv2d(32, 3, 1).weight
    torch.manual_seed(123)
    state = ImplicitDecoder(8, [32] * 3, mode=3, init_q=init_q).state_dict()
    for name, weight in expected.items():
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_gradients_have_the_strides_of_their_parameters(mode: int, init_q: bool) -> None:
    """Distributed training warns and copies otherwise."""
    decoder = make_decoder(mode, init_q, width=32, channels=8, layers=3)
    decoder(torch.randn(1, 8, 5, 6), (9, 14)).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("value", [7, 7.0, 6.9997, torch.tensor(7), torch.tensor(7.0001)])
def test_sizes_near_an_integer_are_that_integer(value: float | Tensor) -> None:
    assert check_size((value, 9), (3, 3)) == (7, 9)


@pytest.mark.parametrize("n", [7, 13, 26, 435, 16411, 65521])
def test_the_size_of_a_cell_is_the_size_it_came_from(n: int) -> None:
    cell = torch.tensor([2 / n, 2 / n])
    assert check_size(2 / cell, (3, 3)) == (n, n)


@pytest.mark.parametrize("value", [6.7, 7.002, float("nan"), float("inf"), torch.tensor(6.5)])
def test_other_sizes_are_refused_and_never_cut(value: float | Tensor) -> None:
    with pytest.raises(ValueError, match="whole number of pixels"):
        check_size((value, 9), (3, 3))
    with pytest.raises(ValueError, match="whole number of pixels"):
        DIINN(encoder=nn.Conv2d(3, 64, 1))(torch.zeros(1, 3, 3, 3), (9, value))


@pytest.mark.long
@pytest.mark.parametrize("grad", [False, True])
def test_two_graphs_serve_images_of_all_sizes(grad: bool) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    decoder = make_decoder(3, width=32, channels=8, layers=3)
    compiled = torch.compile(decoder, backend=count, fullgraph=True)
    sizes = [((5, 6), (9, 14)), ((7, 8), (20, 21)), ((6, 5), (12, 11)), ((10, 7), (31, 9))]
    with torch.set_grad_enabled(grad):
        for lr, size in sizes:
            features = torch.randn(1, 8, *lr)
            assert torch.equal(compiled(features, size), decoder(features, size))
    assert len(graphs) <= 2
