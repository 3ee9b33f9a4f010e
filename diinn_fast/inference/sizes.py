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
    """

    scale: float | Sequence[float] | None
    size: Sequence[int] | None
    long_side: int | None


def target_size(
    lr: Sequence[int],
    *,
    scale: float | Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    long_side: int | None = None,
) -> tuple[int, int]:
    """Output size (height, width) of an LR size (height, width), by at most one of the three; x4
    without any.

    ``scale`` is one number or one per axis (y, x): ``max(1, floor(s * n + 0.5))``; ``long_side``
    keeps the aspect. Raises UpscaleError.
    """
    if sum(v is not None for v in (scale, size, long_side)) > 1:
        raise UpscaleError("give only one of scale, size and long side")
    height, width = lr
    try:
        if long_side is not None:
            wanted = operator.index(long_side)
            longest = max(height, width)
            height = max(1, (2 * height * wanted + longest) // (2 * longest))
            width = max(1, (2 * width * wanted + longest) // (2 * longest))
            if wanted < 1:
                height = wanted
                width = wanted
        elif size is not None:
            height, width = (operator.index(n) for n in size)
        else:
            wanted_scale: Any = DEFAULT_SCALE if scale is None else scale
            scales = (
                float(wanted_scale)
                if isinstance(wanted_scale, numbers.Real)
                else tuple(wanted_scale)
            )
            height, width = size_for_scale((height, width), scales)
    except OverflowError:
        raise UpscaleError(f"scale {scale} is too large") from None
    except (TypeError, ValueError):
        raise UpscaleError(_misfit(scale, size, long_side)) from None
    if not (1 <= height <= MAX_LENGTH and 1 <= width <= MAX_LENGTH):
        raise UpscaleError(
            f"an output of {width}x{height} pixels cannot be made: each side must be 1 to "
            f"{MAX_LENGTH}"
        )
    return height, width


def _misfit(scale: Any, size: Any, long_side: Any) -> str:
    if long_side is not None:
        return f"long side must be a whole number of pixels, got {long_side}"
    if size is not None:
        return f"size must be two whole numbers, height and width, got {size}"
    return f"scale must be one or two positive finite numbers, got {scale}"


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
    beyond = [s for s in scales if s >= 1 and not low <= s <= high]
    if beyond:
        log.warning(
            "scale %.3g is outside the range that this model is trained for (%g to %g): expect "
            "less detail than asked for",
            max(beyond, key=lambda s: abs(math.log(s))),
            low,
            high,
        )
