"""What a window needs around it: HR pixels for layers that see neighbours, LR pixels for the 3x3
content.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diinn_fast.geometry import Window, lr_range


def grow(window: Window, size: tuple[int, int], by: int = 1) -> Window:
    """The window with ``by`` HR pixels around it, as far as the image of ``size`` has them."""
    y0, y1, x0, x1 = window
    height, width = size
    return Window(max(y0 - by, 0), _after(y1, by, height), max(x0 - by, 0), _after(x1, by, width))


def _after(stop: int, by: int, length: int) -> int:
    """``min(stop + by, length)``; of a whole axis without comparing numbers, so that an exported
    graph serves all sizes.
    """
    return length if stop == length else min(stop + by, length)


def lr_ranges(window: Window, lr: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """LR rows and columns that are nearest to a window's queries."""
    y0, y1, x0, x1 = window
    return slice(*lr_range(y0, y1, lr[0], size[0])), slice(*lr_range(x0, x1, lr[1], size[1]))


def with_border(
    features: Tensor, rows: slice, columns: slice, lr: tuple[int, int], origin: tuple[int, int]
) -> Tensor:
    """The image's ``features[..., rows, columns]`` with one pixel around: its neighbours, zeros
    outside the image.

    ``features`` are those of the image of size ``lr`` from ``origin`` on.
    """
    h, w = lr
    i, j = origin
    # Real neighbours where the image has some: a tile's border must not look like the image's.
    top = max(rows.start - 1, 0)
    left = max(columns.start - 1, 0)
    bottom = _after(rows.stop, 1, h)
    right = _after(columns.stop, 1, w)
    # Zeros only at the image's own edges, as the padding of the published convolution.
    pad = (
        int(columns.start == 0),
        int(columns.stop == w),
        int(rows.start == 0),
        int(rows.stop == h),
    )
    return F.pad(features[:, :, top - i : bottom - i, left - j : right - j], pad)


def sum_taps(taps: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """A 3x3 last layer: sum of nine shifted taps ``[B, 9 * channels, rows, columns]``, reflected at
    the image's borders.
    """
    y0, y1, x0, x1 = window
    pad = (int(x0 == 0), int(x1 == size[1]), int(y0 == 0), int(y1 == size[0]))
    taps = F.pad(taps, pad, mode="reflect")
    channels = taps.shape[1] // 9
    # torch.compile of PyTorch 2.9 does not see through a named tuple's property
    rows = y1 - y0
    columns = x1 - x0
    total = taps[:, :channels, 0:rows, 0:columns]
    for tap in range(1, 9):
        ky, kx = divmod(tap, 3)
        own = taps[:, channels * tap : channels * (tap + 1)]
        total = total + own[:, :, ky : ky + rows, kx : kx + columns]
    return total
