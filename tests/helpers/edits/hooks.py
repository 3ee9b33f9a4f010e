"""Hooks on modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.edits.registry import Wrapped, convolutions, edit, grown

PLACES: dict[str, Callable[[Any], Any]] = {
    "K": lambda net: net.decoder.K[1],
    "a convolution of K": lambda net: net.decoder.K[2][0],
    "Q's activation": lambda net: net.decoder.Q[1][1],
    "the last layer": lambda net: net.decoder.last_layer,
    "the encoder": lambda net: net.encoder,
    "a block": lambda net: net.encoder.RDBs[0],
    "a block's steps": lambda net: net.encoder.RDBs[0].convs,
    "a dense step": lambda net: net.encoder.RDBs[0].convs[1],
    "a dense convolution": lambda net: grown(net)[0],
    "a dense activation": lambda net: grown(net)[1],
    "a fusion": lambda net: net.encoder.RDBs[1].LFF,
    "the global fusion": lambda net: net.encoder.GFF,
    "the global fusion's first layer": lambda net: net.encoder.GFF[0],
    "the global fusion's last layer": lambda net: net.encoder.GFF[1],
    "the second layer": lambda net: net.encoder.SFENet2,
}
HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "a hook on": lambda m: m.register_forward_hook(lambda m, x, y: 1.1 * y),
    "a hook with arguments on": lambda m: m.register_forward_hook(
        lambda m, x, kwargs, y: 0.9 * y, with_kwargs=True
    ),
    "a hook before": lambda m: m.register_forward_pre_hook(lambda m, x: (1.1 * x[0], *x[1:])),
}
BACKWARD_HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "a backward hook on": lambda m: m.register_full_backward_hook(
        lambda m, dx, dy: tuple(None if v is None else 3 * v for v in dx)
    ),
    "a hook before the backward of": lambda m: m.register_full_backward_pre_hook(
        lambda m, dy: tuple(3 * v for v in dy)
    ),
}


def hooked(net: Any, hook: Callable[[Any], object], find: Callable[[Any], Any]) -> None:
    hook(find(net))


for _what, _hook in (HOOKS | BACKWARD_HOOKS).items():
    for _place, _find in PLACES.items():
        edit(f"{_what} {_place}", silent=_what in BACKWARD_HOOKS)(
            partial(hooked, hook=_hook, find=_find)
        )


@edit("hooks that keep every layer's output", silent=True)
def _(net: Any) -> nn.Module:
    """Its output is what they kept, as it was when they saw it."""
    kept: dict[str, Tensor] = {}

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, size: Any) -> Tensor:
            out: Tensor = self.net(x, size)
            sums = [kept[name].double().sum() for name in sorted(kept)]
            if sums:
                out = out + 0 * torch.stack(sums).sum().to(out.dtype)
            return out

    for name, layer in net.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda m, x, y, name=name: kept.update({name: y}))
    watched = Watched()
    watched.kept = kept  # type: ignore[assignment]
    return watched


@edit("hooks on gradients of weights", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        weight: Any = layer.weight
        weight.register_hook(lambda grad: 2 * grad)


# -- other ways to register ------------------------------------------------------------------------


@edit("a hook that was removed again", silent=True)
def _(net: Any) -> None:
    for place in PLACES.values():
        place(net).register_forward_hook(lambda m, x, y: 2 * y).remove()


@edit("two hooks in order")
def _(net: Any) -> None:
    layer = net.decoder.K[1]
    layer.register_forward_hook(lambda m, x, y: y + 1)
    layer.register_forward_hook(lambda m, x, y: 2 * y, prepend=True)


@edit("a hook that is called even after errors")
def _(net: Any) -> None:
    net.encoder.RDBs[0].LFF.register_forward_hook(lambda m, x, y: 1.1 * y, always_call=True)


@edit("hooks on state_dict", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.register_state_dict_post_hook(lambda *args: None)
        layer.register_load_state_dict_post_hook(lambda *args: None)


@edit("a step of the optimizer as soon as a gradient is there", silent=True)
def _(net: Any) -> None:
    def step(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-0.01)

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step)


@edit("hooks on features and on the picture", silent=True)
def _(net: Any) -> nn.Module:
    def call(net: Any, x: torch.Tensor, size: Any) -> torch.Tensor:
        features = net.encoder(x)
        if features.requires_grad:
            features.register_hook(lambda grad: 2 * grad)
        out: torch.Tensor = net.decoder(features, size)
        if out.requires_grad:
            out.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))
        return out

    return Wrapped(net, call)


@edit("hooks with arguments by name before layers")
def _(net: Any) -> None:
    for place in ("K", "Q's activation", "a block", "a fusion", "the encoder"):
        PLACES[place](net).register_forward_pre_hook(
            lambda m, args, kwargs: ((1.1 * args[0], *args[1:]), kwargs), with_kwargs=True
        )


@edit("a hook that expects the decoder's published arguments", silent=True)
def _(net: Any) -> None:
    def hook(decoder: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
        assert len(args) in (2, 3) and not kwargs

    net.decoder.register_forward_hook(hook, with_kwargs=True)


@edit("backward hooks of the old kind", silent=True)
def _(net: Any) -> None:
    for place in ("a convolution of K", "a block", "a fusion"):
        PLACES[place](net).register_backward_hook(
            lambda m, dx, dy: tuple(None if v is None else 2 * v for v in dx)
        )


@edit("a hook that writes the weights of later layers")
def _(net: Any) -> None:
    def write(layer: nn.Module, args: Any) -> None:
        net.decoder.K[2][0].weight.data.mul_(1.1)

    net.encoder.register_forward_pre_hook(write)
    net.decoder.K[0].register_forward_pre_hook(write)


def louder_in_place(layer: nn.Module, args: Any, out: Tensor) -> None:
    out.data.mul_(1.1)


@edit("hooks that write what they see")
def _(net: Any) -> None:
    for place in ("a convolution of K", "a block", "the global fusion's first layer"):
        PLACES[place](net).register_forward_hook(louder_in_place)
