"""Layers exchanged for others."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.helpers import published
from tests.helpers.edits.registry import Wrapped, convolutions, edit, grown, replaced
from tests.helpers.published import WIDTH


class FastSine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x)


class Gated(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.gate = nn.Parameter(torch.tensor(0.7))

    def forward(self, *args: Any) -> Tensor:
        out: Tensor = self.gate * self.layer(*args)
        return out


EXCHANGED: dict[str, tuple[str, Callable[[Any], nn.Module]]] = {
    "GELU in K": ("decoder.K.1.1", lambda _: nn.GELU()),
    "ELU in K": ("decoder.K.0.1", lambda _: nn.ELU()),
    "PReLU in K": ("decoder.K.3.1", lambda _: nn.PReLU(WIDTH)),
    "no activation in K": ("decoder.K.2.1", lambda _: nn.Identity()),
    "a faster sine in Q": ("decoder.Q.0.1", lambda _: FastSine()),
    "no activation in the last Q": ("decoder.Q.3.1", lambda _: nn.Identity()),
    "Tanh in a dense block": ("encoder.RDBs.0.convs.1.conv.1", lambda _: nn.Tanh()),
    "LeakyReLU in a dense block": ("encoder.RDBs.1.convs.0.conv.1", lambda _: nn.LeakyReLU()),
    "an identity for a block": ("encoder.RDBs.1", lambda _: nn.Identity()),
    "a gated block": ("encoder.RDBs.0", Gated),
    "a gated fusion": ("encoder.RDBs.0.LFF", Gated),
    "a gated step": ("encoder.RDBs.0.convs.1", Gated),
    "a gated global fusion": ("encoder.GFF.0", Gated),
    "a gated last layer of the encoder": ("encoder.GFF.1", Gated),
    "a gated first layer": ("encoder.SFENet1", Gated),
    "an encoder of one convolution": ("encoder", lambda _: nn.Conv2d(3, 8, 3, padding=1)),
    "a gated encoder": ("encoder", Gated),
    "a gated convolution in K": ("decoder.K.1.0", Gated),
    "a gated layer K": ("decoder.K.2", Gated),
    "one convolution for a layer K": ("decoder.K.2", lambda layer: layer[0]),
    "one output channel": ("decoder.last_layer", lambda last: last_with(last, channels=1)),
    "seven output channels": ("decoder.last_layer", lambda last: last_with(last, channels=7)),
    "a last layer without bias": ("decoder.last_layer", lambda last: last_with(last, bias=False)),
    "a last layer and Tanh": ("decoder.last_layer", lambda last: nn.Sequential(last, nn.Tanh())),
    "a 3x3 last layer": ("decoder.last_layer", lambda _: nn.Conv2d(WIDTH, 3, 3, padding=1)),
    "a 3x3 layer in K": ("decoder.K.0.0", lambda k: nn.Conv2d(k.in_channels, WIDTH, 3, padding=1)),
    "a grouped convolution": ("decoder.Q.1.0", lambda q: nn.Conv2d(WIDTH, WIDTH, 1, groups=4)),
    "a modulation of one channel": ("decoder.K.3.0", lambda k: nn.Conv2d(k.in_channels, 1, 1)),
    "a synthesis of one channel": ("decoder.Q.3.0", lambda q: nn.Conv2d(WIDTH, 1, 1)),
    "a strided convolution": ("decoder.last_layer", lambda _: nn.Conv2d(WIDTH, 3, 1, stride=2)),
    "a dilated dense convolution": (
        "encoder.RDBs.0.convs.0.conv.0",
        lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=2, dilation=2),
    ),
    "a dense convolution that reflects": (
        "encoder.RDBs.0.convs.1.conv.0",
        lambda conv: nn.Conv2d(
            conv.in_channels, conv.out_channels, 3, padding=1, padding_mode="reflect"
        ),
    ),
    "padding by name": (
        "encoder.RDBs.0.convs.1.conv.0",
        lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding="same"),
    ),
    "a dense convolution of 5x5": (
        "encoder.RDBs.1.convs.1.conv.0",
        lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 5, padding=2),
    ),
    "a dense convolution of one channel": (
        "encoder.RDBs.1",
        lambda block: with_narrow_step(block),
    ),
    "a fusion of 3x3": (
        "encoder.RDBs.1.LFF",
        lambda fusion: nn.Conv2d(fusion.in_channels, fusion.out_channels, 3, padding=1),
    ),
    "a fusion to one channel": (
        "encoder.RDBs.1.LFF", lambda fusion: nn.Conv2d(fusion.in_channels, 1, 1)
    ),
    "a global fusion to one channel": (
        "encoder.GFF", lambda gff: nn.Sequential(nn.Conv2d(16, 1, 1), nn.Conv2d(1, 8, 3, padding=1))
    ),
}  # fmt: skip
for _name, (_where, _make) in EXCHANGED.items():
    edit(_name)(partial(replaced, name=_where, make=_make))


def last_with(last: nn.Conv2d, channels: int = 3, bias: bool = True) -> nn.Conv2d:
    """The last layer with another number of channels, or without bias."""
    kernel = last.kernel_size[0]
    mode = last.padding_mode
    return nn.Conv2d(WIDTH, channels, kernel, padding=kernel // 2, bias=bias, padding_mode=mode)


def with_narrow_step(block: Any) -> nn.Module:
    """Its last step grows by one channel, as channel pruning does."""
    old = block.convs[-1].conv[0]
    block.convs[-1].conv[0] = nn.Conv2d(old.in_channels, 1, 3, padding=1)
    block.LFF = nn.Conv2d(old.in_channels + 1, block.LFF.out_channels, 1)
    return block  # type: ignore[no-any-return]


@edit("layers without bias")
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.bias = None


@edit("a module more in K and in a dense block")
def _(net: Any) -> None:
    net.decoder.K[1].append(nn.Hardtanh(0, 0.1))
    grown(net).append(nn.Hardtanh(0, 0.1))


@edit("dropout")
def _(net: Any) -> None:
    """In the decoder: encoders run in another memory format, in which random numbers fall
    elsewhere.
    """
    net.decoder.K[1].append(nn.Dropout(0.5))


@edit("batch normalisation")
def _(net: Any) -> None:
    net.decoder.K[0].insert(1, nn.BatchNorm2d(WIDTH))
    grown(net).insert(1, nn.BatchNorm2d(4))


@edit("group normalisation of the whole image")
def _(net: Any) -> None:
    net.decoder.Q[1].insert(1, nn.GroupNorm(8, WIDTH))


@edit("a layer more in the decoder")
def _(net: Any) -> None:
    net.decoder.K.append(copy.deepcopy(net.decoder.K[3]))
    net.decoder.Q.append(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Tanh()))


@edit("a layer less in the decoder")
def _(net: Any) -> None:
    del net.decoder.K[3]
    del net.decoder.Q[3]


@edit("a block more in the encoder")
def _(net: Any) -> None:
    net.encoder.RDBs.append(copy.deepcopy(net.encoder.RDBs[0]))
    net.encoder.GFF[0] = nn.Conv2d(24, 8, 1)


@edit("blocks in another order")
def _(net: Any) -> None:
    net.encoder.RDBs = nn.ModuleList(reversed(net.encoder.RDBs))


@edit("a Sequential for a ModuleList", silent=True)
def _(net: Any) -> None:
    net.decoder.K = nn.Sequential(*net.decoder.K)
    net.encoder.RDBs = nn.Sequential(*net.encoder.RDBs)


@edit("pictures of four channels")
def _(net: Any) -> nn.Module:
    net.encoder.SFENet1 = nn.Conv2d(4, 8, 3, padding=1)

    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, size: Any) -> Tensor:
            out: Tensor = self.net(torch.cat([x, x[:, :1]], dim=1), size)
            return out

    return Four()


# -- layers of other kinds, by libraries and by hand -----------------------------------------------


class LearntSine(nn.Module):
    """A sine whose frequency is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


class ChannelAttention(nn.Module):
    """Squeeze and excitation: looks at the whole image."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.gates = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        gates: Tensor = self.gates(out.mean(dim=(2, 3), keepdim=True))
        return out * gates


OTHERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an activation in place in K": ("decoder.K.1.1", lambda _: nn.ReLU(inplace=True)),
    "an activation in place in a dense block": (
        "encoder.RDBs.0.convs.1.conv.1", lambda _: nn.ReLU(inplace=True)
    ),
    "a sine of a learnt frequency": ("decoder.Q.2.1", lambda _: LearntSine()),
    "a lazy convolution": ("decoder.Q.1.0", lambda _: nn.LazyConv2d(WIDTH, 1)),
    "a lazy dense convolution": (
        "encoder.RDBs.0.convs.0.conv.0", lambda _: nn.LazyConv2d(4, 3, padding=1)
    ),
    "a transposed convolution": ("decoder.Q.2.0", lambda _: nn.ConvTranspose2d(WIDTH, WIDTH, 1)),
    "attention of a block": ("encoder.RDBs.0.LFF", lambda fusion: ChannelAttention(fusion, 8)),
    "attention of K": ("decoder.K.1", lambda layer: ChannelAttention(layer, WIDTH)),
    "instance normalisation of K": (
        "decoder.K.1", lambda layer: nn.Sequential(*layer, nn.InstanceNorm2d(WIDTH))
    ),
    "layers by name": (
        "decoder.K.1", lambda k: nn.Sequential(OrderedDict(convolution=k[0], activation=k[1]))
    ),
    "the published sine": ("decoder.Q.1.1", lambda _: published.Sine()),
    "checkpointed layers": ("decoder.K.1", checkpoint_wrapper),
    "checkpointed blocks": ("encoder.RDBs.1", checkpoint_wrapper),
    "scripted layers": ("decoder.K.1", torch.jit.script),
    "a scripted convolution": ("encoder.RDBs.1.convs.0.conv.0", torch.jit.script),
    "an identity in a dense block": ("encoder.RDBs.0.convs.0", lambda _: nn.Identity()),
    "a convolution that wraps around": (
        "encoder.RDBs.1.convs.0.conv.0",
        lambda conv: nn.Conv2d(
            conv.in_channels, conv.out_channels, 3, padding=1, padding_mode="circular"
        ),
    ),
    "nothing for an activation": ("decoder.K.1.1", lambda _: None),
}  # fmt: skip
UNCHANGED = ("in place", "by name", "published", "checkpointed", "scripted")
for _name, (_where, _make) in OTHERS.items():
    edit(_name, silent=any(word in _name for word in UNCHANGED))(
        partial(replaced, name=_where, make=_make)
    )


class Container(nn.Module):
    """The layers of a model in a class that calls them itself."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.head = nn.Sequential(net.encoder.SFENet1, net.encoder.SFENet2, *net.encoder.RDBs)
        self.modulation = net.decoder.K[0]
        self.synthesis = net.decoder.Q[1]
        self.last = net.decoder.last_layer

    def forward(self, x: Tensor, size: Any) -> Tensor:
        features = F.interpolate(self.head(x), size, mode="nearest-exact")
        content = F.unfold(features, 3, padding=1).view(len(x), -1, *size)
        out: Tensor = self.last(self.synthesis(self.modulation(content)))
        return out


@edit("layers in a class of one's own")
def _(net: Any) -> nn.Module:
    return Container(net)


@edit("encoder and decoder in a class of one's own")
def _(net: Any) -> nn.Module:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict({"enc": net.encoder, "dec": net.decoder})
            self.tail = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor, size: Any) -> Tensor:
            out: Tensor = self.tail(self.body["dec"](self.body["enc"](x), size))
            return out

    return Other()


@edit("a residual picture")
def _(net: Any) -> nn.Module:
    def call(net: Any, x: Tensor, size: Any) -> Tensor:
        out: Tensor = net(x, size) + F.interpolate(x, size, mode="bilinear")
        return out

    return Wrapped(net, call)


@edit("observers of static quantization", silent=True)
def _(net: Any) -> Any:
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    return torch.ao.quantization.prepare(net.eval())


@edit("quantization-aware training")
def _(net: Any) -> Any:
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(net.train()).eval()
