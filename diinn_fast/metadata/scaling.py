"""How the pixel grid of a picture changes, which is what metadata of places and sizes follow."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Scaling:
    """A picture of ``old`` (height, width) becomes one of ``new``.

    Along both grids a coordinate is 0 at the left border of the first pixel, so x becomes
    ``x * across``, and the centre of a pixel, i, becomes ``(i + 0.5) * across - 0.5``.
    """

    old: tuple[int, int]
    new: tuple[int, int]

    @property
    def down(self) -> Fraction:
        """Vertical factor."""
        return Fraction(self.new[0], self.old[0])

    @property
    def across(self) -> Fraction:
        """Horizontal factor."""
        return Fraction(self.new[1], self.old[1])
