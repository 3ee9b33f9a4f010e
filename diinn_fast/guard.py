"""Whether calling a module's layers is the same as reading their values, as the fused paths do.

Users edit models: another activation, a hook, an adapter, a normalised weight, offloaded tensors.
The fused paths never call the layers, so that such an edit would have no effect, without a word.
These checks say why a layer must be called; they read dictionaries and cost about a microsecond per
module. Parametrizations (``torch.nn.utils.parametrize``) are no edit: reading evaluates them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules
from torch.nn.utils.parametrize import type_before_parametrizations

log = logging.getLogger("diinn_fast")
_said: set[str] = set()

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OWN_METHODS = ("forward", "_conv_forward", "__call__")
FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    kind: kind.forward for kind in (nn.Sequential, nn.Conv2d, nn.ReLU)
}
"""PyTorch's methods, to notice a class that was patched."""


def layer_edit(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why this module must be called, though it was built as a ``kind``; None if it need not."""
    own = module.__dict__
    # A hook sees inputs and outputs that fused kernels never make.
    for hooks in HOOKS:
        if own.get(hooks):
            return "has hooks"
    for name in OWN_METHODS:
        if name in own:
            return f"has a {name} of its own"
    found = type(module)
    if found is not kind and type_before_parametrizations(module) is not kind:
        return f"is a {found.__name__}, not a {kind.__name__}"
    if FORWARDS.get(kind, kind.forward) is not kind.forward:
        return f"is of a patched class {kind.__name__}"
    # Subclasses of tensors (quantised, distributed) compute in their own way.
    for value in own["_parameters"].values():
        if value is not None and type(value) not in (nn.Parameter, Tensor):
            return f"has weights of class {type(value).__name__}"
    return None


def convolution_edit(
    layer: nn.Module,
    inputs: int | None = None,
    outputs: int | None = None,
    kernel: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
) -> str | None:
    """`layer_edit` of a convolution of stride 1 that was built with these arguments (``inputs`` or
    ``outputs`` None: any number).
    """
    if reason := layer_edit(layer, nn.Conv2d):
        return reason
    assert isinstance(layer, nn.Conv2d)
    built = ((kernel, kernel), (padding, padding), padding_mode)
    if (layer.kernel_size, layer.padding, layer.padding_mode) != built:
        return f"is another convolution: {layer}"
    if layer.in_channels != (inputs or layer.in_channels):
        return f"is another convolution: {layer}"
    if layer.out_channels != (outputs or layer.out_channels):
        return f"is another convolution: {layer}"
    if layer.stride != (1, 1) or layer.dilation != (1, 1) or layer.groups != 1:
        return f"is another convolution: {layer}"
    return None


def sequence_edit(
    sequence: nn.Module, checks: tuple[Callable[[nn.Module], str | None], ...]
) -> str | None:
    """`layer_edit` of a Sequential whose members must pass these checks, one each."""
    if reason := layer_edit(sequence, nn.Sequential):
        return reason
    members = list(sequence._modules.values())
    if len(members) != len(checks):
        return f"has {len(members)} modules, not {len(checks)}"
    for n, (member, check) in enumerate(zip(members, checks, strict=True)):
        if member is None:
            return "has an empty place"
        if reason := check(member):
            return f"[{n}] {reason}"
    return None


def transform(x: Tensor) -> str | None:
    """Why layers must be called on ``x`` whatever they are: what PyTorch is doing at the moment
    sees through modules and built-in operators, but not through ours.
    """
    if functorch():
        return "a transform of torch.func is active"
    if _forward_mode():
        return "forward-mode differentiation is active"
    if torch.jit.is_tracing():
        return "torch.jit.trace is active"
    if x.is_meta:
        return "tensors on the meta device have no values"
    if _global_hooks():
        return "hooks for all modules are registered"
    return None


def functorch() -> bool:
    """Whether a transform of ``torch.func`` is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def batched(x: Tensor) -> bool:
    """Whether ``x`` stands for several tensors, of ``vmap`` or of many gradients at once."""
    return functorch() or _legacy_batch(x)


def _legacy_batch(x: Tensor) -> bool:
    return bool(torch._C._functorch.is_legacy_batchedtensor(x))


def _forward_mode() -> bool:
    return forward_ad._current_level >= 0


def _global_hooks() -> bool:
    return bool(modules._has_any_global_hook())


def say(what: str, reason: str) -> None:
    """One log line per reason: results are right, but slower than they could be."""
    if reason not in _said:
        _said.add(reason)
        log.warning("%s calls its layers one by one, which is slow: %s", what, reason)


# torch.compile does not look into these: it calls them when it traces. What
# torch.compiler.assume_constant_result does, without importing the compiler.
for _function in (functorch, _forward_mode, _global_hooks, say):
    vars(_function)["_dynamo_marked_constant"] = True
