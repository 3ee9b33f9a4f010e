"""Where edits are registered, and what many of them need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Edit = Callable[[Any], Any]
EDITS: dict[str, Edit] = {}
SILENT: set[str] = set()
"""Edits that leave the output as it was."""
ROUNDED: set[str] = set()
"""Edits after which both sides compute in 16 bit, each with roundings of its own."""


def edit(name: str, *, silent: bool = False, rounded: bool = False) -> Callable[[Edit], Edit]:
    def register(function: Edit) -> Edit:
        assert name not in EDITS, name
        EDITS[name] = function
        if silent:
            SILENT.add(name)
        if rounded:
            ROUNDED.add(name)
        return function

    return register


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def grown(net: Any, block: int = 1, step: int = 0) -> nn.Sequential:
    """(convolution, ReLU) of a dense block."""
    sequence: nn.Sequential = net.encoder.RDBs[block].convs[step].conv
    return sequence


def replaced(net: nn.Module, name: str, make: Callable[[Any], nn.Module]) -> None:
    """Put ``make(layer)`` in the place of the layer of that name."""
    net.set_submodule(name, make(net.get_submodule(name)))


class Wrapped(nn.Module):
    """A model whose call is another one."""

    def __init__(self, net: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.call = call

    def forward(self, x: Tensor, size: Any) -> Tensor:
        return self.call(self.net, x, size)


def called(name: str, *, silent: bool = False, rounded: bool = False) -> Callable[..., Any]:
    """Register a function (model, picture, size) that takes the place of the model's call."""

    def register(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        edit(name, silent=silent, rounded=rounded)(lambda net: Wrapped(net, call))
        return call

    return register
