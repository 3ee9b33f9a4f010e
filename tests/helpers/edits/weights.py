"""Adapters, and weights that are normalised, pruned or scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

from tests.helpers.edits.registry import convolutions, edit, replaced


class LowRank(nn.Module):
    """A frozen convolution and a trained one of low rank, as adapter libraries make them."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Conv2d(
            base.in_channels, 2, base.kernel_size, padding=base.padding, bias=False
        )  # fmt: skip
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def adapted(net: nn.Module, starts: str) -> None:
    names = [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and name.startswith(starts)
    ]
    for name in names:
        replaced(net, name, LowRank)


@edit("low-rank adapters of the decoder")
def _(net: Any) -> None:
    net.requires_grad_(False)
    adapted(net, "decoder.")


@edit("low-rank adapters of the dense blocks")
def _(net: Any) -> None:
    adapted(net, "encoder.RDBs.")


@edit("low-rank adapters of the other encoder layers")
def _(net: Any) -> None:
    adapted(net, "encoder.GFF.")
    adapted(net, "encoder.SFENet")


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.1 * weight


class Half(nn.Module):
    """DropConnect: another mask at each evaluation."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5, training=True)


WEIGHTS: dict[str, Callable[[nn.Conv2d], Any]] = {
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "pruned weights": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned channels": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
    "pruned biases": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "weights pruned for good": lambda layer: prune.remove(
        prune.l1_unstructured(layer, "weight", 0.5), "weight"
    ),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "scaled weights": lambda layer: parametrize.register_parametrization(layer, "weight", Scaled()),
    "scaled biases": lambda layer: parametrize.register_parametrization(layer, "bias", Scaled()),
}
for _name, _apply in WEIGHTS.items():

    def _normalise(net: Any, apply: Callable[[nn.Conv2d], Any] = _apply) -> None:
        for layer in convolutions(net):
            apply(layer)

    edit(_name, silent="weight_norm" in _name)(_normalise)


@edit("DropConnect of a layer")
def _(net: Any) -> None:
    parametrize.register_parametrization(net.decoder.K[1][0], "weight", Half())


@edit("parametrizations removed again", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        parametrizations.weight_norm(layer)
        parametrize.remove_parametrizations(layer, "weight")


# -- other ways to compute weights -----------------------------------------------------------------


class Rounded(nn.Module):
    """Weights as 16 bit would keep them, trained straight through."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.bfloat16().to(weight.dtype) - weight).detach()


class FirstChannel(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight[:1]


def on(names: tuple[str, ...], apply: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(net: Any) -> None:
        for name in names:
            apply(net.get_submodule(name))

    return change


INNER = ("decoder.K.1.0", "decoder.Q.2.0", "encoder.RDBs.0.convs.1.conv.0", "encoder.RDBs.1.LFF")
MORE: dict[str, Callable[[nn.Conv2d], Any]] = {
    "weights as 16 bit": lambda layer: parametrize.register_parametrization(
        layer, "weight", Rounded()
    ),
    "weight_norm by input channel": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "old weight_norm removed again": lambda layer: remove_weight_norm(weight_norm(layer)),
    "randomly pruned weights": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "weights of a mask": lambda layer: prune.custom_from_mask(
        layer, "weight", torch.ones_like(layer.weight).triu_()
    ),
}
for _name, _apply in MORE.items():
    edit(_name, silent="weight_norm" in _name)(on(INNER, _apply))


@edit("orthogonal kernels")
def _(net: Any) -> None:
    for step in (0, 1):
        parametrizations.orthogonal(net.encoder.RDBs[step].convs[1].conv[0])


@edit("a parametrization to one channel")
def _(net: Any) -> None:
    layer = net.decoder.K[3][0]
    parametrize.register_parametrization(layer, "weight", FirstChannel(), unsafe=True)
    layer.bias = nn.Parameter(layer.bias[:1].detach())


@edit("weights pruned over all layers")
def _(net: Any) -> None:
    layers = [(layer, "weight") for layer in convolutions(net)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.3)


@edit("low-rank adapters merged again")
def _(net: Any) -> None:
    for name in INNER:
        layer = net.get_submodule(name)
        rank = 0.1 * torch.randn(len(layer.weight), 2, dtype=layer.weight.dtype)
        update = rank @ torch.randn(2, layer.weight[0].numel(), dtype=layer.weight.dtype)
        with torch.no_grad():
            layer.weight += update.view_as(layer.weight)


# -- parametrizations that count, draw, or change shapes -------------------------------------------


class Counting(nn.Module):
    """Another value at each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.count: Tensor

    def forward(self, value: Tensor) -> Tensor:
        self.count += 1
        return value * (1 + 0.005 * self.count)


@edit("parametrizations that count their evaluations")
def _(net: Any) -> None:
    for layer in convolutions(net):
        for name in ("weight", "bias"):
            parametrize.register_parametrization(layer, name, Counting())


@edit("several parametrizations of a weight")
def _(net: Any) -> None:
    for name in INNER:
        layer = net.get_submodule(name)
        parametrizations.weight_norm(layer)
        parametrize.register_parametrization(layer, "weight", Scaled())
        parametrize.register_parametrization(layer, "weight", Counting())


@edit("a method put onto a class that parametrize made")
def _(net: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return 1.1 * nn.Conv2d.forward(self, x)

    for name in INNER:
        layer = net.get_submodule(name)
        parametrizations.weight_norm(layer)
        type(layer).forward = forward


class Number(nn.Module):
    """The first of many numbers."""

    def forward(self, value: Tensor) -> Tensor:
        return value[:1]


for _where in (*INNER, "encoder.GFF.0", "decoder.last_layer"):

    @edit(f"a bias of one number: {_where}")
    def _(net: Any, where: str = _where) -> None:
        """PyTorch refuses it."""
        layer = net.get_submodule(where)
        layer.bias = nn.Parameter(layer.bias.detach()[:1])

    @edit(f"a bias parametrized to one number: {_where}")
    def _(net: Any, where: str = _where) -> None:
        parametrize.register_parametrization(
            net.get_submodule(where), "bias", Number(), unsafe=True
        )


@edit("a last layer parametrized to six channels")
def _(net: Any) -> None:
    class Twice(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return torch.cat([value, value])

    for name in ("weight", "bias"):
        parametrize.register_parametrization(net.decoder.last_layer, name, Twice(), unsafe=True)
