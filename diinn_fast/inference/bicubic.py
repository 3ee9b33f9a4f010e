"""Bicubic resizing of any window of the output: the same pixels, to the last bit, as of the
whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diinn_fast.geometry import Window


def resize_bicubic(
    planes: Tensor,
    size: tuple[int, int],
    window: Window,
    tile: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> Tensor:
    """The window of planes ``[C, h, w]`` in [0, 1] resized to ``size`` (H, W):
    ``[C, rows, columns]`` in [0, 1].

    What ``F.interpolate(mode="bicubic")`` computes, antialiased if the picture gets smaller.
    ``tile`` ((h, w), (i, j)) says that the planes are part of an image of h x w, from row i and
    column j on; `bicubic_range` must lie in it.
    """
    lr, (i, j) = tile or ((planes.shape[1], planes.shape[2]), (0, 0))
    smaller = size[0] < lr[0] or size[1] < lr[1]
    rows, row_weights = _taps(window.y0, window.y1, lr[0], size[0], smaller)
    columns, column_weights = _taps(window.x0, window.x1, lr[1], size[1], smaller)
    # In a fixed order, so that every window has the same bits: columns, rows; first to last tap.
    out = _weighted_sum(planes, columns - j, column_weights, 2)
    return _weighted_sum(out, rows - i, row_weights, 1).clamp_(0, 1)


def bicubic_range(window: Window, lr: tuple[int, int], size: tuple[int, int]) -> Window:
    """LR rows and columns that a window of the output is made of."""
    smaller = size[0] < lr[0] or size[1] < lr[1]
    rows, _ = _taps(window.y0, window.y1, lr[0], size[0], smaller)
    columns, _ = _taps(window.x0, window.x1, lr[1], size[1], smaller)
    return Window(int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)


def _weighted_sum(planes: Tensor, index: Tensor, weights: Tensor, dim: int) -> Tensor:
    shape = [1, 1, 1]
    shape[dim] = -1
    total = planes.new_zeros(())
    for tap in range(index.shape[1]):
        total = total + planes.index_select(dim, index[:, tap]) * weights[:, tap].view(shape)
    return total


def _taps(start: int, stop: int, n_in: int, n_out: int, antialias: bool) -> tuple[Tensor, Tensor]:
    """Positions, clamped to the axis, and float32 weights of the outputs ``start <= Y < stop``:
    ``[n, taps]`` each.

    Keys' cubic with a = -0.75, or with antialiasing a = -0.5, widened by the scale and cut off at
    the border.
    """
    scale = n_in / n_out
    wide = max(scale, 1.0) if antialias else 1.0
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * scale - 0.5
    first = centre.floor().long() - math.ceil(2 * wide) + 1
    index = first[:, None] + torch.arange(2 * math.ceil(2 * wide))
    weights = _cubic((centre[:, None] - index) / wide, -0.5 if antialias else -0.75)
    if antialias:
        weights = torch.where((index >= 0) & (index < n_in), weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return index.clamp_(0, n_in - 1), weights.float()


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys, "Cubic convolution interpolation", 1981."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
