"""LIIF, the local implicit image function (Chen, Liu & Wang, CVPR 2021, arXiv 2012.09161), in plain
PyTorch.

The published configuration: feature unfolding, local ensemble, cell decoding, and an MLP of five
layers. The first layer's product with the 3x3 neighbourhood is the same for all queries of one LR
pixel, and is done once per LR pixel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from diinn_fast.baselines.base import Baseline
from diinn_fast.baselines.project import (
    CHUNK,
    MLP,
    check_pixels,
    grid_queries,
    linear,
    project,
    strips,
)
from diinn_fast.encoders import channels_of
from diinn_fast.geometry import check_size, local_offset

WIDTH = 256
"""Hidden units of the MLP."""

Axis = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class LIIF(Baseline):
    """LIIF: ``[B, 3, h, w]`` to ``[B, 3, H, W]`` at any real scale; values normalised
    ``(v - 0.5) / 0.5``.

    The colour at a query is the mean of four predictions, one from each surrounding LR pixel (i,
    j), weighted by the area of the rectangle between the query and the LR pixel diagonally opposite
    (eq. 4). A prediction is ``imnet([x_ij, dy, dx, cell])``: x the 3x3 neighbourhood of features,
    (dy, dx) the query's position from the LR pixel and cell the HR pixel's size, both in LR
    half-pixels (eq. 2, 3 and 6).
    """

    def __init__(self, encoder: str | nn.Module = "edsr-baseline") -> None:
        super().__init__(encoder)
        self.imnet = MLP(channels_of(self.encoder) * 9 + 4, [WIDTH] * 4, 3)

    @classmethod
    def detect(cls, keys: Collection[str]) -> bool:
        """Whether a state_dict with these keys is LIIF's: its ``imnet`` has five layers, that of
        Meta-SR two.
        """
        return "imnet.layers.4.weight" in keys

    def forward(self, x: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """SR image at ``size`` (H, W); ``bsize`` limits the queries processed at a time."""
        return self.decode(self.encoder(x), size, bsize)

    def decode(self, features: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """RGB ``[B, 3, H, W]`` of features ``[B, C, h, w]``."""
        batch = features.shape[0]
        h, w = features.shape[-2:]
        height, width = check_size(size, (h, w))
        rows, columns = self._axes(features, (height, width))
        parts: list[list[Tensor]] = [[] for _ in range(batch)]
        # A strip of rows needs the content of its own LR rows alone, which bounds the memory.
        for strip in strips(features, (height, width), WIDTH):
            above = int(rows[0][0][strip.start])
            below = int(rows[1][0][strip.stop - 1]) + 1
            content = self._project(features, (height, width), slice(above, below))
            for y, x in grid_queries(strip, width, bsize or CHUNK, features.device):
                for image in range(batch):
                    parts[image].append(self._colours(content[image], y, x, rows, columns, above))
        # Queries are pixels in row order, so that a reshape makes them an image.
        return (
            torch.stack([torch.cat(part) for part in parts])
            .transpose(1, 2)
            .reshape(batch, 3, height, width)
        )

    def sample_pixels(self, features: Tensor, yx: Tensor, size: Sequence[int]) -> Tensor:
        """RGB ``[B, N, 3]`` of the HR pixels yx ``[B, N, 2]`` int64 (row, column): equals
        ``decode`` at those.
        """
        check_pixels(yx, features)
        h, w = features.shape[-2:]
        rows, columns = self._axes(features, check_size(size, (h, w)))
        content = self._project(features, size, slice(0, h))
        # Chunk by chunk, as in `decode`: activations of all pixels together may not fit.
        images = [
            torch.cat(
                [
                    self._colours(c, part[:, 0], part[:, 1], rows, columns, 0)
                    for part in points.split(CHUNK)
                ]
            )
            for c, points in zip(content, yx, strict=True)
        ]
        return torch.stack(images)

    @staticmethod
    def _axes(features: Tensor, size: tuple[int, int]) -> tuple[Axis, Axis]:
        """Both LR pixels around each HR row, and around each HR column."""
        rows, columns = (
            surrounding(n_in, n_out, features.device, features.dtype)
            for n_in, n_out in zip(features.shape[-2:], size, strict=True)
        )
        return rows, columns

    def _project(self, features: Tensor, size: Sequence[int], rows: slice) -> Tensor:
        """First layer without its position part, of every LR pixel of some rows:
        ``[B, rows, w, WIDTH]``.

        The cell is the same for all queries, and joins the bias.
        """
        h, w = features.shape[-2:]
        height, width = size
        first = self.imnet.linear(0)
        cell = first.weight.new_tensor([2 * h / height, 2 * w / width])
        return project(
            features, first.weight[:, :-4], first.bias + first.weight[:, -2:] @ cell, rows
        )

    def _colours(
        self, content: Tensor, y: Tensor, x: Tensor, rows: Axis, columns: Axis, origin: int
    ) -> Tensor:
        """RGB ``[n, 3]`` of HR pixels (y, x) of one image; content ``[rows, w, WIDTH]`` starts at
        row ``origin``.
        """
        pixels = []
        offsets = []
        for i, dy in rows:
            for j, dx in columns:
                pixels.append((i[y] - origin) * content.shape[1] + j[x])
                offsets.append(torch.stack([dy[y], dx[x]], dim=-1))
        position = torch.cat(offsets)  # [4n, 2]
        gathered = content.flatten(0, 1).index_select(0, torch.cat(pixels))
        hidden = torch.addmm(gathered, position, self.imnet.linear(0).weight[:, -4:-2].t()).relu_()
        for layer in range(1, 4):
            hidden = linear(hidden, self.imnet.linear(layer)).relu_()
        predictions = self.imnet.linear(4)(hidden).view(4, -1, 3)
        area = position.view(4, -1, 2).prod(dim=-1).abs() + 1e-9
        # Each prediction has the area of the opposite corner.
        result: Tensor = (predictions * (area.flip(0) / area.sum(0))[..., None]).sum(0)
        return result


def surrounding(n_in: int, n_out: int, device: torch.device, dtype: torch.dtype) -> Axis:
    """Both LR pixels around each HR position of one axis: (index, offset in LR half-pixels), each
    ``[n_out]``.

    They are floor(t) and floor(t) + 1 for a position ``t = (Y + 0.5) * n_in / n_out - 0.5`` in LR
    pixels, clamped to the image: at its border both are the same pixel.
    """
    positions = torch.arange(n_out, device=device)
    below = ((2 * positions + 1) * n_in - n_out).div(2 * n_out, rounding_mode="floor")
    first = below.clamp(0, n_in - 1)
    second = (below + 1).clamp(0, n_in - 1)
    return (
        (first, local_offset(0, n_out, first, n_in, n_out, dtype)),
        (second, local_offset(0, n_out, second, n_in, n_out, dtype)),
    )
