"""Parameters that are shared, replaced, written or frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.helpers.edits.registry import Edit, Wrapped, convolutions, edit


@edit("tied weights")
def _(net: Any) -> None:
    net.decoder.Q[2][0].weight = net.decoder.Q[1][0].weight
    net.decoder.K[2][0].weight = net.decoder.K[1][0].weight
    net.encoder.RDBs[1].LFF.weight = net.encoder.RDBs[0].LFF.weight


@edit("tied layers")
def _(net: Any) -> None:
    net.decoder.Q[3] = net.decoder.Q[2] = net.decoder.Q[1]
    net.decoder.K[3] = net.decoder.K[1]
    net.encoder.RDBs[1] = net.encoder.RDBs[0]


@edit("new parameters")
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.weight = nn.Parameter(1.1 * layer.weight.detach())


@edit("parameters written in place")
def _(net: Any) -> None:
    net(torch.zeros(1, 3, 5, 6), (9, 13))  # whatever is kept of it must not be used again
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.data.mul_(1.1)
            parameter.add_(0.01)


@edit("weights of odd strides", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)


@edit("parameters that are views of one buffer", silent=True)
def _(net: Any) -> None:
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    nn.utils.vector_to_parameters(flat, net.parameters())


@edit("initialised by apply")
def _(net: Any) -> None:
    def initialise(layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain=0.5)

    net.apply(initialise)


def frozen(*names: str) -> Edit:
    def freeze(net: Any) -> None:
        for name in names:
            net.get_submodule(name).requires_grad_(False)

    return freeze


for _names in (
    ("encoder",), ("decoder",), ("decoder.K",), ("decoder.Q", "decoder.last_layer"),
    ("encoder.RDBs.0", "decoder.K.1"), ("encoder.RDBs.1.LFF", "encoder.RDBs.0.convs.0"),
):  # fmt: skip
    edit("frozen: " + ", ".join(_names), silent=True)(frozen(*_names))


@edit("frozen biases", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        assert layer.bias is not None
        layer.bias.requires_grad_(False)


@edit("another mode of the same tensors")
def _(net: Any) -> None:
    net.decoder.mode = {3: 2, 2: 3}.get(net.decoder.mode, net.decoder.mode)


# -- other ways to write and to share --------------------------------------------------------------


@edit("weights expanded from one number")
def _(net: Any) -> None:
    for layer in (net.decoder.K[1][0], net.encoder.RDBs[0].LFF):
        layer.weight.data = torch.full((1, 1, 1, 1), 0.01).expand(layer.weight.shape)


@edit("weights that share storage with others", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        twice = torch.stack([layer.weight.data, layer.weight.data], dim=-1)
        layer.weight.data = twice[..., 1]


@edit("swapped tensors", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        torch.utils.swap_tensors(layer.weight, nn.Parameter(layer.weight.detach().clone()))


@edit("parameters assigned by state_dict in another dtype")
def _(net: Any) -> None:
    state = {name: 1.1 * value.to(torch.float64) for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


@edit("written in inference mode")
def _(net: Any) -> None:
    with torch.inference_mode():
        for parameter in net.parameters():
            parameter.mul_(1.1)


@edit("sparse weights")
def _(net: Any) -> None:
    layer = net.decoder.K[1][0]
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())


@edit("parts trained in turn", silent=True)
def _(net: Any) -> nn.Module:
    turn = [0]

    def call(net: Any, x: Any, size: Any) -> Any:
        turn[0] += 1
        net.encoder.requires_grad_(turn[0] % 2 == 0)
        net.decoder.requires_grad_(turn[0] % 2 == 1)
        return net(x, size)

    return Wrapped(net, call)
