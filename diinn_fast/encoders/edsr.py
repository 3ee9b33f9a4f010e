"""EDSR-baseline, the encoder of the bundled models."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from diinn_fast.encoders.base import Cost, Encoder
from diinn_fast.encoders.convolutions import conv3x3, fast_layout, residual


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))): EDSR's residual block, without batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x + body(x)."""
        return residual(self.body, x)


class EDSR(Encoder):
    """EDSR-baseline (Lim et al., CVPRW 2017) without tail and mean shift, with LIIF's parameter
    names.
    """

    name = "edsr-baseline"
    unused = ("sub_mean.", "add_mean.")  # in LIIF's files: they neither shift nor are trained

    def __init__(self, channels: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.out_channels = channels
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(
            *(ResBlock(channels) for _ in range(blocks)), conv3x3(channels, channels)
        )

    @classmethod
    def detect(cls, keys: Collection[str]) -> bool:
        """See `Encoder.detect`."""
        return any(key.startswith("head.") for key in keys)

    @property
    def cost(self) -> Cost:
        """See `Encoder.cost`."""
        return Cost(floats=280, floats_bounded=272)

    def forward(self, x: Tensor) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``."""
        x = self.head(fast_layout(x))
        return residual(self.body, x)

    def plain(self, x: Tensor) -> Tensor:
        """See `Encoder.plain`."""
        x = self.head(x)
        result: Tensor = x + self.body(x)
        return result
