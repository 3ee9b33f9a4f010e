"""The model copied, stored, wrapped, or called in another way."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tests.helpers.edits.registry import Edit, Wrapped, called, edit


def pickled(net: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(net))


def saved(net: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded_state(net: nn.Module, assign: bool) -> None:
    state = {name: 1.1 * value for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=assign)


def averaged(net: nn.Module, **kwargs: Any) -> nn.Module:
    average = AveragedModel(net, **kwargs)
    average.update_parameters(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.9)
    average.update_parameters(net)
    return average


def on_meta_and_back(net: nn.Module) -> nn.Module:
    state = net.state_dict()
    net.to("meta").to_empty(device="cpu").load_state_dict(state)
    return net


def by_function(net: nn.Module, x: Tensor, size: Any) -> Tensor:
    values = {name: 1.1 * value for name, value in net.named_parameters()}
    return functional_call(net, values, (x, size))  # type: ignore[no-any-return]


def by_function_in_part(net: nn.Module, x: Tensor, size: Any) -> Tensor:
    name = "decoder.K.1.0.weight"
    value = dict(net.named_parameters())[name]
    return functional_call(net, {name: 2 * value}, (x, size))  # type: ignore[no-any-return]


@edit("shared memory", silent=True)
def _(net: Any) -> None:
    net.share_memory()


WHOLE: dict[str, Edit] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "torch.save of the model": saved,
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
    "meta and back": on_meta_and_back,
    "evaluation": lambda net: net.eval(),
    "DataParallel": nn.DataParallel,
    "quantize_dynamic": lambda net: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}),
    "modules registered beside": lambda net: net.register_module("aux", nn.Linear(2, 2)),
    "buffers registered beside": lambda net: net.decoder.register_buffer("sub", torch.ones(1)),
    "checkpointing": lambda net: Wrapped(
        net, lambda net, x, size: checkpoint(net, x, size, use_reentrant=False)
    ),
    "checkpointing of the encoder": lambda net: Wrapped(
        net, lambda net, x, size: net.decoder(checkpoint(net.encoder, x, use_reentrant=False), size)
    ),
    "parametrizations cached": lambda net: Wrapped(net, cached),
    "saved tensors on the CPU": lambda net: Wrapped(net, saved_on_cpu),
    "anomaly mode": lambda net: Wrapped(net, anomalous),
    "queries at a time": lambda net: Wrapped(net, lambda net, x, size: net(x, size, 70)),
}
for _name, _apply in WHOLE.items():
    edit(_name, silent=True)(_apply)


def cached(net: nn.Module, x: Tensor, size: Any) -> Tensor:
    with parametrize.cached():
        out: Tensor = net(x, size)
    return out


def saved_on_cpu(net: nn.Module, x: Tensor, size: Any) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        out: Tensor = net(x, size)
    return out


def anomalous(net: nn.Module, x: Tensor, size: Any) -> Tensor:
    with torch.autograd.detect_anomaly(check_nan=False):
        out: Tensor = net(x, size)
    return out


CHANGED: dict[str, Edit] = {
    "load_state_dict": lambda net: loaded_state(net, assign=False),
    "load_state_dict by assignment": lambda net: loaded_state(net, assign=True),
    "averaged weights": averaged,
    "exponential moving average": lambda net: averaged(
        net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
    ),
    "functional_call": lambda net: Wrapped(net, by_function),
    "functional_call of one weight": lambda net: Wrapped(net, by_function_in_part),
    "the encoder detached": lambda net: Wrapped(
        net, lambda net, x, size: net.decoder(net.encoder(x).detach(), size)
    ),
    "self-ensemble": lambda net: Wrapped(
        net, lambda net, x, size: (net(x, size) + net(x.flip(-1), size).flip(-1)) / 2
    ),
    "gradient clipping of activations": lambda net: Wrapped(
        net, lambda net, x, size: net.decoder(net.encoder(x).clamp(-0.1, 0.1), size)
    ),
}
for _name, _apply in CHANGED.items():
    edit(_name, silent="detached" in _name)(_apply)


# -- pictures, features and gradients of other kinds -----------------------------------------------

GIVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "in channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "of odd strides": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "that is every other pixel": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "that is turned": lambda x: x.flip(-1).rot90(2, (2, 3)).flip(-2),
    "expanded from one": lambda x: x[:1].expand(3, -1, -1, -1),
}
for _name, _change in GIVEN.items():

    @called(f"a picture {_name}", silent="expanded" not in _name)
    def _(net: Any, x: Tensor, size: Any, change: Any = _change) -> Tensor:
        out: Tensor = net(change(x), size)
        return out

    @called(f"features {_name}", silent="expanded" not in _name)
    def _(net: Any, x: Tensor, size: Any, change: Any = _change) -> Tensor:
        out: Tensor = net.decoder(change(net.encoder(x)), size)
        return out


@called("checkpointing, reentrant", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = checkpoint(net, x, size, use_reentrant=True)
    return out


@called("a batch as single pictures by vmap", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = vmap(lambda picture: net(picture[None], size)[0])(x)
    return out


@edit("an ensemble by stack_module_state")
def _(net: Any) -> nn.Module:
    other = copy.deepcopy(net)
    loaded_state(other, assign=False)
    both = nn.ModuleList([net, other])

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = both

        def forward(self, x: Tensor, size: Any) -> Tensor:
            names = [name for name, _ in both[0].named_parameters()]
            stacked = {
                name: torch.stack([dict(each.named_parameters())[name] for each in both])
                for name in names
            }
            buffers = stack_module_state(list(both))[1]

            def call(parameters: Any, buffers: Any) -> Any:
                return functional_call(both[0], (parameters, buffers), (x, size))

            out: Tensor = vmap(call)(stacked, buffers)
            return out.mean(dim=0)

    return Ensemble()


@called("a directional derivative")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = jvp(lambda v: net(v, size), (x,), (torch.ones_like(x),))[1]
    return out


@called("a gradient beside the output")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    """As a penalty of gradients needs it."""
    with torch.enable_grad():
        given = x if x.requires_grad else x.clone().requires_grad_()
        out: Tensor = net(given, size)
        (slope,) = torch.autograd.grad(out.square().sum(), given, create_graph=True)
    return out + 0.01 * slope.square().mean()


@called("gradients of two passes", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(x, size)
    if out.requires_grad:
        out.square().mean().backward(retain_graph=True)
    return out


@called("an output written in place")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(x, size)
    out.mul_(1.1).clamp_(-1, 1)
    return out


@called("features written in place")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    features = net.encoder(x)
    features.mul_(1.1)
    out: Tensor = net.decoder(features, size)
    return out


@edit("compiled")
def _(net: Any) -> Any:
    net.decoder.K[1][1] = nn.GELU()
    return torch.compile(net, backend="eager")


@edit("16 bit", rounded=True)
def _(net: Any) -> nn.Module:
    def call(net: Any, x: Tensor, size: Any) -> Tensor:
        net.to(torch.bfloat16)
        out: Tensor = net(x.to(torch.bfloat16), size)
        return out.to(x.dtype)

    return Wrapped(net, call)


@edit("a decoder of another dtype", silent=True)
def _(net: Any) -> nn.Module:
    def call(net: Any, x: Tensor, size: Any) -> Tensor:
        net.decoder.to(torch.float64)
        out: Tensor = net.decoder(net.encoder(x).to(torch.float64), size)
        return out.to(x.dtype)

    return Wrapped(net, call)


@called("another type of size", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(x, torch.Size(size))
    return out
