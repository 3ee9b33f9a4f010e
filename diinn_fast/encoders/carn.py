"""CARN, a small encoder between EDSR-baseline and RDN."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from diinn_fast.encoders.base import Cost, Encoder
from diinn_fast.encoders.convolutions import conv3x3, fast_layout, residual


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """relu(x + body(x))."""
        return torch.relu_(residual(self.body, x))


class Fusion(nn.Module):
    """relu(conv(x)) of one kernel pixel: so many feature images into one."""

    def __init__(self, images: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(images * channels, channels, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenated images to one of as many channels as each has."""
        result: Tensor = self.body(x)
        return result


class Cascade(nn.Module):
    """Three blocks; each reads the fusion of the input and of all blocks before it."""

    def __init__(self, channels: int, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.b1 = block(channels)
        self.b2 = block(channels)
        self.b3 = block(channels)
        self.c1 = Fusion(2, channels)
        self.c2 = Fusion(3, channels)
        self.c3 = Fusion(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Three blocks, each of which sees the outputs of all before it."""
        images = [x]
        for block, fusion in ((self.b1, self.c1), (self.b2, self.c2), (self.b3, self.c3)):
            images.append(block(x))
            x = fusion(torch.cat(images, dim=1))
        return x


def local_cascade(channels: int) -> Cascade:
    """A block of the outer cascade: a cascade of residual blocks."""
    return Cascade(channels, Residual)


class CARN(Cascade, Encoder):
    """Cascading Residual Network (Ahn, Kang & Sohn, ECCV 2018) without tail and mean shift, with
    its authors' parameter names: 9 residual blocks in cascades of cascades; 814,720 parameters.
    """

    name = "carn"

    def __init__(self, channels: int = 64) -> None:
        super().__init__(channels, local_cascade)
        self.out_channels = channels
        self.entry = conv3x3(3, channels)

    @classmethod
    def detect(cls, keys: Collection[str]) -> bool:
        """See `Encoder.detect`."""
        return any(key.startswith(("entry.", "b1.b1.")) for key in keys)

    @property
    def cost(self) -> Cost:
        """See `Encoder.cost`."""
        return Cost(floats=1210, floats_bounded=880)

    def forward(self, x: Tensor) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``."""
        return super().forward(self.entry(fast_layout(x)))

    def plain(self, x: Tensor) -> Tensor:
        """See `Encoder.plain`."""
        return super().forward(self.entry(x))
