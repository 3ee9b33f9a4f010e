"""Classes, methods and attributes of layers that are not as built."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.edits.registry import Wrapped, convolutions, edit, grown
from tests.helpers.published import WIDTH


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * super().forward(x)


class DoubledInside(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = super()._conv_forward(x, weight, bias)
        return 1.1 * out


class Called(nn.Conv2d):
    def __call__(self, *args: Any) -> Any:
        return 1.1 * super().__call__(*args)


SOME = (
    "decoder.K.1.0", "decoder.Q.3.0", "decoder.last_layer",
    "encoder.RDBs.0.convs.1.conv.0", "encoder.RDBs.1.LFF", "encoder.GFF.0", "encoder.GFF.1",
)  # fmt: skip
"""Convolutions that are edited by those edits below."""


def of_class(net: nn.Module, kind: type[nn.Conv2d]) -> None:
    for name in SOME:
        net.get_submodule(name).__class__ = kind


for _kind in (Doubled, DoubledInside, Called):
    edit(f"convolutions of class {_kind.__name__}")(partial(of_class, kind=_kind))


@edit("a forward of its own, in each of some convolutions")
def _(net: Any) -> None:
    for name in SOME:
        layer = net.get_submodule(name)
        layer.forward = types.MethodType(
            lambda self, x: 1.1 * self._conv_forward(x, self.weight, self.bias), layer
        )


@edit("a _call_impl of its own, in layers and containers")
def _(net: Any) -> None:
    for name in (*SOME, "decoder.K.2", "decoder.Q.0.1", "encoder.RDBs.1"):
        layer = net.get_submodule(name)
        call = layer._call_impl
        layer._call_impl = lambda *args, call=call, **kwargs: 1.1 * call(*args, **kwargs)


@edit("a forward of its own, in containers")
def _(net: Any) -> None:
    for layer in (net.decoder.K[1], net.encoder.RDBs[1], net.encoder.RDBs[0].convs):
        forward = layer.forward
        layer.forward = lambda x, forward=forward: 1.1 * forward(x)


@edit("a forward of its own, in encoder and decoder")
def _(net: Any) -> None:
    encode, decode = net.encoder.forward, net.decoder.forward
    net.encoder.forward = lambda x: 1.1 * encode(x)
    net.decoder.forward = lambda *args, **kwargs: 1.1 * decode(*args, **kwargs)


@edit("a subclass of the model")
def _(net: Any) -> nn.Module:
    kind = type(net)

    def forward(self: Any, x: Tensor, size: Any) -> Tensor:
        out: Tensor = kind.forward(self, x, size)
        return out.clamp(-0.1, 0.1)

    net.__class__ = type("Clamped", (kind,), {"forward": forward})
    return net  # type: ignore[no-any-return]


@edit("tensors that are no parameters, as hypernetworks make them")
def _(net: Any) -> None:
    for name in SOME:
        layer = net.get_submodule(name)
        weight = layer.weight
        del layer.weight
        layer.weight = 1.1 * weight.detach()


@edit("weights that are functions of others, as hypernetworks make them")
def _(net: Any) -> nn.Module:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.factors = nn.Parameter(torch.full((len(SOME),), 1.1))
            self.bases = [net.get_submodule(name).weight.detach() for name in SOME]
            net.requires_grad_(False)
            for name in SOME:
                del net.get_submodule(name).weight

        def forward(self, x: Tensor, size: Any) -> Tensor:
            for n, name in enumerate(SOME):
                base = self.bases[n].to(x.dtype)
                self.net.get_submodule(name).weight = self.factors[n] * base
            out: Tensor = self.net(x, size)
            return out

    return Hyper()


@edit("weights loaded for a layer's call alone", silent=True)
def _(net: Any) -> None:
    """What offloading to the CPU or to a disk does."""
    net.requires_grad_(False)
    for layer in convolutions(net):
        values = dict(layer.named_parameters())
        for name, value in values.items():
            setattr(layer, name, nn.Parameter(value.to("meta"), requires_grad=False))
        forward = layer.forward

        def loaded(
            x: Tensor,
            layer: nn.Conv2d = layer,
            values: dict[str, Any] = values,
            forward: Any = forward,
        ) -> Tensor:
            here = {name: value.to(x.dtype) for name, value in values.items()}
            for name, value in here.items():
                setattr(layer, name, nn.Parameter(value, requires_grad=False))
            out: Tensor = forward(x)
            for name, value in here.items():
                setattr(layer, name, nn.Parameter(value.to("meta"), requires_grad=False))
            return out

        layer.forward = loaded  # type: ignore[assignment]


# -- attributes and tensors that are not as built --------------------------------------------------


ATTRIBUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "padding": ("encoder.RDBs.0.convs.1.conv.0", {"padding": (2, 2), "dilation": (2, 2)}),
    "padding_mode": (
        "encoder.RDBs.0.convs.1.conv.0",
        {"padding_mode": "replicate", "_reversed_padding_repeated_twice": [1, 1, 1, 1]},
    ),
    "stride": ("decoder.last_layer", {"stride": (2, 2)}),
}
for _name, (_where, _values) in ATTRIBUTES.items():

    def _set(net: Any, where: str = _where, values: dict[str, Any] = _values) -> None:
        vars(net.get_submodule(where)).update(values)

    edit(f"{_name} set afterwards")(_set)


def set_weight(layer: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    """Other values, perhaps of another shape, in a layer whose attributes stay."""
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())


@edit("a last layer cut to one channel")
def _(net: Any) -> None:
    last = net.decoder.last_layer
    set_weight(last, last.weight[:1], last.bias[:1])


@edit("a modulation cut to one channel")
def _(net: Any) -> None:
    layer = net.decoder.K[3][0]
    set_weight(layer, layer.weight[:1], layer.bias[:1])


@edit("a synthesis cut to one channel")
def _(net: Any) -> None:
    layer = net.decoder.Q[3][0]
    set_weight(layer, layer.weight[:1], layer.bias[:1])


@edit("a fusion cut to one channel")
def _(net: Any) -> None:
    layer = net.encoder.RDBs[1].LFF
    set_weight(layer, layer.weight[:1], layer.bias[:1])


@edit("a global fusion cut to one channel")
def _(net: Any) -> None:
    layer = net.encoder.GFF[1]
    set_weight(layer, layer.weight[:1], layer.bias[:1])


@edit("a dense convolution cut to its centre")
def _(net: Any) -> None:
    layer: Any = grown(net)[0]
    set_weight(layer, layer.weight[:, :, 1:2, 1:2])
    layer.padding = (0, 0)


@edit("a dense convolution cut to its centre, padding left")
def _(net: Any) -> None:
    layer = grown(net)[0]
    set_weight(layer, layer.weight[:, :, 1:2, 1:2])


@edit("a decoder pruned to fewer channels")
def _(net: Any) -> None:
    """As structured pruning leaves it: weights are cut, attributes are not."""
    k, q, after = net.decoder.K[2][0], net.decoder.Q[2][0], net.decoder.Q[3][0]
    half = WIDTH // 2
    set_weight(k, k.weight[:half], k.bias[:half])
    set_weight(q, q.weight[:half], q.bias[:half])
    set_weight(after, after.weight[:, :half])
    following = net.decoder.K[3][0]
    if net.decoder.mode == 1:
        set_weight(following, following.weight[:, :half])
    else:
        kept = torch.cat([following.weight[:, :half], following.weight[:, WIDTH:]], dim=1)
        set_weight(following, kept)


@edit("weights in buffers")
def _(net: Any) -> None:
    for name in SOME:
        layer = net.get_submodule(name)
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", 1.1 * weight)


@edit("a weight that a property computes")
def _(net: Any) -> None:
    def weight(self: Any) -> Tensor:
        return 1.1 * self.base  # type: ignore[no-any-return]

    kind = type("Computed", (nn.Conv2d,), {"weight": property(weight)})
    for name in SOME:
        layer = net.get_submodule(name)
        layer.base = nn.Parameter(layer.weight.detach())
        del layer.weight
        layer.__class__ = kind


@edit("modules put into convolutions", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.add_module("adapter", nn.Linear(2, 2))


@edit("a compiled layer", silent=True)
def _(net: Any) -> None:
    net.decoder.K[1].compile(backend="eager")


@edit("a layer of another dtype")
def _(net: Any) -> nn.Module:
    def call(net: Any, x: Tensor, size: Any) -> Tensor:
        other = torch.float32 if x.dtype == torch.float64 else torch.float64
        net.decoder.last_layer.to(other)
        out: Tensor = net(x, size)
        return out

    return Wrapped(net, call)


@edit("an encoder layer of another dtype")
def _(net: Any) -> nn.Module:
    def call(net: Any, x: Tensor, size: Any) -> Tensor:
        other = torch.float32 if x.dtype == torch.float64 else torch.float64
        net.encoder.RDBs[1].LFF.to(other)
        out: Tensor = net(x, size)
        return out

    return Wrapped(net, call)
