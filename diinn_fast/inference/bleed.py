"""Colour under transparent pixels, so that a network sees no dark fringe around what is visible.

A picture is filled cell by cell, each from what is visible in and around it, so that all of it
need not be in memory, and that the result does not depend on which windows are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.geometry import Window

CELL = 256
"""Pixels along a side of a cell; cells begin at multiples of it."""

AROUND = 128
"""Pixels around a cell whose colours fill it."""

ReadWindow = Callable[[Window], tuple[Tensor, Tensor]]
"""A window's colours ``[3, h, w]`` and its alpha ``[1, h, w]``."""


def bleed_picture(rgb: Tensor, alpha: Tensor) -> Tensor:
    """All of a picture with colours under its transparent pixels."""
    size = rgb.shape[1], rgb.shape[2]

    def read(window: Window) -> tuple[Tensor, Tensor]:
        y0, y1, x0, x1 = window
        return rgb[:, y0:y1, x0:x1], alpha[:, y0:y1, x0:x1]

    return bleed_window(read, size, Window(0, size[0], 0, size[1]))[0]


def bleed_window(read: ReadWindow, size: tuple[int, int], window: Window) -> tuple[Tensor, Tensor]:
    """A window of a picture of ``size`` (height, width) with colours under its transparent pixels,
    and its alpha.
    """
    rgb, alpha = read(window)
    visible = alpha > 0
    if bool(visible.all()):
        return rgb, alpha
    out = rgb.clone()
    rows = range(window.y0 // CELL, -(-window.y1 // CELL))
    columns = range(window.x0 // CELL, -(-window.x1 // CELL))
    for row, column in product(rows, columns):
        y0, y1 = _within(row * CELL, (row + 1) * CELL, window.y0, window.y1)
        x0, x1 = _within(column * CELL, (column + 1) * CELL, window.x0, window.x1)
        place = slice(y0 - window.y0, y1 - window.y0), slice(x0 - window.x0, x1 - window.x0)
        if bool(visible[:, *place].all()):
            continue
        top, bottom = _within(row * CELL - AROUND, (row + 1) * CELL + AROUND, 0, size[0])
        left, right = _within(column * CELL - AROUND, (column + 1) * CELL + AROUND, 0, size[1])
        filled = bleed_alpha(*read(Window(top, bottom, left, right)))
        out[:, *place] = filled[:, y0 - top : y1 - top, x0 - left : x1 - left]
    return out, alpha


def _within(start: int, stop: int, low: int, high: int) -> tuple[int, int]:
    return max(start, low), min(stop, high)


def bleed_alpha(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replace the colour of fully transparent pixels by that of the visible ones nearby.

    Push-pull: a pyramid of alpha-weighted averages goes down to one pixel, and on the way up every
    pixel without a colour of its own takes the interpolated colour of the level below. Linear in
    the number of pixels, deterministic.

    Args:
        rgb: [3, h, w] float, any range.
        alpha: [1, h, w] float in [0, 1]; exactly 0 is fully transparent.

    Returns:
        [3, h, w], equal to `rgb` wherever alpha > 0 (and everywhere if no pixel is visible).
    """
    visible = alpha > 0
    if bool(visible.all()) or not bool(visible.any()):
        return rgb.clone()
    weight = alpha.to(torch.float32)
    filled = _fill(rgb.to(torch.float32) * weight, weight)
    return torch.where(visible, rgb, filled.to(rgb.dtype))


def _fill(weighted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Colour [3, h, w] of a level: weighted / weight where weight > 0, else from the next coarser
    one.
    """
    colour = weighted / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    empty = weight == 0
    if not bool(empty.any()):
        return colour
    coarse = _fill(_halve(_halve(weighted, 1), 2), _halve(_halve(weight, 1), 2))
    height, width = weight.shape[1:]
    fine = F.interpolate(coarse[None], scale_factor=2.0, mode="bilinear", align_corners=False)[0]
    return torch.where(empty, fine[:, :height, :width], colour)


def _halve(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Every second sample of a [1, 3, 3, 1] / 8 filter along `dim`: n -> ceil(n / 2), zeros beyond
    the edge.

    Slices and sums rather than a convolution: an empty neighbourhood must give exactly 0, which a
    Winograd or FFT convolution does not promise.
    """
    odd = values.shape[dim] % 2
    padding = [0, 0, 1, 1 + odd] if dim == 1 else [1, 1 + odd, 0, 0]
    padded = F.pad(values, padding)
    count = padded.shape[dim] // 2 - 1
    even = padded.unfold(dim, 2, 2).select(-1, 0)
    other = padded.unfold(dim, 2, 2).select(-1, 1)
    near = other.narrow(dim, 0, count) + even.narrow(dim, 1, count)
    far = even.narrow(dim, 0, count) + other.narrow(dim, 1, count)
    return near * 0.375 + far * 0.125
