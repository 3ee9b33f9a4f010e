"""A picture with a value that stands for missing samples: those are transparent, and no colours."""

from __future__ import annotations

from torch import Tensor

from diinn_fast.formats.missing import Missing
from diinn_fast.formats.sources import DerivedSource, Source


class MissingSource(DerivedSource):
    """Another source's picture, whose missing samples are fully transparent."""

    def __init__(self, source: Source, missing: Missing) -> None:
        super().__init__(source)
        self.missing = self._missing = missing
        self.masked = True

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        return self._missing.split(*self._source.read(y0, y1, x0, x1))


def without_missing(source: Source) -> Source:
    """The source without the samples that its metadata calls missing; as it is if there can be
    none.
    """
    missing = Missing.of(source.metadata, source.dtype)
    return source if missing is None else MissingSource(source, missing)
