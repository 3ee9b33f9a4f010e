"""RDN, the paper's encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diinn_fast import guard
from diinn_fast.encoders import dense
from diinn_fast.encoders.base import Cost, Encoder
from diinn_fast.encoders.convolutions import (
    LEAST_PIXELS,
    WIDEST,
    add,
    bias_image,
    conv3x3,
    fast_layout,
    sum_of_convs,
)


@guard.watched
class DenseConv(nn.Module):
    """One growth step of a residual dense block: x -> [x, relu(conv(x))]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        # not in place: hooks keep what the convolution gave, and may be part of the backward
        self.conv = nn.Sequential(conv3x3(in_channels, growth), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """The input, and behind it what the layer makes of it."""
        return torch.cat((x, self.conv(x)), dim=1)


@guard.watched
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
        """The block on ``[B, C, h, w]``, by the fastest path that gives the layers' result."""
        training = torch.is_grad_enabled()
        fast = dense.supported(x) if training else x.device.type == "cpu"
        if not fast or _must_call(x, self.edit):
            out: Tensor = self.LFF(self.convs(x)) + x
            return out
        return dense.dense_block(x, self._growths, self.LFF) if training else self._infer(x)

    @property
    def _growths(self) -> list[nn.Conv2d]:
        """The 3x3 convolutions of an unedited block."""
        steps: Any = self.convs
        return [step.conv[0] for step in steps]

    def edit(self) -> str | None:
        """What was changed inside the block so that its layers must be called, or None."""
        if reason := guard.layer_edit(self.convs, nn.Sequential):
            return f"convs {reason}"
        for n, step in enumerate(self.convs):
            if reason := _step_edit(step):
                return f"convs[{n}] {reason}"
        # its output is added to the block's input
        channels = self._growths[0].in_channels if len(self.convs) else None
        reason = guard.convolution_edit(self.LFF, outputs=channels)
        return f"LFF {reason}" if reason else None

    def _infer(self, x: Tensor) -> Tensor:
        """The same sums in groups of at most WIDEST input channels, which also halves what
        concatenations copy.
        """
        full: list[Tensor] = []  # groups that are complete
        group = x
        for conv in self._growths:
            grown = torch.relu_(sum_of_convs([*full, group], conv))
            if group.shape[1] + grown.shape[1] > WIDEST:
                full = [*full, group]
                group = grown
            else:
                group = torch.cat((group, grown), dim=1)
        return sum_of_convs([*full, group], self.LFF).add_(x)

    def in_pieces(self, x: Tensor, work_bytes: int) -> Tensor:
        """The block without gradients, in nearly square pieces whose dense features take at most
        ``work_bytes``.

        Each piece reads as many pixels around it as there are convolutions: bitwise the whole on
        the CPU.
        """
        whole: Tensor
        if self.edit():
            # Changed layers may look further than the convolutions that the halo is computed from.
            whole = self(x)
            return whole
        height, width = x.shape[-2:]
        pixels = max(
            LEAST_PIXELS, work_bytes // (x.shape[0] * x.element_size() * self.dense_floats)
        )
        if height * width <= pixels:
            whole = self(x)
            return whole
        # One pixel per 3x3 convolution; within it a piece's values differ from the whole's.
        halo = len(self.convs)
        side = int(pixels**0.5)
        # Nearly square: the halo costs least where the sides are equal.
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


_GROWTH = (
    partial(guard.convolution_edit, kernel=3, padding=1),
    partial(guard.layer_edit, kind=nn.ReLU),
)
"""Checks of a `DenseConv`'s layers."""


def _step_edit(step: nn.Module) -> str | None:
    if reason := guard.layer_edit(step, DenseConv):
        return reason
    assert isinstance(step, DenseConv)
    return guard.sequence_edit(step.conv, _GROWTH)


def _must_call(x: Tensor, edit: Callable[[], str | None]) -> bool:
    """Whether layers must be called, though reading their values is faster; says why."""
    reason = guard.transform(x) or edit()
    if reason:
        guard.say("the encoder", reason)
    return reason is not None


def _equal_parts(length: int, most: int) -> list[tuple[int, int]]:
    """``range(length)`` cut into the fewest parts of at most ``most``, nearly equal."""
    count = -(-length // most)
    cuts = [length * n // count for n in range(count + 1)]
    return list(pairwise(cuts))


@dataclass(frozen=True)
class DenseCost(Cost):
    """Cost of an RDN, whose dense features can be held for a piece of the image at a time."""

    dense_floats: int = 0
    """Numbers per pixel of a piece."""
    halo: int = 0
    """Pixels that a piece reads on each side."""

    def extra(self, pixels: int, work_bytes: int) -> float:
        """Pieces are taken as square; their halos are computed twice."""
        piece = max(LEAST_PIXELS, work_bytes / (4 * self.dense_floats))
        if piece >= pixels:
            return 1.0
        side = math.sqrt(piece)
        return (side / max(1.0, side - 2 * self.halo)) ** 2


class RDN(Encoder):
    """Residual Dense Network (Zhang et al., CVPR 2018) without its upsampling tail.

    Config B by default: 16 blocks of 8 convolutions, growth 64; 21,973,952 parameters.
    """

    name = "rdn"
    recompute = False
    """Whether training keeps the inputs of the blocks only, and computes each block once more in
    the backward. Set it on a model: ``model.encoder.recompute = True``.
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

    @classmethod
    def detect(cls, keys: Collection[str]) -> bool:
        """See `Encoder.detect`."""
        return any(key.startswith(("SFENet1.", "RDBs.")) for key in keys)

    @property
    def cost(self) -> DenseCost:
        """See `Encoder.cost`."""
        block = self.RDBs[0]
        assert isinstance(block, RDB)
        return DenseCost(1500, 300, (0.15, 0.3, 0.5), block.dense_floats, len(block.convs))

    def forward(self, x: Tensor, work_bytes: int | None = None) -> Tensor:
        """LR image ``[B, 3, h, w]`` in [-1, 1] -> features ``[B, 64, h, w]``.

        ``work_bytes`` bounds what the dense features of a block take (without gradients).
        """
        shallow = self.SFENet1(fast_layout(x))
        x = self.SFENet2(shallow)
        if torch.is_grad_enabled() or _must_call(x, self.edit):
            return self._by_calls(x, shallow)
        fusion = self.GFF[0]
        channels = self.out_channels
        assert isinstance(fusion, nn.Conv2d)
        weight = fusion.weight
        total = bias_image(fusion, weight)
        first = x
        # Summed as they come, so that no block's output has to be kept.
        for n, block in enumerate(self.RDBs):
            assert isinstance(block, RDB)
            x = block(x) if work_bytes is None else block.in_pieces(x, work_bytes)
            if guard.own_class(x):  # a block's weights gave it that
                return self._by_calls(first, shallow)
            total = add(F.conv2d(x, weight[:, n * channels : (n + 1) * channels]), total)
        del x
        # not in place: a hook may have kept what the last layer gave
        result: Tensor = self.GFF[1](total) + shallow
        return result

    def _by_calls(self, x: Tensor, shallow: Tensor) -> Tensor:
        """The blocks one after the other, and the global fusion as a module."""
        outputs = []
        for block in self.RDBs:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
            outputs.append(x)
        fused: Tensor = self.GFF(torch.cat(outputs, dim=1)) + shallow
        return fused

    def edit(self) -> str | None:
        """What was changed outside the blocks so that the layers must be called, or None; each
        block looks after itself.
        """
        if reason := guard.list_edit(self.RDBs):
            return f"encoder.RDBs {reason}"
        for n, block in enumerate(self.RDBs):
            if reason := guard.layer_edit(block, RDB):
                return f"encoder.RDBs[{n}] {reason}"
        fusion = (guard.convolution_edit, lambda layer: None)  # the second one is called
        reason = guard.sequence_edit(self.GFF, fusion)
        return f"encoder.GFF {reason}" if reason else None

    def plain(self, x: Tensor) -> Tensor:
        """See `Encoder.plain`."""
        shallow = self.SFENet1(x)
        x = self.SFENet2(shallow)
        outputs = []
        blocks: Any = self.RDBs
        for block in blocks:
            x = block.LFF(block.convs(x)) + x
            outputs.append(x)
        result: Tensor = self.GFF(torch.cat(outputs, dim=1)) + shallow
        return result
