"""Encoders: LR image to LR features. RDN (the paper's) and EDSR-baseline, both without an upsampling tail.

An encoder is any ``nn.Module`` ``[B, 3, h, w] -> [B, C, h, w]`` that states its channels as ``out_channels``
(64 is assumed otherwise). Zero padding, stride 1: the LR grid is kept. Features keep the memory format that is faster
for convolutions, so they may come back in channels_last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 256
"""Input channels that one 3x3 convolution sums for inference on the CPU. With more than 320 the convolution library
splits the sum at places that depend on the image's width, and tiles of an image would differ in the last bit."""


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def fast_layout(x: Tensor) -> Tensor:
    """The image in channels_last where convolutions are faster in it; every layer after the first then keeps it.

    On the CPU the convolution library needs no reordering of its inputs and outputs then, and the 1x1 convolutions of
    RDN do not depend on the image's size to the last bit (they do in the default layout). It sums in fewer, longer
    chains, so that the relative L2 error is up to 1.9 times that of the default layout. On a GPU the 16-bit kernels
    want it. float64 has no such library on the CPU and stays as it is.
    """
    fast = x.dtype != torch.float64 if x.device.type == "cpu" else x.is_cuda and x.element_size() == 2
    return x.contiguous(memory_format=torch.channels_last) if fast else x


class DenseConv(nn.Module):
    """One growth step of a residual dense block: x -> [x, relu(conv(x))]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv3x3(in_channels, growth), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), dim=1)


class RDB(nn.Module):
    """Residual dense block (Zhang et al., CVPR 2018): dense convolutions, local feature fusion, local residual."""

    def __init__(self, channels: int, growth: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(DenseConv(channels + c * growth, growth) for c in range(convs)))
        self.LFF = nn.Conv2d(channels + convs * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._infer(x)
        return self.LFF(self.convs(x)) + x

    def _infer(self, x: Tensor) -> Tensor:
        """The same sums in groups of at most WIDEST input channels, which also halves what concatenations copy."""
        full: list[Tensor] = []  # groups that are complete
        group = [x]
        steps: Any = self.convs
        for conv in (step.conv[0] for step in steps):
            *_, last = parts = [*full, torch.cat(group, dim=1)]
            total, start = conv.bias.view(1, -1, 1, 1), 0
            for part in parts:
                weight = conv.weight[:, start : start + part.shape[1]]
                total = F.conv2d(part, weight, padding=1) + total
                start += part.shape[1]
            if last.shape[1] + conv.out_channels > WIDEST:
                full, group = parts, []
            group.append(torch.relu_(total))
        return self.LFF(torch.cat([*full, *group], dim=1)).add_(x)


class RDN(nn.Module):
    """Residual Dense Network, config B by default: 16 blocks of 8 convolutions, growth 64; 21,973,952 parameters."""

    def __init__(self, channels: int = 64, growth: int = 64, blocks: int = 16, convs: int = 8) -> None:
        super().__init__()
        self.out_channels = channels
        self.SFENet1 = conv3x3(3, channels)
        self.SFENet2 = conv3x3(channels, channels)
        self.RDBs = nn.ModuleList(RDB(channels, growth, convs) for _ in range(blocks))
        self.GFF = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``."""
        shallow = self.SFENet1(fast_layout(x))
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        return self.GFF(torch.cat(outputs, dim=1)) + shallow


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))): EDSR's residual block, without batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EDSR(nn.Module):
    """EDSR-baseline (Lim et al., CVPRW 2017) without tail and mean shift, with LIIF's parameter names."""

    def __init__(self, channels: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.out_channels = channels
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(*(ResBlock(channels) for _ in range(blocks)), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``."""
        x = self.head(fast_layout(x))
        return x + self.body(x)


ENCODERS = {"rdn": RDN, "edsr-baseline": EDSR}


def make_encoder(encoder: str | nn.Module) -> nn.Module:
    """Encoder by name (``"rdn"``, ``"edsr-baseline"``), or the given module itself."""
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)} or pass an nn.Module")
    return ENCODERS[encoder]()
