"""Where a query pixel of the HR grid lies on the LR grid: the one home of index and offset
formulas.

Everything is separable: one index and one offset per HR row, one of each per HR column. Nothing
here is ever expanded to one tensor per query pixel; backends combine the row and column vectors
themselves.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_LENGTH = 1 << 24
"""Longest axis (pixels) for which the float32 formula's ``Y + 0.5`` and the offset numerators are
exact.
"""


class Window(NamedTuple):
    """Rows ``y0 <= Y < y1`` and columns ``x0 <= X < x1`` of the HR grid."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.y1 - self.y0, self.x1 - self.x0


def split(window: Window, rows: int, columns: int) -> Iterator[Window]:
    """The window in parts of at most that size, row by row."""
    y0, y1, x0, x1 = window
    for y in range(y0, y1, rows):
        for x in range(x0, x1, columns):
            yield Window(y, min(y + rows, y1), x, min(x + columns, x1))


def nearest_index(
    start: int, stop: int, n_in: int, n_out: int, device: torch.device | None = None
) -> Tensor:
    """LR index of each HR position ``start <= Y < stop`` along one axis: int64 ``[stop - start]``.

    ``min(floor((Y + 0.5) * s), n_in - 1)`` with ``s = float32(n_in) / float32(n_out)``, every
    operation rounded to
    float32: what ``F.interpolate(mode="nearest-exact")`` computes. This is the definition for all
        dtypes.
    """
    positions = torch.arange(start, stop, device=device).to(torch.float32)
    # a number takes the tensor's dtype before it multiplies: s is rounded to float32
    return ((positions + 0.5) * (n_in / n_out)).floor().long().clamp(max=n_in - 1)


def local_offset(
    start: int, stop: int, index: Tensor, n_in: int, n_out: int, dtype: torch.dtype
) -> Tensor:
    """Local coordinate of each HR position along one axis, in LR half-pixels: ``[stop - start]``,
    within [-1, 1].

    With pixel centres at ``-1 + (2k+1)/n`` it is ``(u_Y - v_i) * n_in``, that is exactly
    ``((2Y+1) * n_in - (2i+1) * n_out) / n_out``; the numerator is formed in int64, so that nothing
    cancels.
    """
    positions = torch.arange(start, stop, device=index.device)
    numerator = (2 * positions + 1) * n_in - (2 * index + 1) * n_out
    values = numerator.to(dtype)
    # By a tensor: by a number, CUDA would multiply with its rounded reciprocal.
    return values / torch.full_like(values, n_out)


def area_ratio(lr: Sequence[int], size: Sequence[int]) -> float:
    """The third position input: LR area over HR area, one number per image."""
    return (lr[0] * lr[1]) / (size[0] * size[1])


def lr_range(start: int, stop: int, n_in: int, n_out: int) -> tuple[int, int]:
    """First and one-past-last LR index that the HR positions ``start <= Y < stop`` use (the map is
    monotone); of a whole axis, all of them.
    """
    if start == 0 and stop == n_out:
        return 0, n_in  # without looking at the numbers, so that one graph serves all sizes
    return _nearest_int(start, n_in, n_out), _nearest_int(stop - 1, n_in, n_out) + 1


def _nearest_int(position: int, n_in: int, n_out: int) -> int:
    """``nearest_index`` of one position in plain Python: float32 rounding of exact double
    products.
    """
    scale = round_float32(n_in / n_out)
    return min(math.floor(round_float32((position + 0.5) * scale)), n_in - 1)


def round_float32(value: float) -> float:
    """Round a Python float to float32: 24 significant bits, half to even (no subnormals occur
    here).
    """
    if value == 0.0:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * (1 << 24)), exponent - 24)


def whole_number(value: Any, name: str) -> int:
    """A number of pixels: an integer as it is, a float if it is within 1e-3 of one, or within
    float32's rounding of three operations.

    A float is what ``2 / cell`` and ``scale * height`` give, and cutting it would lose a pixel.
    """
    if isinstance(value, int | torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)
    except TypeError:
        number = float(value)
    rounding = max(1e-3, min(3 * 2**-24 * abs(number), 0.25))
    if not math.isfinite(number) or abs(number - round(number)) > rounding:
        raise ValueError(f"{name} must be a whole number of pixels, got {number}: round it first")
    return round(number)


def check_size(size: Sequence[int], lr: Sequence[int]) -> tuple[int, int]:
    """Validate LR and HR sizes ``(height, width)`` and return the HR size as two ints."""
    if len(size) != 2:
        raise ValueError(f"size must be (height, width), got {tuple(size)}")
    height = whole_number(size[0], "HR height")
    width = whole_number(size[1], "HR width")
    # Within these lengths float32 indices of the published formula are exact.
    for name, n in (
        ("HR height", height),
        ("HR width", width),
        ("LR height", lr[0]),
        ("LR width", lr[1]),
    ):
        if not 1 <= n <= MAX_LENGTH:
            raise ValueError(f"{name} must be between 1 and {MAX_LENGTH} pixels, got {n}")
    return height, width


def check_window(window: Sequence[int] | None, size: tuple[int, int]) -> Window:
    """Validate a window (y0, y1, x0, x1) of the HR grid; None means all of it."""
    if window is None:
        return Window(0, size[0], 0, size[1])
    if len(window) != 4:
        raise ValueError(f"window must be (y0, y1, x0, x1), got {tuple(window)}")
    y0, y1, x0, x1 = (whole_number(v, "a side of the window") for v in window)
    if not (0 <= y0 < y1 <= size[0] and 0 <= x0 < x1 <= size[1]):
        raise ValueError(
            f"window {(y0, y1, x0, x1)} must be non-empty and lie inside the {size[0]}x{size[1]} "
            "output"
        )
    return Window(y0, y1, x0, x1)


def hr_size(
    lr: Sequence[int], size: Sequence[int] | None, scale: float | Sequence[float] | None
) -> tuple[int, int]:
    """HR size from exactly one of ``size`` (height, width) and ``scale``, checked."""
    if size is not None and scale is None:
        return check_size(size, lr)
    if scale is not None and size is None:
        return check_size(size_for_scale(lr, scale), lr)
    raise ValueError("give either size=(height, width) or scale=, and not both")


def size_for_scale(lr: Sequence[int], scale: float | Sequence[float]) -> tuple[int, int]:
    """HR size for a scale (one number, or one per axis): ``max(1, floor(s * n + 0.5))`` per
    axis.
    """
    scales = (scale, scale) if isinstance(scale, (int, float)) else tuple(scale)
    if len(scales) != 2 or not all(math.isfinite(s) and s > 0 for s in scales):
        raise ValueError(f"scale must be one or two positive finite numbers, got {scale}")
    height, width = (max(1, math.floor(s * n + 0.5)) for s, n in zip(scales, lr[:2], strict=True))
    return height, width
