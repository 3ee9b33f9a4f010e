"""The decoder's parameters in the form that decode operators take: few dense tensors instead of eighteen 1x1 layers.

H is the hidden width, L the number of layers (4), C the feature channels. All functions are autograd-visible, so
that gradients of the packed tensors reach the parameters; they are called at every decode (under 1 ms) rather than
cached, because writes through ``.data`` (EMA) would leave a cache stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diinn_fast.decoder import ImplicitDecoder


class Weights(NamedTuple):
    """Per-query weights, in the order in which operators take them.

    ``hidden`` is ``[L-1, 2H, H]``, rows K_i (recurrent part) then Q_i; in the *modulation* form, where the K branch is
    done at LR size, it is ``[L-1, H, H]``, Q_i alone. ``position`` is Q_0: ``[H, 3]``, or ``[H, 9C]`` with init_q.
    ``last`` is the RGB layer ``[3, H]``, or in mode 4 its nine taps ``[27, H]``, row ``(ky*3 + kx)*3 + channel``.
    """

    position: Tensor
    position_bias: Tensor  # [H]
    hidden: Tensor
    hidden_bias: Tensor  # [L-1, H], of the Q_i
    last: Tensor
    last_bias: Tensor


class ContentWeights(NamedTuple):
    """What the direct form needs besides: content products per query, and the extra sine layer of init_q."""

    content: Tensor  # [L*H, 9C] (mode 1: [H, 9C]), columns c*9 + ky*3 + kx
    content_bias: Tensor  # [L*H]
    first: Tensor | None = None  # [9C, 3]
    first_bias: Tensor | None = None  # [9C]


def pack(decoder: ImplicitDecoder, modulation: bool) -> Weights:
    """Per-query weights; ``modulation`` leaves the K branch out (modes 1 and 2, done at LR size)."""
    width = decoder.width
    position, *synthesis = (layer[0] for layer in decoder.Q)
    hidden = torch.stack([_matrix(layer.weight) for layer in synthesis])
    if not modulation:
        recurrent = torch.stack([_matrix(layer[0].weight)[:, :width] for layer in list(decoder.K)[1:]])
        hidden = torch.cat([recurrent, hidden], dim=1)
    hidden_bias = torch.stack([layer.bias for layer in synthesis])
    last, last_bias = decoder.last_layer.weight, decoder.last_layer.bias
    if decoder.mode == 4:
        last, last_bias = last.permute(2, 3, 0, 1).reshape(27, width), F.pad(last_bias, (12, 12))  # bias on the centre
    return Weights(_matrix(position.weight), position.bias, hidden, hidden_bias, last.reshape(-1, width), last_bias)


def pack_content(decoder: ImplicitDecoder) -> ContentWeights:
    """The content part of every K_i, and the first sine layer if there is one."""
    first, *others = (layer[0] for layer in decoder.K)
    columns = [_matrix(first.weight)]
    if decoder.mode != 1:
        columns += [_matrix(layer.weight)[:, decoder.width :] for layer in others]
    bias = torch.cat([layer[0].bias for layer in decoder.K])
    if not decoder.init_q:
        return ContentWeights(torch.cat(columns), bias)
    sine = decoder.first_layer[0]
    return ContentWeights(torch.cat(columns), bias, _matrix(sine.weight), sine.bias)


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1)
