"""Smaller pictures. The network is trained to enlarge: an axis that gets shorter is reduced before
it, by antialiased bicubic interpolation, and a picture that gets no larger along either axis never
reaches it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diinn_fast.formats.sources import DerivedSource, Source
from diinn_fast.geometry import Window, split
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic

SIDE = 512
"""Picture pixels along a side of what is read at a time, beside the filter's margins."""

PIXEL_BYTES = 60
"""Bytes held per picture pixel that is read at a time: samples, floats, and sums along rows."""


def reduced_size(lr: tuple[int, int], hr: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what the network enlarges to ``hr``; ``hr`` itself if nothing is left to
    enlarge.
    """
    return min(lr[0], hr[0]), min(lr[1], hr[1])


def needs_network(lr: tuple[int, int], hr: tuple[int, int]) -> bool:
    """Whether an axis gets longer, or none changes."""
    return hr == lr or hr[0] > lr[0] or hr[1] > lr[1]


def reduce_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes ``[C, h, w]`` in [0, 1] at a size that is not larger; as they are if it is theirs."""
    if tuple(planes.shape[1:]) == size:
        return planes
    return resize_bicubic(planes, size, Window(0, size[0], 0, size[1]))


class ReducedSource(DerivedSource):
    """Another source's picture at a smaller size, made of regions as they are asked for: the same
    pixels, to the last bit, as of the whole.

    Attributes:
        working_bytes: most memory that a read takes for a while.
    """

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        super().__init__(source, size)
        self._lr = source.height, source.width
        factors = [old / new for old, new in zip(self._lr, size, strict=True)]
        self._step = [max(1, int(SIDE / factor)) for factor in factors]
        read = [
            min(length, step * factor + 4 * factor)
            for length, step, factor in zip(self._lr, self._step, factors, strict=True)
        ]
        self.working_bytes = int(PIXEL_BYTES * read[0] * read[1])

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""
        size = self.height, self.width
        rgb = torch.empty(3, y1 - y0, x1 - x0)
        alpha = torch.empty(1, y1 - y0, x1 - x0) if self.alpha else None
        # Filters look at more pixels than they make: small parts bound how many are held.
        for part in split(Window(y0, y1, x0, x1), self._step[0], self._step[1]):
            needed = bicubic_range(part, self._lr, size)
            tile = self._lr, (needed.y0, needed.x0)
            colours, opacity = self._source.read(*needed)
            place = (
                slice(None),
                slice(part.y0 - y0, part.y1 - y0),
                slice(part.x0 - x0, part.x1 - x0),
            )
            rgb[place] = resize_bicubic(colours, size, part, tile)
            if alpha is not None and opacity is not None:
                alpha[place] = resize_bicubic(opacity, size, part, tile)
        return rgb, alpha


def reduced(source: Source, hr: tuple[int, int]) -> Source:
    """The source of what the network enlarges to ``hr``."""
    lr = source.height, source.width
    size = reduced_size(lr, hr)
    return source if size == lr else ReducedSource(source, size)
