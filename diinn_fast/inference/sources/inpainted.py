"""A picture with alpha, with colour filled in under transparent pixels."""

from __future__ import annotations

from torch import Tensor

from diinn_fast.errors import UpscaleError
from diinn_fast.formats.sources import DerivedSource, Source
from diinn_fast.inference.bleed import bleed_alpha
from diinn_fast.inference.memory import size_text

PIXEL_BYTES = 60
"""Most bytes per pixel while it is made, with the pyramid and its weights."""

RESIDENT_BYTES = 16
"""Bytes per pixel that it holds: four floats."""


class InpaintedSource(DerivedSource):
    """Another source's picture, held in memory, inpainted under transparent pixels (see
    `bleed_alpha`): the colour there comes from all of the picture.
    """

    def __init__(self, source: Source, rgb: Tensor, alpha: Tensor) -> None:
        super().__init__(source)
        del self._source  # closed already; its samples would be held beside ours
        self._rgb = rgb
        self._alpha = alpha
        self.resident_bytes = RESIDENT_BYTES * rgb[0].numel()

    @classmethod
    def of(cls, source: Source, most: int | None) -> InpaintedSource:
        """Reads and closes the source. UpscaleError if it needs more than ``most`` bytes."""
        needed = PIXEL_BYTES * source.height * source.width
        if most is not None and needed > most:
            raise UpscaleError(
                f"a picture with alpha is held in memory, which takes {size_text(needed)}: "
                "give a larger --max-memory, or save it without alpha"
            )
        rgb, alpha = source.read(0, source.height, 0, source.width)
        source.close()
        assert alpha is not None
        return cls(source, bleed_alpha(rgb, alpha), alpha)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        return self._rgb[:, y0:y1, x0:x1], self._alpha[:, y0:y1, x0:x1]

    def close(self) -> None:
        """Nothing to release: the source is closed already."""
