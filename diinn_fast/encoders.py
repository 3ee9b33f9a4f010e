"""Encoders: LR image to LR features. RDN (the paper's) and EDSR-baseline, both without an
upsampling tail.

An encoder is any ``nn.Module`` ``[B, 3, h, w] -> [B, C, h, w]`` that states its channels as
``out_channels`` (64 is assumed otherwise). Zero padding, stride 1: the LR grid is kept. Features
keep the memory format that is faster for convolutions, so they may come back in channels_last. One
that states its ``receptive_radius`` (LR pixels on each side that a feature depends on) can be
computed in tiles.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 256
"""Input channels that one 3x3 convolution sums for inference on the CPU. With more than 320 the
convolution library splits the sum at places that depend on the image's width, and tiles of an image
would differ in the last bit.
"""

LEAST_PIXELS = 1024
"""Fewest pixels of a tile (the whole of a smaller image): below 20480 numbers PyTorch takes another
convolution, which sums in another order."""


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def fast_layout(x: Tensor) -> Tensor:
    """The image in channels_last where convolutions are faster in it; every layer after the first
    then keeps it.

    On the CPU the convolution library needs no reordering of its inputs and outputs then, and the
    1x1 convolutions of RDN do not depend on the image's size to the last bit (they do in the
    default layout). It sums in fewer, longer chains, so that the relative L2 error is up to 1.9
    times that of the default layout. On a GPU the 16-bit kernels want it, also those that autocast
    chooses. float64 has no such library on the CPU and stays as it is.
    """
    half = x.element_size() == 2 or torch.is_autocast_enabled(x.device.type)
    fast = x.dtype != torch.float64 if x.device.type == "cpu" else x.is_cuda and half
    return x.contiguous(memory_format=torch.channels_last) if fast else x


def use_fast_weights(encoder: nn.Module) -> nn.Module:
    """The encoder itself, its weights in channels_last: as its activations are, so that no call
    reorders them.
    """
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def convolution_radius(encoder: nn.Module) -> int:
    """LR pixels on each side that a feature depends on, for an encoder that is one chain of its
    convolutions.

    The sum of their radii; a skip connection sees less, not more. (Of convolutions in parallel it
    is a bound.)
    """
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    return sum(
        max(d * (k - 1) // 2 for k, d in zip(c.kernel_size, c.dilation, strict=True))
        for c in convolutions
    )


class DenseConv(nn.Module):
    """One growth step of a residual dense block: x -> [x, relu(conv(x))]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv3x3(in_channels, growth), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), dim=1)


class RDB(nn.Module):
    """Residual dense block (Zhang et al., CVPR 2018): dense convolutions, local feature fusion,
    local residual.
    """

    def __init__(self, channels: int, growth: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(DenseConv(channels + c * growth, growth) for c in range(convs))
        )
        self.LFF = nn.Conv2d(channels + convs * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._infer(x)
        return self.LFF(self.convs(x)) + x

    def _infer(self, x: Tensor) -> Tensor:
        """The same sums in groups of at most WIDEST input channels, which also halves what
        concatenations copy.
        """
        full: list[Tensor] = []  # groups that are complete
        group = x
        steps: Any = self.convs
        for conv in (step.conv[0] for step in steps):
            grown = torch.relu_(_sum_of_convs([*full, group], conv))
            if group.shape[1] + grown.shape[1] > WIDEST:
                full = [*full, group]
                group = grown
            else:
                group = torch.cat((group, grown), dim=1)
        return _sum_of_convs([*full, group], self.LFF).add_(x)

    def in_pieces(self, x: Tensor, work_bytes: int) -> Tensor:
        """The block without gradients, in nearly square pieces whose dense features take at most
        ``work_bytes``.

        Each piece reads as many pixels around it as there are convolutions: bitwise the whole on
        the CPU.
        """
        height, width = x.shape[-2:]
        pixels = max(
            LEAST_PIXELS, work_bytes // (x.shape[0] * x.element_size() * self.dense_floats)
        )
        if height * width <= pixels:
            return self(x)
        halo = len(self.convs)
        side = int(pixels**0.5)
        rows = height if height <= side else max(side, pixels // width) - 2 * halo
        columns = width if width <= side else max(side, pixels // height) - 2 * halo
        out: Tensor | None = None
        for i0, i1 in _equal_parts(height, max(rows, halo)):
            top = max(i0 - halo, 0)
            bottom = min(i1 + halo, height)
            for j0, j1 in _equal_parts(width, max(columns, halo)):
                left = max(j0 - halo, 0)
                right = min(j1 + halo, width)
                piece = self(fast_layout(x[:, :, top:bottom, left:right]))
                out = torch.empty_like(x, dtype=piece.dtype) if out is None else out
                out[:, :, i0:i1, j0:j1] = piece[:, :, i0 - top : i1 - top, j0 - left : j1 - left]
        assert out is not None
        return out

    @property
    def dense_floats(self) -> int:
        """Numbers per pixel that `_infer` holds: all dense features, the last group twice, two
        sums.
        """
        return self.LFF.in_channels + min(WIDEST, self.LFF.in_channels) + 2 * self.LFF.out_channels


def _sum_of_convs(parts: list[Tensor], conv: nn.Conv2d) -> Tensor:
    """``conv(cat(parts))``, one part after the other."""
    assert conv.bias is not None
    total = conv.bias.view(1, -1, 1, 1)
    start = 0
    for part in parts:
        weight = conv.weight[:, start : start + part.shape[1]]
        total = _add(F.conv2d(part, weight, padding=conv.padding), total)
        start += part.shape[1]
    return total


def _add(product: Tensor, total: Tensor) -> Tensor:
    """Their sum, in product's place unless autocast made it narrower."""
    return product.add_(total) if product.dtype == total.dtype else product + total


def _equal_parts(length: int, most: int) -> list[tuple[int, int]]:
    """``range(length)`` cut into the fewest parts of at most ``most``, nearly equal."""
    count = -(-length // most)
    cuts = [length * n // count for n in range(count + 1)]
    return list(pairwise(cuts))


class RDN(nn.Module):
    """Residual Dense Network, config B by default: 16 blocks of 8 convolutions, growth 64;
    21,973,952 parameters.
    """

    def __init__(
        self, channels: int = 64, growth: int = 64, blocks: int = 16, convs: int = 8
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.SFENet1 = conv3x3(3, channels)
        self.SFENet2 = conv3x3(channels, channels)
        self.RDBs = nn.ModuleList(RDB(channels, growth, convs) for _ in range(blocks))
        self.GFF = nn.Sequential(
            nn.Conv2d(blocks * channels, channels, 1), conv3x3(channels, channels)
        )

    @property
    def receptive_radius(self) -> int:
        return convolution_radius(self)

    def forward(self, x: Tensor, work_bytes: int | None = None) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``.

        ``work_bytes`` bounds what the dense features of a block take (without gradients).
        """
        shallow = self.SFENet1(fast_layout(x))
        x = self.SFENet2(shallow)
        if torch.is_grad_enabled():
            outputs = []
            for block in self.RDBs:
                x = block(x)
                outputs.append(x)
            return self.GFF(torch.cat(outputs, dim=1)) + shallow
        fusion = self.GFF[0]
        channels = self.out_channels
        assert isinstance(fusion, nn.Conv2d) and fusion.bias is not None
        total = fusion.bias.view(1, -1, 1, 1)
        for n, block in enumerate(
            self.RDBs
        ):  # summed as they come, so that no block's output has to be kept
            assert isinstance(block, RDB)
            x = block(x) if work_bytes is None else block.in_pieces(x, work_bytes)
            total = _add(F.conv2d(x, fusion.weight[:, n * channels : (n + 1) * channels]), total)
        del x
        return self.GFF[1](total).add_(shallow)


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))): EDSR's residual block, without batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return _add(self.body(x), x)


class EDSR(nn.Module):
    """EDSR-baseline (Lim et al., CVPRW 2017) without tail and mean shift, with LIIF's parameter
    names.
    """

    def __init__(self, channels: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.out_channels = channels
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(
            *(ResBlock(channels) for _ in range(blocks)), conv3x3(channels, channels)
        )

    @property
    def receptive_radius(self) -> int:
        return convolution_radius(self)

    def forward(self, x: Tensor) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``."""
        x = self.head(fast_layout(x))
        return _add(self.body(x), x)


ENCODERS = {"rdn": RDN, "edsr-baseline": EDSR}


def make_encoder(encoder: str | nn.Module) -> nn.Module:
    """Encoder by name (``"rdn"``, ``"edsr-baseline"``), or the given module itself."""
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder not in ENCODERS:
        raise ValueError(
            f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)} or pass an nn.Module"
        )
    return ENCODERS[encoder]()
