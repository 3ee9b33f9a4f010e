"""The picture in memory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diinn_fast.errors import ImageError
from diinn_fast.files import explain
from diinn_fast.formats.missing import Missing
from diinn_fast.metadata import NOTHING, Metadata

TOLERANCE = 1e-3
"""How far rounding may have carried floating-point samples out of [0, 1]."""


@dataclass
class Image:
    """A picture in memory, together with what its file said about it.

    Attributes:
        rgb: [3, h, w] float32 in [0, 1], value = integer / (2**bits - 1); grey is replicated to 3
            channels.
        alpha: [1, h, w] float32 in [0, 1], not premultiplied, or None for an opaque picture.
        grey: the file is grey; it is written back as one channel, the mean of the three.
        bits: 8 or 16 per sample; 1, 2 and 4 bits and palettes count as 8. 32: floats, in [0, 1] or
            in another sample range.
        metadata: what else the file says.
        lossless: it comes from a file without loss of a format that may have loss (WebP), and is
            written so into such a format.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    bits: int = 8
    metadata: Metadata = NOTHING
    lossless: bool = False

    @property
    def dtype(self) -> str:
        """Type of the samples that it has in a file: "uint8", "uint16" or "float32"."""
        return "float32" if self.bits == 32 else f"uint{self.bits}"

    @property
    def missing(self) -> Missing | None:
        """What stands for missing samples, None if nothing does."""
        return Missing.of(self.metadata, self.dtype)

    @property
    def icc(self) -> bytes | None:
        """ICC profile, copied through; pixels are never converted."""
        return self.metadata.icc

    @property
    def dpi(self) -> tuple[float, float] | None:
        """(horizontal, vertical) resolution in dots per inch."""
        return self.metadata.dpi

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        quality: int = 95,
        lossless: bool = False,
    ) -> None:
        """Write the picture to ``path``, whose extension picks the format: `write_image`."""
        from diinn_fast.formats.write import write_image  # which needs this module

        write_image(path, self, overwrite=overwrite, quality=quality, lossless=lossless)


def to_float(samples: np.ndarray) -> torch.Tensor:
    """Integers [h, w] to float32 integer / (2**bits - 1); floats as they are."""
    if samples.dtype.kind == "f":
        return torch.from_numpy(samples.astype(np.float32, order="C"))
    return torch.from_numpy(samples.astype(np.float32, order="C")).div_(np.iinfo(samples.dtype).max)


def check_unit(values: torch.Tensor, missing: Missing | None = None) -> None:
    """ImageError for floats ``[C, h, w]`` that are not in [0, 1], but for rounding, and are not
    missing.
    """
    if missing is not None:
        values = missing.split(values, None)[0]
    low, high = finite_ends(values)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise ImageError(
            f"the picture has values from {low:g} to {high:g}: divide by the maximum, to "
            '[0, 1], or give a sample range (--range auto, range="auto").'
        )


def finite_ends(values: torch.Tensor) -> tuple[float, float]:
    """Lowest and highest of some floats; ImageError if any is NaN or infinite."""
    low, high = (float(value) for value in values.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise not_finite()
    return low, high


def not_finite() -> ImageError:
    """The refusal of floats that are no numbers."""
    return ImageError("the picture has NaN or infinite values: replace those values first.")


def already_exists(path: Path) -> ImageError:
    """The refusal to replace a file that nobody said may be replaced."""
    return ImageError(explain(path, FileExistsError()))
