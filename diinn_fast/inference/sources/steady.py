"""A picture that is read for as long as a program runs, and must stay the one that was opened."""

from __future__ import annotations

from torch import Tensor

from diinn_fast.errors import ImageError
from diinn_fast.formats.sources import DerivedSource


class SteadySource(DerivedSource):
    """Another source's picture, until its file is written into."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`. ImageError as soon as the file has changed."""
        found = self._source.read(y0, y1, x0, x1)
        # Only afterwards is it known that what was read belongs to the rest of the picture.
        if self._source.changed():
            raise ImageError("the picture's file has changed since it was opened: open it again.")
        return found
