"""Meta-SR (Hu et al., CVPR 2019, arXiv 1903.00875), as the LIIF and DIINN papers compare with it,
in plain PyTorch.

A small network predicts, per query, the weights of a 3x3 convolution from features to RGB. Its
output layer is linear, so the product with the neighbourhood is done once per LR pixel and 771
numbers instead of 576 x 3 weights are left per
query: the same function in about 1/300 of the multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diinn_fast.baselines.base import Baseline
from diinn_fast.baselines.project import (
    CHUNK,
    MLP,
    check_pixels,
    grid_queries,
    project,
    strips,
)
from diinn_fast.encoders import channels_of
from diinn_fast.geometry import check_size

WIDTH = 256
"""Hidden units of the network that predicts weights."""

Axis = tuple[Tensor, Tensor]


class MetaSR(Baseline):
    """Meta-SR: ``[B, 3, h, w]`` to ``[B, 3, H, W]`` at any real scale; values normalised
    ``(v - 0.5) / 0.5``.

    The query pixel's upper left corner lies in LR pixel (i, j), at (dy, dx) in [0, 1) from that
    pixel's upper left corner, in LR pixels. Its colour is ``x_ij M``: x the 3x3 neighbourhood of
    features (9C numbers), M ``[9C, 3]`` the output of ``imnet([dy, dx, h / H])`` (eq. 3 and 4).
    """

    def __init__(self, encoder: str | nn.Module = "edsr-baseline") -> None:
        super().__init__(encoder)
        self.imnet = MLP(3, [WIDTH], channels_of(self.encoder) * 9 * 3)

    def forward(self, x: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """SR image at ``size`` (H, W); ``bsize`` limits the queries processed at a time."""
        return self.decode(self.encoder(x), size, bsize)

    def decode(self, features: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """RGB ``[B, 3, H, W]`` of features ``[B, C, h, w]``."""
        batch = features.shape[0]
        h, w = features.shape[-2:]
        height, width = check_size(size, (h, w))
        rows = corner(*(h, height), features.device, features.dtype)
        columns = corner(*(w, width), features.device, features.dtype)
        parts: list[list[Tensor]] = [[] for _ in range(batch)]
        # A strip of rows needs the content of its own LR rows alone, which bounds the memory.
        for strip in strips(features, (height, width), 3 * (WIDTH + 1)):
            above = int(rows[0][strip.start])
            below = int(rows[0][strip.stop - 1]) + 1
            content = self._project(features, slice(above, below))
            for y, x in grid_queries(strip, width, bsize or CHUNK, features.device):
                # Filters depend on positions alone, so that all images of the batch share them.
                hidden = self._hidden(y, x, rows, columns, h / height)
                for image in range(batch):
                    parts[image].append(
                        _colours(content[image], hidden, rows[0][y] - above, columns[0][x])
                    )
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
        height, width = check_size(size, (h, w))
        rows = corner(*(h, height), features.device, features.dtype)
        columns = corner(*(w, width), features.device, features.dtype)
        images = []
        for content, points in zip(self._project(features, slice(0, h)), yx, strict=True):
            parts = []
            # Chunk by chunk, as in `decode`: filters of all pixels together may not fit.
            for y, x in (part.unbind(-1) for part in points.split(CHUNK)):
                hidden = self._hidden(y, x, rows, columns, h / height)
                parts.append(_colours(content, hidden, rows[0][y], columns[0][x]))
            images.append(torch.cat(parts))
        return torch.stack(images)

    def _project(self, features: Tensor, rows: slice) -> Tensor:
        """The output layer times the neighbourhood, ``[B, rows, w, 3 (WIDTH + 1)]``.

        Per colour one number for every hidden unit, then one for the bias.
        """
        last = self.imnet.linear(1)
        # [9C * 3, WIDTH + 1], row f * 3 + colour.
        matrix = torch.cat([last.weight, last.bias[:, None]], dim=1)
        matrix = matrix.view(-1, 3, WIDTH + 1).permute(1, 2, 0).flatten(0, 1)
        return project(features, matrix, matrix.new_zeros(len(matrix)), rows)

    def _hidden(self, y: Tensor, x: Tensor, rows: Axis, columns: Axis, ratio: float) -> Tensor:
        """Hidden layer ``[n, WIDTH]`` of the HR pixels (y, x)."""
        dy = rows[1][y]
        dx = columns[1][x]
        position = torch.stack([dy, dx, torch.full_like(dy, ratio)], dim=-1)
        return torch.relu(self.imnet.linear(0)(position))


def _colours(content: Tensor, hidden: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """RGB ``[n, 3]`` of one image's queries in LR pixels (i, j) of ``content``
    ``[rows, w, 3 (WIDTH + 1)]``.
    """
    gathered = (
        content.flatten(0, 1).index_select(0, i * content.shape[1] + j).view(len(i), 3, WIDTH + 1)
    )
    return (gathered[..., :-1] * hidden[:, None]).sum(-1) + gathered[..., -1]


def corner(n_in: int, n_out: int, device: torch.device, dtype: torch.dtype) -> Axis:
    """LR index of every HR pixel's corner on one axis, ``floor(Y n_in / n_out)``, and the rest in
    [0, 1).
    """
    scaled = torch.arange(n_out, device=device) * n_in
    return scaled // n_out, (scaled % n_out).to(dtype) / n_out
