"""Lists of layers, decoders and encoders that are not as built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.edits.layers import Gated
from tests.helpers.edits.registry import edit
from tests.helpers.published import WIDTH, PublishedDecoder


class Drawn(nn.ModuleList):
    """Leaves out layers at random, as LayerDrop does; at the first look none of them."""

    def __iter__(self) -> Iterator[nn.Module]:
        drawn = torch.rand(len(self)).tolist()
        layers = list(super().__iter__())
        return iter([nn.Identity() if p < 0.9 else m for p, m in zip(drawn, layers, strict=True)])


@edit("a list that leaves out blocks at random")
def _(net: Any) -> None:
    net.encoder.RDBs = Drawn(net.encoder.RDBs)


@edit("random layers after lists that draw")
def _(net: Any) -> None:
    """Whoever looks into the lists once more draws other numbers for what follows."""
    net.decoder.K = Drawn(net.decoder.K)
    net.decoder.Q = Drawn(net.decoder.Q)
    net.decoder.K[1].append(nn.Dropout(0.5))


@edit("a list that gives other layers than it holds")
def _(net: Any) -> None:
    class Repeated(nn.ModuleList):
        def __getitem__(self, n: Any) -> Any:
            return super().__getitem__(1 if n == 2 else n)

    net.decoder.K = Repeated(net.decoder.K)


@edit("sequences of a class of their own")
def _(net: Any) -> None:
    class Louder(nn.Sequential):
        def forward(self, x: Any) -> Any:
            parent: Any = super()
            return 1.1 * parent.forward(x)

    for sequence in (net.decoder.K[2], net.encoder.RDBs[0].convs, net.encoder.GFF):
        sequence.__class__ = Louder


# -- decoders and encoders in the built one's place ------------------------------------------------


@edit("a decoder of the published class")
def _(net: Any) -> None:
    net.decoder = PublishedDecoder(8, WIDTH, 3, False).to(net.decoder.last_layer.weight.dtype)


@edit("a gated decoder")
def _(net: Any) -> None:
    net.decoder = Gated(net.decoder)


@edit("a decoder of a subclass with the published arguments")
def _(net: Any) -> None:
    kind = type(net.decoder)

    def forward(self: Any, features: Tensor, size: Any, bsize: int | None = None) -> Any:
        return 1.1 * kind.forward(self, features, size, bsize)

    net.decoder.__class__ = type("Louder", (kind,), {"forward": forward})


def recorded(net: Any) -> Any:
    """The encoder as torch.fx records it."""
    return torch.fx.symbolic_trace(net.encoder)


@edit("an encoder recorded by torch.fx", silent=True)
def _(net: Any) -> None:
    net.encoder = recorded(net)


@edit("an encoder recorded by torch.fx and changed")
def _(net: Any) -> None:
    encoder = recorded(net)
    found = 0
    for node in encoder.graph.nodes:
        if node.op == "call_module" and isinstance(encoder.get_submodule(node.target), nn.ReLU):
            node.op = "call_function"
            node.target = torch.tanh
            found += 1
    assert found == 4
    encoder.recompile()
    net.encoder = encoder


@edit("layers recorded by torch.fx", silent=True)
def _(net: Any) -> None:
    net.decoder.K[1] = torch.fx.symbolic_trace(net.decoder.K[1])
    net.encoder.RDBs[0] = torch.fx.symbolic_trace(net.encoder.RDBs[0])
