"""Models for tests of everything around the network: one whose output is known, one that mixes
everything.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from diinn_fast import DIINN


@torch.no_grad()
def nearest_model() -> DIINN:
    """EDSR-baseline in mode 3 whose weights make it nearest-neighbour interpolation, to float32
    rounding.

    The encoder passes RGB through; the modulation carries RGB + 2 (positive, so that the ReLU is
    idle) from layer to layer; each sine is sin(pi / 2) = 1.
    """
    model = DIINN(mode=3, encoder="edsr-baseline").eval()
    for parameter in model.parameters():
        parameter.zero_()
    encoder = model.encoder
    decoder = model.decoder
    assert isinstance(encoder.head, nn.Sequential)
    for c in range(3):
        encoder.head[0].weight[c, c, 1, 1] = 1
        decoder.K[0][0].weight[c, 9 * c + 4] = 1
        decoder.K[0][0].bias[c] = 2
        for layer in list(decoder.K)[1:]:
            layer[0].weight[c, c] = 1
        decoder.last_layer.weight[c, c] = 1
        decoder.last_layer.bias[c] = -2
    for layer in decoder.Q:
        layer[0].bias.fill_(math.pi / 2)
    return model


@torch.no_grad()
def random_model(mode: int = 3) -> DIINN:
    """EDSR-baseline with random weights, the same in each run, whose output depends on all of the
    input.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DIINN(mode=mode, encoder="edsr-baseline").eval()
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)
    return model


def save(model: DIINN, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


class Channels(nn.Module):
    """An encoder of six channels."""

    out_channels = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result
