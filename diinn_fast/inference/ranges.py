"""The sample range of a picture: chosen by its type, by what it holds, or by hand.

The network is trained on pictures that use their range. Data of 12 bits in 16-bit samples uses a
sixteenth of it, and is seen as a black picture with hardly any detail.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from diinn_fast.errors import UpscaleError
from diinn_fast.formats.image import check_unit, finite_ends, not_finite
from diinn_fast.formats.missing import TOPS
from diinn_fast.formats.sample_range import FULL, SampleRange
from diinn_fast.formats.sources import DerivedSource, Source
from diinn_fast.geometry import Window, split

log = logging.getLogger("diinn_fast")

Asked = str | Sequence[float]
"""``"dtype"``, ``"auto"``, or (low, high) in the picture's own sample values."""

DTYPE = "dtype"
AUTO = "auto"

LEAST_USED = 0.25
"""Share of the range below which a picture of more than 8 bits is warned of."""

SIDE = 1024
"""Pixels along a side of what is looked at at a time."""

Parts = Callable[[], Iterator[Tensor]]
"""Colours ``[3, ...]`` of all of a picture, part by part, as sources give them."""


def check_range(asked: Asked) -> Asked:
    """The request in its plain form; UpscaleError for what is none."""
    if isinstance(asked, str):
        if asked in (DTYPE, AUTO):
            return asked
    else:
        try:
            low, high = (float(end) for end in asked)
        except (TypeError, ValueError):
            # Whatever is no pair of numbers gets the one sentence below.
            low = high = math.nan
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    raise UpscaleError(
        f'range must be "dtype", "auto", or the lowest and the highest sample value, got {asked!r}'
    )


def choose_range(
    asked: Asked, top: float, parts: Parts, levels: tuple[float, float] | None = None
) -> SampleRange:
    """The range of a picture whose samples reach to ``top``; "auto" looks at all of it, and takes
    the ``levels`` that its file states if all samples lie within them.

    Raises UpscaleError for numbers that its samples cannot have, ImageError for NaN and infinity.
    """
    asked = check_range(asked)
    if asked == DTYPE:
        return FULL
    if asked == AUTO:
        # As numbers that can be given by hand: the same range is then the same job.
        low, high = (end * top for end in _extremes(parts()))
        if top != 1:
            low = round(low)
            high = round(high)
        if levels is not None and levels[0] <= low <= high <= levels[1] and _possible(levels, top):
            low = levels[0]
            high = levels[1]
        return SampleRange(low / top, high / top)
    low, high = (float(torch.tensor(float(end))) for end in asked)
    if top != 1 and not 0 <= low < high <= top:
        raise UpscaleError(
            f"range {low:g} to {high:g} is beyond what the picture's samples can be, 0 to {top:g}"
        )
    return SampleRange(low / top, high / top)


def _possible(levels: tuple[float, float], top: float) -> bool:
    """Whether samples of a type can be so: floats any, integers up to the largest."""
    return top == 1 or 0 <= levels[0] < levels[1] <= top


def warn_of_unused(asked: Asked, top: float, parts: Parts, what: str = "the picture") -> None:
    """Say of a picture of more than 8 bits that it uses little of its range."""
    if asked != DTYPE or top == TOPS["uint8"]:
        return
    low = math.inf
    high = -math.inf
    # Most pictures use their range and are settled by the first parts.
    for part in parts():
        ends = _extremes(iter([part]))
        low = min(low, ends[0])
        high = max(high, ends[1])
        if high - low >= LEAST_USED:
            return
    if low < high:
        log.warning(
            "%s uses %g to %g of the sample range 0 to %g, so the network sees little of "
            'its detail: give --range auto (range="auto"), or the lowest and the highest value',
            what,
            low * top,
            high * top,
            top,
        )


class RangedSource(DerivedSource):
    """Another source's picture in a sample range: colours in [0, 1], which stand for the range."""

    def __init__(self, source: Source, samples: SampleRange) -> None:
        super().__init__(source)
        self.range = samples
        if samples != FULL:
            self.identity += f" {samples}"

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`. ImageError for floats beyond [0, 1] if that is the range."""
        rgb, alpha = self._source.read(y0, y1, x0, x1)
        if self.range == FULL:
            check_unit(rgb)
        elif not bool(rgb.isfinite().all()):
            raise not_finite()
        return self.range.to_unit(rgb), alpha


def ranged(source: Source, asked: Asked) -> Source:
    """The source in the range that is asked for; as it is, where its samples cannot be others."""
    if check_range(asked) == DTYPE and source.dtype != "float32":
        return source
    levels = source.metadata.levels
    top = TOPS[source.dtype]
    return in_range(source, choose_range(asked, top, lambda: colours(source), levels))


def in_range(source: Source, samples: SampleRange) -> Source:
    """The source in a range that was chosen."""
    return RangedSource(source, samples)


def asked_of(source: Source) -> Asked:
    """The request that gives a source's range again."""
    top = TOPS[source.dtype]
    return DTYPE if source.range == FULL else (source.range.low * top, source.range.high * top)


def colours(source: Source) -> Iterator[Tensor]:
    """Colours of all of a source that can be seen, part by part."""
    for part in split(Window(0, source.height, 0, source.width), SIDE // 4, SIDE):
        yield visible(*source.read(*part))


def visible(rgb: Tensor, alpha: Tensor | None) -> Tensor:
    """The colours ``[3, n]`` of pixels that are not fully transparent."""
    flat = rgb.flatten(1)
    return flat if alpha is None else flat[:, alpha.flatten() > 0]


def _extremes(parts: Iterator[Tensor]) -> tuple[float, float]:
    """Lowest and highest; (0, 1) if there is nothing to see."""
    low = math.inf
    high = -math.inf
    for part in parts:
        if part.numel() == 0:
            continue
        lowest, highest = finite_ends(part)
        low = min(low, lowest)
        high = max(high, highest)
    return (low, high) if low <= high else (0.0, 1.0)
