"""What the baselines share: products of neighbourhoods done at LR size, and per-query products, in
plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.geometry import check_size

CHUNK = 1024
"""Queries at a time, so that hidden layers stay near the last-level cache."""

STRIP_BYTES = 256 << 20
"""Most projected content (bytes) that is held at a time without gradients."""


class MLP(nn.Module):
    """ReLU network ``[..., in] -> [..., out]``; the layers carry the published names
    ``layers.{0,2,4,...}``.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """The layers one after the other."""
        result: Tensor = self.layers(x)
        return result

    def linear(self, n: int) -> nn.Linear:
        """The n-th product, counted without the activations."""
        layer = self.layers[2 * n]
        assert isinstance(layer, nn.Linear)
        return layer


def project(features: Tensor, weight: Tensor, bias: Tensor, rows: slice) -> Tensor:
    """``W x + b`` of the 3x3 neighbourhood x of every LR pixel in some rows: ``[B, rows, w, out]``.

    The columns of W ``[out, 9C]`` are ordered as ``F.unfold(features, 3, padding=1)`` orders x, so
    that the product is a 3x3 convolution.
    """
    h = features.shape[2]
    part = features[:, :, max(rows.start - 1, 0) : min(rows.stop + 1, h)]
    part = F.pad(part, (0, 0, int(rows.start == 0), int(rows.stop == h)))
    kernel = weight.reshape(len(weight), -1, 3, 3)
    return F.conv2d(part, kernel, bias, padding=(0, 1)).permute(0, 2, 3, 1).contiguous()


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` for x ``[n, in]``.

    On the CPU as a 1x1 convolution in channels_last: the convolution library uses AVX-512 on CPUs
    where the matrix library does not (AMD), and is then twice as fast. PyTorch takes it, on one
    thread, for batches of 16 and more.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or len(x) % 16:
        result: Tensor = layer(x)
        return result
    images = x.view(16, 1, -1, x.shape[1]).permute(0, 3, 1, 2)  # [16, in, 1, n / 16], channels_last
    return (
        F.conv2d(images, layer.weight[:, :, None, None], layer.bias)
        .permute(0, 2, 3, 1)
        .reshape(len(x), -1)
    )


def strips(features: Tensor, size: Sequence[int], channels: int) -> Iterator[slice]:
    """HR rows in strips whose content, ``channels`` numbers per LR pixel, stays under STRIP_BYTES.

    With gradients everything is kept anyway, and there is one strip.
    """
    batch, _, h, w = features.shape
    height = check_size(size, (h, w))[0]
    row_bytes = batch * w * channels * features.element_size() * h / height
    step = height if torch.is_grad_enabled() else max(1, int(STRIP_BYTES / row_bytes))
    for y in range(0, height, step):
        yield slice(y, min(y + step, height))


def grid_queries(
    rows: slice, width: int, chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Row and column of every HR pixel of a strip, ``[n]`` each, in chunks."""
    for query in torch.arange(rows.start * width, rows.stop * width, device=device).split(chunk):
        yield query // width, query % width


def check_pixels(yx: Tensor, features: Tensor) -> None:
    """ValueError unless yx is int64 ``[B, N, 2]`` for these features."""
    if (
        yx.ndim != 3
        or yx.shape[0] != features.shape[0]
        or yx.shape[-1] != 2
        or yx.dtype != torch.int64
    ):
        raise ValueError(
            f"yx must be int64 [{features.shape[0]}, N, 2], got {yx.dtype} {list(yx.shape)}"
        )
