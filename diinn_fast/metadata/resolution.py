"""Pixels per inch or centimetre, or only their shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from diinn_fast.metadata.exif import RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, Exif
from diinn_fast.metadata.scaling import Scaling

INCH = "inch"
CENTIMETRE = "cm"
METRE = "m"
UNKNOWN = ""
"""Units of length; with the last one the ratio of the two numbers is the shape of a pixel."""

UNITS = (INCH, CENTIMETRE, METRE, UNKNOWN)

_METRES = {INCH: 0.0254, CENTIMETRE: 0.01, METRE: 1.0}


@dataclass(frozen=True)
class Resolution:
    """Pixels per unit of length.

    Attributes:
        horizontal, vertical: pixels per unit, positive and finite.
        unit: "inch", "cm", "m", or "" where the file names none.
    """

    horizontal: float
    vertical: float
    unit: str = INCH

    @property
    def dpi(self) -> tuple[float, float] | None:
        """(horizontal, vertical) dots per inch; None without a unit."""
        return None if self.unit == UNKNOWN else self.per(INCH)

    def per(self, unit: str) -> tuple[float, float]:
        """(horizontal, vertical) pixels per another unit; KeyError without a unit."""
        if unit == self.unit:
            return self.horizontal, self.vertical
        factor = _METRES[unit] / _METRES[self.unit]
        return self.horizontal * factor, self.vertical * factor

    def aspect(self, most: int) -> tuple[int, int]:
        """Whole numbers up to ``most`` in the ratio of horizontal to vertical."""
        ratio = Fraction(self.horizontal / self.vertical).limit_denominator(most)
        if ratio.numerator > most:
            return most, 1
        return max(1, ratio.numerator), ratio.denominator

    @property
    def says_nothing(self) -> bool:
        """Square pixels of unknown size, as all pictures have unless they say otherwise."""
        return self.unit == UNKNOWN and self.horizontal == self.vertical

    def turned(self) -> Resolution:
        """Of the picture with its axes exchanged."""
        return replace(self, horizontal=self.vertical, vertical=self.horizontal)

    def rescaled(self, scaling: Scaling) -> Resolution:
        """So that the picture's size on paper, or in the world, stays."""
        return replace(
            self,
            horizontal=self.horizontal * float(scaling.across),
            vertical=self.vertical * float(scaling.down),
        )


def exif_resolution(exif: Exif | None) -> Resolution | None:
    """What EXIF says, whose tags are TIFF's."""
    if exif is None or exif.value(X_RESOLUTION) is None:
        return None
    number = exif.value(RESOLUTION_UNIT)
    unit = {1: UNKNOWN, 2: INCH, 3: CENTIMETRE}.get(2 if number is None else int(number))
    if unit is None:
        return None
    value = resolution(exif.value(X_RESOLUTION), exif.value(Y_RESOLUTION), unit)
    return None if value == Resolution(1, 1, UNKNOWN) else value


def resolution(horizontal: object, vertical: object, unit: str) -> Resolution | None:
    """What a file says, None where it is nothing that a picture can have."""
    try:
        numbers = float(horizontal), float(vertical)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if not all(math.isfinite(number) and 0 < number < 1e10 for number in numbers):
        return None
    return Resolution(*numbers, unit)
