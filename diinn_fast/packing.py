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

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of all weights and biases."""
        first = [] if self.first is None else [self.first]
        layers = [*self.modulation, *self.synthesis, self.last, *first]
        return {value.dtype for layer in layers for value in layer}


class Packing(NamedTuple):
    """A decoder's weights as a form takes them."""

    query: Weights
    content: ContentWeights


def pack(layers: Layers, mode: int, form: str) -> Packing:
    """Weights for a form of the decode operator, of the layers' dtype."""
    position, *synthesis = layers.synthesis
    rows = [layer.matrix for layer in synthesis]
    # In the form modulation the K branch is done at LR size.
    if form != "modulation":
        recurrent = [layer.matrix[:, : layers.width] for layer in layers.modulation[1:]]
        rows = [v for pair in zip(recurrent, rows, strict=True) for v in pair]
    last, last_bias = _last_layer(layers.last, mode)
    # All that is H wide in one operator: small decodes are bound by how many there are.
    biases = [layer.bias[None] for layer in (*synthesis, *layers.modulation)]
    counts = [len(rows) * layers.width, len(last), len(synthesis), len(layers.modulation)]
    hidden, last, hidden_bias, content_bias = torch.cat([*rows, last, *biases]).split(counts)
    hidden = hidden.view(len(synthesis), -1, layers.width)
    query = Weights(position.matrix, position.bias, hidden, hidden_bias, last, last_bias)
    # The content part of every K_i, and the sine layer of init_q.
    first, *others = layers.modulation
    content = [first.matrix]
    if FORMULATIONS[mode].content:
        content += [layer.matrix[:, layers.width :] for layer in others]
    sine_layer = () if layers.first is None else (layers.first.matrix, layers.first.bias)
    return Packing(query, ContentWeights(torch.cat(content), content_bias.flatten(), *sine_layer))


def _last_layer(layer: Layer, mode: int) -> tuple[Tensor, Tensor]:
    """The RGB layer as a matrix, in mode 4 of its nine taps, and its bias."""
    if not FORMULATIONS[mode].needs_grid:
        return layer.matrix, layer.bias
    taps = layer.weight.permute(2, 3, 0, 1).reshape(-1, layer.weight.shape[1])
    # the bias belongs to the centre tap
    return taps, F.pad(layer.bias, (4 * len(layer.bias), 4 * len(layer.bias)))
