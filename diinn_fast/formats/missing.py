"""Missing samples: those equal to the value that a GeoTIFF calls nodata. They are no colours, and
are treated as what lies under an alpha channel: never mixed with their neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diinn_fast.metadata import Metadata, geotiff

TOPS = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
"""What a sample of 1 is, by the type of samples."""

LEAST = 0.5
"""Share of valid samples from which on a resized pixel is valid."""


@dataclass(frozen=True)
class Missing:
    """The value that stands for missing samples.

    Attributes:
        value: as the file has it; may be NaN or infinite in floats.
        dtype: of the samples, "uint8", "uint16" or "float32".
    """

    value: float
    dtype: str

    @classmethod
    def of(cls, metadata: Metadata, dtype: str) -> Missing | None:
        """What the metadata says; None if it says nothing, or nothing that samples can be."""
        value = geotiff.nodata(metadata.geo)
        if value is None:
            return None
        if dtype != "float32":
            possible = 0 <= value <= TOPS[dtype] and value == int(value)
            return cls(value, dtype) if possible else None
        with np.errstate(over="ignore"):
            return cls(float(np.float32(value)), dtype)

    @property
    def unit(self) -> float:
        """The value as sources give samples."""
        return self.value / TOPS[self.dtype]

    def find(self, colours: Tensor) -> Tensor:
        """Which pixels ``[h, w]`` of ``[C, h, w]``, as sources give them, are missing: those of
        which all channels have the value.
        """
        if math.isnan(self.value):
            return colours.isnan().all(0)
        if self.dtype == "float32":
            return (colours == self.value).all(0)
        return ((colours * TOPS[self.dtype] - self.value).abs() <= 0.5).all(0)

    def split(self, colours: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
        """(colours, 0 where they are missing; an alpha that is 0 there), as sources give them."""
        missing = self.find(colours)
        valid = (~missing)[None].to(colours.dtype)
        return colours.masked_fill(missing, 0.0), valid if alpha is None else alpha * valid

    def put(self, samples: Tensor, alpha: Tensor, *, half: bool) -> None:
        """Write the value into the missing pixels of samples ``[C, h, w]`` of an output, and make
        sure that no other pixel has it.

        Args:
            samples: integers, or floats as sources give them.
            alpha: ``[1, h, w]`` of the same pixels.
            half: pixels are missing from an alpha of `LEAST` down; else where it is 0.
        """
        array = samples.numpy()  # the same memory; PyTorch has few operations on uint16
        integers = array.dtype.kind == "u"
        value = self.value if integers else self.unit
        same = (array == value).all(0) if integers else self.find(samples).numpy()
        array[:, same] = self._beside if integers else self._beside / TOPS[self.dtype]
        absent = alpha[0] < LEAST if half else alpha[0] <= 0
        array[:, absent.numpy()] = value

    @property
    def _beside(self) -> float:
        """The next value, for valid samples that would be taken for missing."""
        if self.dtype != "float32":
            return self.value + (1 if self.value < TOPS[self.dtype] else -1)
        if not math.isfinite(self.value):
            return 0.0  # which no finite sample needs
        return float(np.nextafter(np.float32(self.value), np.float32(np.inf)))
