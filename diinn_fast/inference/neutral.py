"""Neutral pictures: three equal channels, as most scans and line drawings are stored. Their output
is the mean of the network's three channels, as that of grey pictures, so that it is neutral too.
"""

from __future__ import annotations

from torch import Tensor

from diinn_fast.formats.sources import Source
from diinn_fast.geometry import Window, split

SIDE = 1024
"""Pixels along a side of what is looked at at a time."""


def is_neutral(rgb: Tensor) -> bool:
    """Whether all pixels of ``[3, h, w]`` have three equal channels."""
    return bool((rgb[0] == rgb[1]).all()) and bool((rgb[1] == rgb[2]).all())


def source_is_neutral(source: Source) -> bool:
    """The same of a whole source, read once at most: up to the first pixel with a colour."""
    if source.grey:
        return True
    whole = Window(0, source.height, 0, source.width)
    return all(is_neutral(source.read(*part)[0]) for part in split(whole, SIDE // 4, SIDE))
