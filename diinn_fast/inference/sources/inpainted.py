"""A picture with alpha or missing samples, whose colour goes on under them."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from diinn_fast.formats.sources import DerivedSource, Source
from diinn_fast.geometry import Window
from diinn_fast.inference.bleed import AROUND, CELL, bleed_window

PIXEL_BYTES = 60
"""Most bytes per pixel of a cell and what is around it, with the pyramid and its weights."""


class InpaintedSource(DerivedSource):
    """Another source's picture, inpainted under transparent pixels (see `bleed_alpha`).

    Attributes:
        working_bytes: most memory that a read takes for a while.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        sides = [min(CELL + 2 * AROUND, length) for length in (source.height, source.width)]
        inner = getattr(source, "working_bytes", 0)
        self.working_bytes = PIXEL_BYTES * sides[0] * sides[1] + inner

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        size = self.height, self.width
        return bleed_window(self._read, size, Window(y0, y1, x0, x1))

    def read_alpha(self, y0: int, y1: int, x0: int, x1: int) -> Tensor:
        """Alpha ``[1, ...]`` alone, for which nothing is filled."""
        return self._read(Window(y0, y1, x0, x1))[1]

    def _read(self, window: Window) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self._source.read(*window))


def inpainted(source: Source) -> Source:
    """The source without colours of what cannot be seen; as it is if all can."""
    return InpaintedSource(source) if source.masked else source
