"""What is given to a model, and what is asked of its output and of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from tests.helpers.edits.registry import called

# -- pictures and sizes ----------------------------------------------------------------------------


def negative(x: Tensor) -> Tensor:
    """-x as a view whose sign is a bit of the tensor."""
    view: Tensor = torch.complex(torch.zeros_like(x), x).conj().imag
    assert view.is_neg()
    return view


PICTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "of one pixel": lambda x: x[:, :, :1, :1],
    "of one row": lambda x: x[:, :, :1],
    "of one column": lambda x: x[..., :1],
    "whose sign is a bit": negative,
}
for _name, _change in PICTURES.items():

    @called(f"pictures {_name}")
    def _(net: Any, x: Tensor, size: Any, change: Any = _change) -> Tensor:
        out: Tensor = net(change(x), size)
        return out


@called("a picture that is a parameter", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(nn.Parameter(x.detach()), size)
    return out + 0 * x.sum()


@called("sizes of numpy", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(x, np.array(size))
    return out


@called("features whose sign is a bit")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net.decoder(negative(net.encoder(x)), size)
    return out


def damaged(net: Any, x: Tensor, size: Any, value: float) -> Tensor:
    """Where one value has spread, as numbers; its gradients say nothing."""
    features = net.encoder(x).detach().clone()
    features[0, 0, 2, 3] = value
    with torch.no_grad():
        spread: Tensor = net.decoder(features, size).nan_to_num(7.0, 8.0, 9.0)
    out: Tensor = net(x, size)
    return spread + 0 * out


for _value in (float("nan"), float("inf"), -float("inf")):
    called(f"features with a value {_value}")(partial(damaged, value=_value))


# -- outputs and gradients -------------------------------------------------------------------------


@called("an output in one dimension", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = net(x, size)
    return out.view(-1).view(out.shape)


@called("features used twice", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    features = net.encoder(x)
    out: Tensor = net.decoder(features, size)
    other: Tensor = net.decoder(features, (7, 8))
    return out + 0 * other.mean()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "a sum": torch.sum,
    "one pixel": lambda out: out[0, 1, 2, 3],
    "nothing": lambda out: (0 * out).sum(),
}
for _name, _loss in LOSSES.items():

    @called(f"the loss is {_name}", silent=True)
    def _(net: Any, x: Tensor, size: Any, loss: Any = _loss) -> Tensor:
        out: Tensor = net(x, size)
        if out.requires_grad:
            loss(out).backward(retain_graph=True)
        return out


@called("a loss of features, and of a block's", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    features = net.encoder(x)
    block = net.encoder.RDBs[0](net.encoder.SFENet1(x))
    if features.requires_grad:
        (features.sum() + block.sum()).backward(retain_graph=True)
    out: Tensor = net.decoder(features, size)
    return out


@called("gradients of two weights alone")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    with torch.enable_grad():
        out: Tensor = net(x, size)
        weights = [net.decoder.K[1][0].weight, net.encoder.RDBs[0].convs[1].conv[0].bias]
        found = torch.autograd.grad(out.square().mean(), weights, create_graph=True)
    return out + torch.stack([value.mean() for value in found]).sum()


# -- transforms and recordings ---------------------------------------------------------------------


@called("a product of a second derivative")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    with torch.enable_grad():
        product = torch.autograd.functional.hvp(
            lambda v: net(v, size).square().sum(), x.detach(), torch.ones_like(x)
        )[1]
    out: Tensor = net(x, size)
    slope: Tensor = product.mean()
    return out + 0.01 * slope


@called("gradients of each picture by vmap")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    values = {name: value.detach() for name, value in net.named_parameters()}

    def loss(values: Any, picture: Tensor) -> Tensor:
        out: Tensor = functional_call(net, values, (picture[None], size))
        return out.square().mean()

    found = vmap(grad(loss), (None, 0))(values, x.detach())
    out: Tensor = net(x, size)
    return out + torch.stack([value.mean() for value in found.values()]).sum()


@called("functional_call with fewer channels")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    last = net.decoder.last_layer
    values = {
        "decoder.last_layer.weight": last.weight[:1],
        "decoder.last_layer.bias": last.bias[:1],
    }
    out: Tensor = functional_call(net, values, (x, size))
    return out


@called("recorded by make_fx", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    with torch.no_grad():
        graph = make_fx(lambda v: net(v, size))(x.detach())
    out: Tensor = graph(x)
    return out


def keep_convolutions(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator == torch.ops.aten.convolution.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@called("checkpointing of some operators", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, keep_convolutions)
    out: Tensor = checkpoint(net, x, size, use_reentrant=False, context_fn=contexts)
    return out


@called("checkpointing of the decoder", silent=True)
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    out: Tensor = checkpoint(net.decoder, net.encoder(x), size, use_reentrant=False)
    return out


@called("checkpointing of blocks in a row")
def _(net: Any, x: Tensor, size: Any) -> Tensor:
    shallow = net.encoder.SFENet1(x)
    blocks = nn.Sequential(*net.encoder.RDBs)
    out: Tensor = net.decoder(checkpoint_sequential(blocks, 2, shallow, use_reentrant=False), size)
    return out
