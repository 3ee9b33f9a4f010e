"""The bands of a picture, each as a grey picture of its own."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from diinn_fast.formats.image import check_unit
from diinn_fast.formats.sources import DerivedSource, SampleSource, Source
from diinn_fast.inference.sources.memory import ImageSource


class BandSource(DerivedSource):
    """One band of another source's picture, with that one's alpha, if it has any."""

    def __init__(self, source: SampleSource | ImageSource, band: int, alpha: int | None) -> None:
        super().__init__(cast(Source, source))
        self._planes = source.planes
        self._channels = [band] if alpha is None else [band, alpha]
        self.grey = True
        self.alpha = self.masked = alpha is not None

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""
        planes = self._planes(y0, y1, x0, x1, self._channels)
        band = planes[:1].expand(3, -1, -1)
        if not self.alpha:
            return band, None
        check_unit(planes[1:])
        return band, planes[1:]


def each_band(source: SampleSource | ImageSource) -> list[Source]:
    """All bands but alpha, in order."""
    alpha = source.each.alpha
    numbers = [n for n in range(source.each.count) if n != alpha]
    return [BandSource(source, n, alpha) for n in numbers]
