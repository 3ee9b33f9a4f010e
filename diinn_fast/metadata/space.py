"""The physical grid of an array: what OME-Zarr's coordinate transformations say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diinn_fast.metadata.microscopy import METRES
from diinn_fast.metadata.resolution import METRE, Resolution, resolution
from diinn_fast.metadata.scaling import Scaling

_UNITS = {1.0: "meter", 1e-2: "centimeter", 1e-3: "millimeter", 1e-6: "micrometer"}
_MICROMETRE = 1e-6


@dataclass(frozen=True)
class Space:
    """Where the centres of pixels lie.

    Attributes:
        scale: (down, across) from one centre to the next.
        translation: of the first pixel's centre.
        unit: of both, by its name in OME-Zarr; None if unknown.
    """

    scale: tuple[float, float]
    translation: tuple[float, float] = (0.0, 0.0)
    unit: str | None = None

    @classmethod
    def of(cls, pixels: Resolution | None) -> Space | None:
        """Of pixels per metre, in micrometres."""
        if pixels is None or pixels.dpi is None:
            return None
        horizontal, vertical = pixels.per(METRE)
        scale = 1 / (vertical * _MICROMETRE), 1 / (horizontal * _MICROMETRE)
        return cls(scale, unit=_UNITS[_MICROMETRE])

    @property
    def resolution(self) -> Resolution | None:
        """Pixels per metre; None without a unit of length."""
        metres = METRES.get(self.unit or "")
        if metres is None or 0 in self.scale:
            return None
        return resolution(1 / (self.scale[1] * metres), 1 / (self.scale[0] * metres), METRE)

    def rescaled(self, scaling: Scaling) -> Space:
        """Of the same ground under another grid."""
        factors = float(scaling.down), float(scaling.across)
        moved = [
            start + step * (0.5 / factor - 0.5)
            for start, step, factor in zip(self.translation, self.scale, factors, strict=True)
        ]
        scale = self.scale[0] / factors[0], self.scale[1] / factors[1]
        return replace(self, scale=scale, translation=(moved[0], moved[1]))
