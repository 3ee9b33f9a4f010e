"""Textures that tile: beyond an edge of the picture lies its opposite edge.

The picture is taken as the middle one of many copies of itself, so many that the network sees no
end of them. Nothing is stored twice: copies are read from the one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from diinn_fast.errors import UpscaleError
from diinn_fast.formats.sources import DerivedSource, Source
from diinn_fast.geometry import MAX_LENGTH, Window
from diinn_fast.inference.reduced import reduced_size

MARGIN = 4
"""LR pixels around the output beside the encoder's receptive radius: what the decoder and bicubic
interpolation look at.
"""


@dataclass(frozen=True)
class Frame:
    """Where the output lies on the grids on which it is computed.

    Attributes:
        lr, hr: (height, width) of all copies together, of what the network enlarges and of its
            output.
        copies: how many there are, down and across.
    """

    lr: tuple[int, int]
    hr: tuple[int, int]
    copies: tuple[int, int] = (1, 1)

    def place(self, window: Window) -> Window:
        """A window of the output, on the grid of all copies."""
        down, across = (
            length // count * (count // 2)
            for length, count in zip(self.hr, self.copies, strict=True)
        )
        return Window(window.y0 + down, window.y1 + down, window.x0 + across, window.x1 + across)


def frame_of_copies(lr: tuple[int, int], hr: tuple[int, int], encoder: nn.Module) -> Frame:
    """The frame of an LR picture in the middle of so many copies that no end of them is seen.

    Raises UpscaleError for an encoder that does not say how far it sees, and for sizes that are too
    large for a grid of copies.
    """
    radius = radius_of(encoder)
    small = reduced_size(lr, hr)
    down, across = (2 * -(-(radius + MARGIN) // length) + 1 for length in small)
    longest = max(down * max(lr[0], hr[0]), across * max(lr[1], hr[1]))
    if longest > MAX_LENGTH:
        raise UpscaleError(
            f"copies of an output of {hr[1]}x{hr[0]} pixels around it would be longer than "
            f"{MAX_LENGTH}: choose a smaller size, or leave out wrap"
        )
    return Frame(
        (down * small[0], across * small[1]), (down * hr[0], across * hr[1]), (down, across)
    )


def radius_of(encoder: nn.Module) -> int:
    """LR pixels on each side that a feature depends on; UpscaleError if that is not known."""
    radius = getattr(encoder, "receptive_radius", None)
    if not isinstance(radius, int):
        raise UpscaleError(
            "a picture that tiles needs an encoder that states its receptive_radius: leave out wrap"
        )
    return radius


class WrappedSource(DerivedSource):
    """Copies of another source's picture, side by side."""

    def __init__(self, source: Source, copies: tuple[int, int]) -> None:
        super().__init__(source, (copies[0] * source.height, copies[1] * source.width))

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""
        source = self._source
        rows = _cut(y0, y1, source.height)
        columns = _cut(x0, x1, source.width)
        parts = [[source.read(*down, *along) for along in columns] for down in rows]
        rgb = torch.cat([torch.cat([part[0] for part in row], 2) for row in parts], 1)
        if not source.masked:
            return rgb, None
        alpha = [torch.cat([cast(Tensor, part[1]) for part in row], 2) for row in parts]
        return rgb, torch.cat(alpha, 1)


def wrapped(source: Source, frame: Frame) -> Source:
    """The source of all copies; itself if it is alone."""
    return source if frame.copies == (1, 1) else WrappedSource(source, frame.copies)


def _cut(start: int, stop: int, period: int) -> list[tuple[int, int]]:
    """The parts of one period that ``start`` to ``stop`` is put together from, in order."""
    parts = []
    while start < stop:
        first = start % period
        last = min(period, first + stop - start)
        parts.append((first, last))
        start += last - first
    return parts
