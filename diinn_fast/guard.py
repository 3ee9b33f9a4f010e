"""Whether calling a module's layers is the same as reading their values, as the fused paths do.

Users edit models: another activation, a hook, an adapter, a normalised weight, offloaded tensors.
The fused paths never call the layers, so that such an edit would have no effect, without a word.
These checks say why a layer must be called; they read dictionaries and cost about a microsecond per
module. Parametrizations (``torch.nn.utils.parametrize``) are no edit: reading evaluates them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.nn.modules import module as modules
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

log = logging.getLogger("diinn_fast")
_said: set[str] = set()
Kind = TypeVar("Kind", bound=type[nn.Module])

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
METHODS = ("forward", "_conv_forward", "__call__", "_call_impl")
LISTS = (nn.ModuleList, nn.Sequential)
"""Classes of lists of layers that give what they hold."""
ORDINARY = (nn.Parameter, Tensor, type(None))
"""Classes of weights and pictures of which PyTorch does not ask how to compute."""
TRACED = ("torch._subclasses.fake_tensor", "torch._subclasses.functional_tensor")
"""Modules of the classes that stand for ordinary tensors while a model is compiled."""

_as_built: list[tuple[Any, str, Any]] = [
    (owner, name, getattr(owner, name))
    for owner, names in ((F, ("conv2d", "relu")), (torch, ("relu", "sin")))
    for name in names
]
"""Functions and methods that layers consist of: owner, name, and what it was."""


def watched(kind: Kind) -> Kind:
    """A class of layers that the fused paths stand for: whoever patches it is noticed."""
    _as_built.extend((kind, name, getattr(kind, name)) for name in METHODS if hasattr(kind, name))
    return kind


for _kind in (nn.Sequential, nn.Conv2d, nn.ReLU):
    watched(_kind)


def layer_edit(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why this module must be called, though it was built as a ``kind``; None if it need not."""
    own = module.__dict__
    # A hook sees inputs and outputs that fused kernels never make.
    for hooks in HOOKS:
        if own.get(hooks):
            return "has hooks"
    for name in METHODS:
        if name in own:
            return f"has a {name} of its own"
    found = type(module)
    if found is not kind:
        if type_before_parametrizations(module) is not kind:
            same = found.__name__ == kind.__name__  # adapters are often called what they adapt
            name = f"{found.__module__}.{found.__name__}" if same else found.__name__
            return f"is a {name}, not a {kind.__name__}"
        # parametrize makes a class for each module, onto which others may put methods
        for name in METHODS:
            if name in vars(found):
                return f"has a class with a {name} of its own"
    # subclasses of tensors (quantised, distributed) compute in their own way
    for name in ("weight", "bias"):
        value = own["_parameters"].get(name, own.get(name))
        if type(value) not in ORDINARY:
            return f"has a {name} of class {type(value).__name__}"
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
    return _shape_edit(layer)


def _shape_edit(layer: nn.Conv2d) -> str | None:
    """Whether weight or bias has another shape than the layer says."""
    own = vars(layer)
    if changes := own["_modules"].get("parametrizations"):
        free = [step for each in changes.values() if each.unsafe for step in each]
        # PyTorch's own ones keep the shape, whatever they say
        if any(type(step).__module__ != parametrizations.__name__ for step in free):
            return "has a parametrization that may change shapes"
    weight = (layer.out_channels, layer.in_channels, *layer.kernel_size)
    for name, shape in (("weight", weight), ("bias", weight[:1])):
        places = (own["_parameters"], own["_buffers"], own)
        value = next((place[name] for place in places if name in place), None)
        if value is not None and value.shape != shape:
            return f"has a {name} of shape {tuple(value.shape)}"
    return None


def list_edit(layers: nn.Module) -> str | None:
    """Why a list of layers may give others than it holds, as one that drops some at random does."""
    kind = type(layers)
    return None if kind in LISTS else f"is a {kind.__module__}.{kind.__name__}"


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
    if isinstance(x, Proxy):  # first: it answers no question
        return "torch.fx records the layers"
    if functorch():
        return "a transform of torch.func is active"
    if _forward_mode():
        return "forward-mode differentiation is active"
    if torch.jit.is_tracing():
        return "torch.jit.trace is active"
    if x.is_meta:
        return "tensors on the meta device have no values"
    if own_class(x):
        return f"the picture is a {type(x).__name__}"
    return global_change()


def global_change() -> str | None:
    """What was done to PyTorch itself, for all modules and functions."""
    if modules._has_any_global_hook():
        return "hooks for all modules are registered"
    for owner, name, built in _as_built:
        if getattr(owner, name) is not built:
            return f"{owner.__name__}.{name} was replaced"
    if torch._C._len_torch_function_stack():
        for mode in _get_current_function_mode_stack():
            # that of torch.set_default_device changes no results
            if type(mode).__name__ != "DeviceContext":
                return f"the mode {type(mode).__name__} sees functions"
    if torch._C._len_torch_dispatch_stack():
        for mode in _get_current_dispatch_mode_stack():
            # those that compile have a key
            if getattr(mode, "_mode_key", None) is None:
                return f"the mode {type(mode).__name__} sees operators"
    return None


def own_class(x: Tensor) -> bool:
    """Whether ``x`` is of a class that may have its own way to compute."""
    return type(x) not in ORDINARY and type(x).__module__ not in TRACED


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


def say(what: str, reason: str) -> None:
    """One log line per reason: results are right, but slower than they could be."""
    note(f"{what} calls its layers one by one, which is slow: {reason}")


def note(line: str) -> None:
    """A warning in the log, the first time."""
    if line not in _said:
        _said.add(line)
        log.warning(line)


# torch.compile does not look into these: it calls them when it traces. What
# torch.compiler.assume_constant_result does, without importing the compiler.
for _function in (functorch, _forward_mode, global_change, say, note):
    vars(_function)["_dynamo_marked_constant"] = True
