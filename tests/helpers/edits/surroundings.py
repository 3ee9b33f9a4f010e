"""What is around a call: modes of PyTorch, patched functions and classes, hooks for all modules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.edits.registry import Wrapped, called, edit

# -- patched functions and classes -----------------------------------------------------------------


@contextmanager
def patched(owner: Any, name: str, change: Callable[..., Any]) -> Iterator[None]:
    """``owner.name`` is ``change(what it was)`` for a while."""
    old = getattr(owner, name)
    own = name in vars(owner)
    setattr(owner, name, change(old))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


def louder(old: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, 1.1 times its result."""
    return lambda *args, **kwargs: 1.1 * old(*args, **kwargs)


PATCHED: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "F.conv2d": lambda net: (F, "conv2d"),
    "F.relu": lambda net: (F, "relu"),
    "torch.relu": lambda net: (torch, "relu"),
    "torch.sin": lambda net: (torch, "sin"),
    "forward of Conv2d": lambda net: (nn.Conv2d, "forward"),
    "_conv_forward of Conv2d": lambda net: (nn.Conv2d, "_conv_forward"),
    "__call__ of Conv2d": lambda net: (nn.Conv2d, "__call__"),
    "__call__ of all modules": lambda net: (nn.Module, "__call__"),
    "_call_impl of all modules": lambda net: (nn.Module, "_call_impl"),
    "forward of ReLU": lambda net: (nn.ReLU, "forward"),
    "forward of Sequential": lambda net: (nn.Sequential, "forward"),
    "forward of the sine": lambda net: (type(net.decoder.Q[0][1]), "forward"),
    "forward of dense steps": lambda net: (type(net.encoder.RDBs[0].convs[0]), "forward"),
    "forward of blocks": lambda net: (type(net.encoder.RDBs[0]), "forward"),
    "forward of the decoder": lambda net: (type(net.decoder), "forward"),
}
for _name, _find in PATCHED.items():

    @called(f"patched: {_name}")
    def _(net: Any, x: Tensor, size: Any, find: Any = _find) -> Tensor:
        owner, name = find(net)
        with patched(owner, name, louder):
            out: Tensor = net(x, size)
        return out


# -- hooks for all modules -------------------------------------------------------------------------

FOR_ALL: dict[str, Callable[[], Any]] = {
    "a hook": lambda: modules.register_module_forward_hook(lambda m, x, y: 1.01 * y),
    "a hook before": lambda: modules.register_module_forward_pre_hook(
        lambda m, x: (1.01 * x[0], *x[1:]) if x and torch.is_tensor(x[0]) else None
    ),
    "a backward hook": lambda: modules.register_module_full_backward_hook(
        lambda m, dx, dy: tuple(None if v is None else 1.1 * v for v in dx)
    ),
    "a hook before the backward": lambda: modules.register_module_full_backward_pre_hook(
        lambda m, dy: tuple(1.1 * v for v in dy)
    ),
}
for _name, _register in FOR_ALL.items():

    @called(f"{_name} for all convolutions", silent="backward" in _name)
    def _(net: Any, x: Tensor, size: Any, register: Any = _register) -> Tensor:
        hook = register()
        try:
            out: Tensor = net(x, size)
        finally:
            hook.remove()
        return out


# -- modes of PyTorch ------------------------------------------------------------------------------


class LouderFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 1.1 * out if func in (F.conv2d, torch.sin) else out


class LouderOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 1.1 * out if func is torch.ops.aten.sin.default else out


MODES: dict[str, Callable[[], Any]] = {
    "a mode for functions": LouderFunctions,
    "a mode for operators": LouderOperators,
    "a default device": lambda: torch.device("cpu"),
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast that is off": lambda: torch.autocast("cpu", torch.bfloat16, enabled=False),
    "a module of PyTorch's profiler": lambda: torch.profiler.profile(with_modules=True),
    "saved tensors as they are": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda v: v, lambda v: v
    ),
    "no multithreaded backward": lambda: torch.autograd.set_multithreading_enabled(False),
}
for _name, _mode in MODES.items():

    @called(
        f"under {_name}",
        silent="for" not in _name.split(),
        rounded="autocast to" in _name,
    )
    def _(net: Any, x: Tensor, size: Any, mode: Any = _mode) -> Tensor:
        with mode():
            out: Tensor = net(x, size)
        return out.to(x.dtype)


@called("a decoder without autocast under autocast", silent=True, rounded=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features = net.encoder(x)
        with torch.autocast("cpu", enabled=False):
            out: Tensor = net.decoder(features.to(x.dtype), size)
    return out


@called("an encoder without autocast under autocast", silent=True, rounded=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            features = net.encoder(x)
        out: Tensor = net.decoder(features, size)
    return out.to(x.dtype)


@called("deterministic algorithms", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    torch.use_deterministic_algorithms(True)
    try:
        out: Tensor = net(x, size)
    finally:
        torch.use_deterministic_algorithms(False)
    return out


@called("another default dtype", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        out: Tensor = net(x, size)
    finally:
        torch.set_default_dtype(old)
    return out


@called("another thread", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    found: list[Tensor] = []
    grad = torch.is_grad_enabled()  # a thread of its own begins with gradients

    def call() -> None:
        with torch.set_grad_enabled(grad):
            found.append(net(x, size))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found[0]


@edit("a call in inference mode before", silent=True)
def _(net: Any) -> nn.Module:
    def call(net: Any, x: Tensor, size: Any) -> Tensor:
        with torch.inference_mode():
            net(x.detach(), size)
        out: Tensor = net(x, size)
        return out

    return Wrapped(net, call)


@called("gradients asked for in inference mode", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    with torch.inference_mode(), torch.enable_grad():
        net(x.detach(), size)
    out: Tensor = net(x, size)
    return out


# -- tensors that are more than tensors ------------------------------------------------------------


class Louder(Tensor):
    """Its convolutions give 1.1 times as much."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        parent: Any = super()
        out = parent.__torch_function__(func, types, args, kwargs or {})
        return 1.1 * out if func in (F.conv2d, torch.sin) else out


@called("a picture of a class of its own")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(x.as_subclass(Louder), size)
    return out.as_subclass(Tensor)


@called("features of a class of their own")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net.decoder(net.encoder(x).as_subclass(Louder), size)
    return out.as_subclass(Tensor)


@edit("weights of a class of their own")
def _(net: Any) -> None:
    for layer in (net.decoder.K[1][0], net.encoder.RDBs[0].LFF):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Louder))


@edit("attributes of a class of their own")
def _(net: Any) -> None:
    for layer in (net.decoder.K[1][0], net.encoder.RDBs[0].LFF):
        weight = layer.weight.detach()
        del layer.weight
        layer.weight = weight.as_subclass(Louder)
