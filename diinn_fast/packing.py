"""The decoder's parameters in the form that decode operators take: few dense tensors instead of
eighteen 1x1 layers.

H is the hidden width, L the number of layers (4), C the feature channels. All functions are
autograd-visible, so that gradients of the packed tensors reach the parameters; they are called at
every decode (about 1 ms) rather than cached, because writes through ``.data`` (EMA) would leave a
cache stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diinn_fast.decoder import ImplicitDecoder


class Weights(NamedTuple):
    """Per-query weights, in the order in which operators take them.

    ``hidden`` is ``[L-1, 2H, H]``, rows K_i (recurrent part) then Q_i; in the *modulation* form,
    where the K branch is done at LR size, it is ``[L-1, H, H]``, Q_i alone. ``position`` is Q_0:
    ``[H, 3]``, or ``[H, 9C]`` with init_q. ``last`` is the RGB layer ``[3, H]``, or in mode 4 its
    nine taps ``[27, H]``, row ``(ky*3 + kx)*3 + channel``.
    """

    position: Tensor
    position_bias: Tensor  # [H]
    hidden: Tensor
    hidden_bias: Tensor  # [L-1, H], of the Q_i
    last: Tensor
    last_bias: Tensor


class ContentWeights(NamedTuple):
    """What the direct form needs besides: content products per query, and the extra sine layer of
    init_q.
    """

    content: Tensor  # [L*H, 9C] (mode 1: [H, 9C]), columns c*9 + ky*3 + kx
    content_bias: Tensor  # [L*H]
    first: Tensor | None = None  # [9C, 3]
    first_bias: Tensor | None = None  # [9C]


def pack(decoder: ImplicitDecoder, modulation: bool) -> Weights:
    """Per-query weights; ``modulation`` leaves the K branch out (modes 1 and 2, done at LR
    size).
    """
    width = decoder.width
    last = decoder.last_layer
    position, *synthesis = convolutions(decoder.Q)
    hidden = torch.stack([layer.weight.flatten(1) for layer in synthesis])
    if not modulation:
        recurrent = [layer.weight.flatten(1)[:, :width] for layer in convolutions(decoder.K)[1:]]
        hidden = torch.cat([torch.stack(recurrent), hidden], dim=1)
    hidden_bias = torch.stack([bias(layer) for layer in synthesis])
    matrix = last.weight.permute(2, 3, 0, 1).reshape(-1, width)
    last_bias = bias(last)
    if decoder.mode == 4:
        last_bias = F.pad(last_bias, (12, 12))  # the bias belongs to the centre tap
    return Weights(
        position.weight.flatten(1), bias(position), hidden, hidden_bias, matrix, last_bias
    )


def pack_content(decoder: ImplicitDecoder) -> ContentWeights:
    """The content part of every K_i, and the first sine layer if there is one."""
    first, *others = convolutions(decoder.K)
    rows = [first.weight.flatten(1)]
    if decoder.mode != 1:
        rows += [layer.weight.flatten(1)[:, decoder.width :] for layer in others]
    content_bias = torch.cat([bias(first), *(bias(layer) for layer in others)])
    if not decoder.init_q:
        return ContentWeights(torch.cat(rows), content_bias)
    (sine,) = convolutions([decoder.first_layer])
    return ContentWeights(torch.cat(rows), content_bias, sine.weight.flatten(1), bias(sine))


def convolutions(layers: Iterable[Any]) -> list[nn.Conv2d]:
    """The 1x1 convolution of each (convolution, activation) layer."""
    return [layer[0] for layer in layers]


def bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
