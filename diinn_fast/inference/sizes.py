"""How large the output becomes."""

from __future__ import annotations

import logging
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, TypedDict

from diinn_fast.errors import UpscaleError
from diinn_fast.geometry import MAX_LENGTH, size_for_scale

log = logging.getLogger("diinn_fast")

DEFAULT_SCALE = 4.0


class TargetSize(TypedDict, total=False):
    """How large the output becomes, by at most one of these; x4 without any.

    Attributes:
        scale: factor, one number or one per axis (y, x). Any positive number.
        size: exact output (height, width).
        long_side: longer side of the output in pixels, keeping the aspect ratio.
        width, height: of the output in pixels; one alone keeps the aspect ratio.
    """

    scale: float | Sequence[float] | None
    size: Sequence[int] | None
    long_side: int | None
    width: int | None
    height: int | None


def target_size(
    lr: Sequence[int],
    *,
    scale: float | Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    long_side: int | None = None,
    width: int | None = None,
    height: int | None = None,
) -> tuple[int, int]:
    """Output size (height, width) of an LR size (height, width), by at most one of the choices of
    `TargetSize`; x4 without any.

    ``scale`` is one number or one per axis (y, x): ``max(1, floor(s * n + 0.5))``; what keeps the
    aspect rounds the other side half up. Raises UpscaleError.
    """
    sides = (height, width) if width is not None or height is not None else None
    if sum(choice is not None for choice in (scale, size, long_side, sides)) > 1:
        raise UpscaleError("give only one of scale, size, long side, and width or height")
    # True would be a scale of 1.
    if any(isinstance(choice, bool) for choice in (scale, long_side, width, height)):
        raise UpscaleError(_misfit(scale, size, long_side, sides))
    try:
        # Whatever Python makes of odd arguments becomes one sentence that names them.
        hr = _chosen_size(lr, scale, size, long_side, sides)
    except OverflowError:
        raise UpscaleError(f"scale {scale} is too large") from None
    except (TypeError, ValueError):
        raise UpscaleError(_misfit(scale, size, long_side, sides)) from None
    if not (1 <= hr[0] <= MAX_LENGTH and 1 <= hr[1] <= MAX_LENGTH):
        raise UpscaleError(
            f"an output of {hr[1]}x{hr[0]} pixels cannot be made: each side must be 1 to "
            f"{MAX_LENGTH}"
        )
    return hr


def _chosen_size(
    lr: Sequence[int], scale: Any, size: Any, long_side: Any, sides: Any
) -> tuple[int, int]:
    """Of at most one choice, before its limits are checked."""
    if long_side is not None:
        return _keeping_aspect(lr, 0 if lr[0] >= lr[1] else 1, operator.index(long_side))
    if sides is not None and None in sides:
        axis = 0 if sides[0] is not None else 1
        return _keeping_aspect(lr, axis, operator.index(sides[axis]))
    exact = sides if size is None else size
    if exact is not None:
        rows, columns = (operator.index(n) for n in exact)
        return rows, columns
    wanted: Any = DEFAULT_SCALE if scale is None else scale
    factor = float(wanted) if isinstance(wanted, numbers.Real) else tuple(wanted)
    return size_for_scale((lr[0], lr[1]), factor)


def _keeping_aspect(lr: Sequence[int], axis: int, length: int) -> tuple[int, int]:
    """(height, width) of which the one along ``axis`` is given; itself if it is no length."""
    if length < 1:
        return length, length
    other = max(1, (2 * lr[1 - axis] * length + lr[axis]) // (2 * lr[axis]))
    return (length, other) if axis == 0 else (other, length)


def _misfit(scale: Any, size: Any, long_side: Any, sides: Any) -> str:
    if long_side is not None:
        return f"long side must be a whole number of pixels, got {long_side}"
    if sides is not None:
        given = ", ".join(str(n) for n in sides if n is not None)
        return f"width and height must be whole numbers of pixels, got {given}"
    if size is not None:
        return f"size must be two whole numbers, height and width, got {size}"
    return f"scale must be one or two positive finite numbers, got {scale}"


def warn_of_aspect(lr: tuple[int, int], hr: tuple[int, int], target: TargetSize) -> None:
    """Say that a size asked for in pixels stretches the picture, by more than rounding."""
    both = target.get("width") is not None and target.get("height") is not None
    if target.get("size") is None and not both:
        return
    # The factors along both axes that rounding of either size leaves possible.
    (low_y, high_y), (low_x, high_x) = (
        ((out - 0.5) / (n + 0.5), (out + 0.5) / (n - 0.5)) for out, n in zip(hr, lr, strict=True)
    )
    if high_y < low_x or high_x < low_y:
        log.warning(
            "the output of %dx%d has another aspect than the picture of %dx%d, which is stretched "
            "x%.3g across and x%.3g down: give the width or the height alone to keep it",
            hr[1],
            hr[0],
            lr[1],
            lr[0],
            hr[1] / lr[1],
            hr[0] / lr[0],
        )


def warn_of_scale(
    lr: tuple[int, int], hr: tuple[int, int], trained_scales: tuple[float, float]
) -> None:
    """Say of a picture that its scale is beyond what the model is trained for."""
    scales = [out / n for out, n in zip(hr, lr, strict=True)]
    low, high = trained_scales
    if min(scales) < 1:
        log.warning(
            "the output of %dx%d pixels is smaller than the picture of %dx%d: what gets smaller is "
            "reduced by bicubic interpolation",
            *reversed(hr),
            *reversed(lr),
        )
    # The scale that is furthest out, in factors, speaks for both axes.
    beyond = [s for s in scales if s >= 1 and not low <= s <= high]
    if beyond:
        log.warning(
            "scale %.3g is outside the range that this model is trained for (%g to %g): expect "
            "less detail than asked for",
            max(beyond, key=lambda s: abs(math.log(s))),
            low,
            high,
        )
