"""EDSR-baseline, the encoder of the bundled models."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from diinn_fast import guard
from diinn_fast.backends import _pairs
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

    def has_pairs(self) -> bool:
        """See `Encoder.has_pairs`."""
        return not _edit(self) and not _pairs.unavailable()

    def in_pairs(self, x: Tensor) -> Tensor | None:
        """See `Encoder.in_pairs`."""
        float32 = all(v.dtype == torch.float32 for v in (x, *self.parameters()))
        if x.device.type != "cpu" or not float32 or not len(x) or torch.is_grad_enabled():
            return None
        if guard.transform(x) or not self.has_pairs():
            return None
        first = self.head(fast_layout(x)).permute(0, 2, 3, 1).contiguous()
        return torch.stack([self._body_in_pairs(image) for image in first]).permute(0, 3, 1, 2)

    def _body_in_pairs(self, first: Tensor) -> Tensor:
        """The features of one image [h, w, C] behind the head."""
        *blocks, last = self.body.children()
        x = first
        spare = torch.empty_like(first)
        out = torch.empty_like(first)
        for block in blocks:
            assert isinstance(block, ResBlock), "not edited"
            enter, _, leave = block.body.children()
            _pairs.convolve(x, *_values(enter), rectify=True, out=spare)
            x = _pairs.convolve(spare, *_values(leave), add=x, out=out)
        return _pairs.convolve(x, *_values(last), add=first, out=spare)

    def plain(self, x: Tensor) -> Tensor:
        """See `Encoder.plain`."""
        x = self.head(x)
        result: Tensor = x + self.body(x)
        return result


def _values(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution."""
    assert isinstance(layer, nn.Conv2d), "not edited"
    assert layer.bias is not None, "not edited"
    return layer.weight, layer.bias


def _edit(encoder: EDSR) -> str | None:
    """Why its layers must be called, or None."""
    channels = encoder.out_channels

    def convolution(layer: nn.Module) -> str | None:
        if layer._parameters.get("bias") is None or channels % _pairs.UNIT:
            return "is not as its kernel takes it"
        return guard.convolution_edit(layer, channels, channels, 3, 1)

    def rectifier(layer: nn.Module) -> str | None:
        return guard.layer_edit(layer, nn.ReLU)

    def block(layer: nn.Module) -> str | None:
        if reason := guard.layer_edit(layer, ResBlock):
            return reason
        assert isinstance(layer, ResBlock), "not edited"
        return guard.sequence_edit(layer.body, (convolution, rectifier, convolution))

    body = encoder.body
    if reason := guard.layer_edit(encoder, EDSR) or guard.layer_edit(body, nn.Sequential):
        return reason
    return guard.sequence_edit(body, (*[block] * (len(body) - 1), convolution))
