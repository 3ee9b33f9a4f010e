"""The decoder's parameters in the form that decode operators take: few dense tensors instead of
eighteen 1x1 layers.

H is the hidden width, L the number of layers (4), C the feature channels. All functions are
autograd-visible, so that gradients of the packed tensors reach the parameters. They are called at
every forward of a decoder (about 1 ms), because writes through ``.data`` (EMA) would leave a cache
stale; a render, during which weights do not change, calls them once (`ImplicitDecoder.prepare`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.formulation import FORMULATIONS
from diinn_fast.problem import ContentWeights, Weights


class Layer(NamedTuple):
    """Weight and bias of a convolution."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def read(cls, convolution: nn.Conv2d) -> Layer:
        """The values that the convolution has now: a parametrization is evaluated here, once."""
        weight = convolution.weight
        bias = convolution.bias
        return cls(weight, weight.new_zeros(weight.shape[0]) if bias is None else bias)

    @property
    def matrix(self) -> Tensor:
        """The weight of a 1x1 convolution, ``[out, in]``."""
        return self.weight.flatten(1)


class Layers(NamedTuple):
    """The values of a decoder's layers at one forward."""

    modulation: list[Layer]  # K_i
    synthesis: list[Layer]  # Q_i
    last: Layer
    first: Layer | None  # the sine layer of init_q

    @property
    def width(self) -> int:
        """H, the hidden width."""
        return self.synthesis[0].bias.shape[0]


def pack(layers: Layers, mode: int, modulation: bool) -> Weights:
    """Per-query weights; ``modulation`` leaves the K branch out (modes 1 and 2, done at LR
    size).
    """
    position, *synthesis = layers.synthesis
    rows = [layer.matrix for layer in synthesis]
    if not modulation:
        recurrent = [layer.matrix[:, : layers.width] for layer in layers.modulation[1:]]
        rows = [v for pair in zip(recurrent, rows, strict=True) for v in pair]
    # One operator: small decodes are bound by how many there are.
    hidden = torch.cat(rows).view(len(synthesis), -1, layers.width)
    hidden_bias = torch.stack([layer.bias for layer in synthesis])
    last = layers.last.matrix
    last_bias = layers.last.bias
    if FORMULATIONS[mode].needs_grid:
        last = layers.last.weight.permute(2, 3, 0, 1).reshape(-1, layers.width)
        # the bias belongs to the centre tap
        last_bias = F.pad(last_bias, (4 * len(last_bias), 4 * len(last_bias)))
    return Weights(position.matrix, position.bias, hidden, hidden_bias, last, last_bias)


def pack_content(layers: Layers, mode: int) -> ContentWeights:
    """The content part of every K_i, and the first sine layer if there is one."""
    first, *others = layers.modulation
    rows = [first.matrix]
    if FORMULATIONS[mode].content:
        rows += [layer.matrix[:, layers.width :] for layer in others]
    bias = torch.cat([layer.bias for layer in layers.modulation])
    if layers.first is None:
        return ContentWeights(torch.cat(rows), bias)
    return ContentWeights(torch.cat(rows), bias, layers.first.matrix, layers.first.bias)
