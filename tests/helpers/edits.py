"""What people do to a model, as functions that do it to the published one and to ours alike.

Each takes a model and changes it, or returns what takes its place. `tests.helpers.side_by_side`
tries them on both.
"""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tests.helpers.published import WIDTH

Edit = Callable[[Any], Any]
EDITS: dict[str, Edit] = {}
SILENT: set[str] = set()
"""Edits that leave the output as it was."""


def edit(name: str, *, silent: bool = False) -> Callable[[Edit], Edit]:
    def register(function: Edit) -> Edit:
        assert name not in EDITS, name
        EDITS[name] = function
        if silent:
            SILENT.add(name)
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


# -- layers exchanged ------------------------------------------------------------------------------


class FastSine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x)


class Gated(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.gate = nn.Parameter(torch.tensor(0.7))

    def forward(self, *args: Any) -> Tensor:
        return self.gate * self.layer(*args)


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
    edit(_name)(lambda net, where=_where, make=_make: replaced(net, where, make))


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
            return self.net(torch.cat([x, x[:, :1]], dim=1), size)

    return Four()


# -- hooks -----------------------------------------------------------------------------------------

PLACES = {
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
for _what, _hook in (HOOKS | BACKWARD_HOOKS).items():
    for _place, _find in PLACES.items():
        edit(f"{_what} {_place}", silent=_what in BACKWARD_HOOKS)(
            lambda net, hook=_hook, find=_find: (hook(find(net)), None)[1]
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
            out = self.net(x, size)
            sums = [kept[name].double().sum() for name in sorted(kept)]
            return out + 0 * torch.stack(sums).sum().to(out.dtype) if sums else out

    for name, layer in net.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda m, x, y, name=name: kept.update({name: y}))
    watched = Watched()
    watched.kept = kept  # type: ignore[assignment]
    return watched


@edit("hooks on gradients of weights", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.weight.register_hook(lambda grad: 2 * grad)


# -- adapters and normalised weights ---------------------------------------------------------------


class LowRank(nn.Module):
    """A frozen convolution and a trained one of low rank, as adapter libraries make them."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Conv2d(
            base.in_channels, 2, base.kernel_size, padding=base.padding, bias=False  # type: ignore[arg-type]
        )  # fmt: skip
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


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


# -- classes and methods ---------------------------------------------------------------------------


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * super().forward(x)


class DoubledInside(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 1.1 * super()._conv_forward(x, weight, bias)


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
    edit(f"convolutions of class {_kind.__name__}")(lambda net, kind=_kind: of_class(net, kind))


@edit("a forward of its own, in each of some convolutions")
def _(net: Any) -> None:
    for name in SOME:
        layer = net.get_submodule(name)
        layer.forward = types.MethodType(
            lambda self, x: 1.1 * self._conv_forward(x, self.weight, self.bias), layer
        )


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
        return kind.forward(self, x, size).clamp(-0.1, 0.1)

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
            return self.net(x, size)

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


# -- parameters ------------------------------------------------------------------------------------


@edit("tied weights")
def _(net: Any) -> None:
    net.decoder.Q[2][0].weight = net.decoder.Q[1][0].weight
    net.decoder.K[2][0].weight = net.decoder.K[1][0].weight
    net.encoder.RDBs[1].LFF.weight = net.encoder.RDBs[0].LFF.weight


@edit("tied layers")
def _(net: Any) -> None:
    net.decoder.Q[3] = net.decoder.Q[2] = net.decoder.Q[1]
    net.decoder.K[3] = net.decoder.K[1]
    net.encoder.RDBs[1] = net.encoder.RDBs[0]


@edit("new parameters")
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.weight = nn.Parameter(1.1 * layer.weight.detach())


@edit("parameters written in place")
def _(net: Any) -> None:
    net(torch.zeros(1, 3, 5, 6), (9, 13))  # whatever is kept of it must not be used again
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.data.mul_(1.1)
            parameter.add_(0.01)


@edit("weights of odd strides", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)


@edit("parameters that are views of one buffer", silent=True)
def _(net: Any) -> None:
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    nn.utils.vector_to_parameters(flat, net.parameters())


@edit("initialised by apply")
def _(net: Any) -> None:
    def initialise(layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain=0.5)

    net.apply(initialise)


def frozen(*names: str) -> Edit:
    def freeze(net: Any) -> None:
        for name in names:
            net.get_submodule(name).requires_grad_(False)

    return freeze


for _names in (
    ("encoder",), ("decoder",), ("decoder.K",), ("decoder.Q", "decoder.last_layer"),
    ("encoder.RDBs.0", "decoder.K.1"), ("encoder.RDBs.1.LFF", "encoder.RDBs.0.convs.0"),
):  # fmt: skip
    edit("frozen: " + ", ".join(_names), silent=True)(frozen(*_names))


@edit("frozen biases", silent=True)
def _(net: Any) -> None:
    for layer in convolutions(net):
        assert layer.bias is not None
        layer.bias.requires_grad_(False)


@edit("another mode of the same tensors")
def _(net: Any) -> None:
    net.decoder.mode = {3: 2, 2: 3}.get(net.decoder.mode, net.decoder.mode)


# -- the model as a whole --------------------------------------------------------------------------


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


class Wrapped(nn.Module):
    """A model whose call is another one."""

    def __init__(self, net: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.call = call

    def forward(self, x: Tensor, size: Any) -> Tensor:
        return self.call(self.net, x, size)


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
