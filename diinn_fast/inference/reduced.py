"""Smaller pictures. The network is trained to enlarge: an axis that gets shorter is reduced before
it, by antialiased bicubic interpolation, and a picture that gets no larger along either axis never
reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diinn_fast.errors import ImageError
from diinn_fast.formats.sources import DerivedSource, Source
from diinn_fast.geometry import Window, split
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.sources.inpainted import InpaintedSource

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
        inner = getattr(source, "working_bytes", 0)
        self.working_bytes = int(PIXEL_BYTES * read[0] * read[1]) + inner

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""
        rgb = torch.empty(3, y1 - y0, x1 - x0)
        alpha = torch.empty(1, y1 - y0, x1 - x0) if self.masked else None
        # Filters look at more pixels than they make: small parts bound how many are held.
        for part, needed, place in self._parts(Window(y0, y1, x0, x1)):
            colours, opacity = self._source.read(*needed)
            rgb[place] = self._resized(colours, part, needed)
            if alpha is not None and opacity is not None:
                alpha[place] = self._resized(opacity, part, needed)
        return rgb, alpha

    def read_alpha(self, y0: int, y1: int, x0: int, x1: int) -> Tensor:
        """Alpha ``[1, ...]`` alone."""
        alpha = torch.empty(1, y1 - y0, x1 - x0)
        for part, needed, place in self._parts(Window(y0, y1, x0, x1)):
            alpha[place] = self._resized(read_alpha(self._source, needed), part, needed)
        return alpha

    def _parts(self, window: Window) -> Iterator[tuple[Window, Window, tuple[slice, ...]]]:
        """(window of the output, what it is made of, where it goes), a few pixels at a time."""
        for part in split(window, self._step[0], self._step[1]):
            needed = bicubic_range(part, self._lr, (self.height, self.width))
            rows = slice(part.y0 - window.y0, part.y1 - window.y0)
            columns = slice(part.x0 - window.x0, part.x1 - window.x0)
            yield part, needed, (slice(None), rows, columns)

    def _resized(self, planes: Tensor, part: Window, needed: Window) -> Tensor:
        tile = self._lr, (needed.y0, needed.x0)
        return resize_bicubic(planes, (self.height, self.width), part, tile)


def read_alpha(source: Source, window: Window) -> Tensor:
    """Alpha ``[1, ...]`` of a window of a picture that has one."""
    if isinstance(source, (InpaintedSource, ReducedSource)):
        return source.read_alpha(*window)
    alpha = source.read(*window)[1]
    if alpha is None:
        raise ImageError("the picture has lost its alpha: open it again.")
    return alpha


def reduced(source: Source, hr: tuple[int, int]) -> Source:
    """The source of what the network enlarges to ``hr``."""
    lr = source.height, source.width
    size = reduced_size(lr, hr)
    return source if size == lr else ReducedSource(source, size)
