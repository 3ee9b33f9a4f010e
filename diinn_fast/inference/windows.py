"""Samples of a window of the output, as the picture's kind has them: the same for a render and a
view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diinn_fast.formats.missing import Missing
from diinn_fast.formats.sample_range import SampleRange
from diinn_fast.geometry import Window
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.engine import Engine, rounded, store, to_unit
from diinn_fast.inference.reduced import read_alpha
from diinn_fast.inference.sources import Source
from diinn_fast.inference.transfer import Download


class Kind(Protocol):
    """What samples are: attributes of a `Source`."""

    @property
    def grey(self) -> bool:
        """See `Source`."""

    @property
    def alpha(self) -> bool:
        """See `Source`."""

    @property
    def range(self) -> SampleRange:
        """See `Source`."""

    @property
    def missing(self) -> Missing | None:
        """See `Source`."""


@dataclass(frozen=True)
class Place:
    """Which channels of the output a source fills: a picture all, a band its own.

    Attributes:
        colours: of grey or RGB.
        alpha: None: none.
    """

    colours: slice
    alpha: int | None = None


def place_of(source: Kind) -> Place:
    """Of a picture: grey or RGB, then alpha."""
    count = 1 if source.grey else 3
    return Place(slice(0, count), count if source.alpha else None)


def write_samples(
    samples: np.ndarray,
    engine: Engine,
    source: Source,
    features: Tensor,
    origin: tuple[int, int],
    window: Window,
    hr: tuple[int, int],
    neutral: bool,
) -> None:
    """Fill ``[rows, columns, C]`` with the window of the output of size ``hr``.

    ``features`` ``[1, C, h, w]`` are those of the LR picture from row and column ``origin`` on, and
    hold all that the window looks at. Of a ``neutral`` picture all channels get their mean. Raises
    FloatingPointError if the network's output is not finite.
    """
    start_samples(samples, engine, source, features, origin, window, hr, neutral)()


def start_samples(
    samples: np.ndarray,
    engine: Engine,
    source: Source,
    features: Tensor,
    origin: tuple[int, int],
    window: Window,
    hr: tuple[int, int],
    neutral: bool,
    place: Place | None = None,
) -> Callable[[], None]:
    """Begin `write_samples`; what it returns ends it. Between the two a CUDA device decodes."""
    place = place or place_of(source)
    lr = source.height, source.width
    colours = torch.from_numpy(samples).permute(2, 0, 1)[place.colours]
    raw = engine.start_decode(features, hr, window, tile=(lr, origin))
    finite = Download(torch.isfinite(raw).all())
    strip = to_unit(raw)
    strip = strip.mean(0, keepdim=True) if neutral else strip
    found = Download(rounded(strip, colours.dtype, source.range))
    del raw, strip

    def finish() -> None:
        engine.check_finite(finite.wait())
        colours.copy_(found.wait().to(colours.dtype))
        if source.masked:
            _put_alpha(samples, source, resized_alpha(source, hr, window), place)

    return finish


def resized_alpha(source: Source, hr: tuple[int, int], window: Window) -> Tensor:
    """Alpha ``[1, rows, columns]`` of a window of the output of size ``hr``."""
    lr = source.height, source.width
    needed = bicubic_range(window, lr, hr)
    alpha = read_alpha(source, needed)
    return resize_bicubic(alpha, hr, window, (lr, (needed.y0, needed.x0)))


def copy_samples(
    samples: np.ndarray, source: Source, window: Window, place: Place | None = None
) -> None:
    """Fill ``[rows, columns, C]`` with the source's own pixels, for an output of its size."""
    rgb, alpha = source.read(*window)
    put(samples, source, rgb[:1] if source.grey else rgb, alpha, place)


def put(
    samples: np.ndarray,
    kind: Kind,
    colours: Tensor,
    alpha: Tensor | None,
    place: Place | None = None,
) -> None:
    """Write colours and alpha in [0, 1] as samples ``[rows, columns, C]`` of a kind."""
    place = place or place_of(kind)
    planes = torch.from_numpy(samples).permute(2, 0, 1)
    store(planes[place.colours], colours, kind.range)
    if alpha is not None:
        _put_alpha(samples, kind, alpha, place)


def _put_alpha(samples: np.ndarray, kind: Kind, alpha: Tensor, place: Place) -> None:
    """Write alpha, and into colours that are there already the value of missing samples."""
    planes = torch.from_numpy(samples).permute(2, 0, 1)
    if place.alpha is not None:
        store(planes[place.alpha : place.alpha + 1], alpha)
    if kind.missing is not None:
        kind.missing.put(planes[place.colours], alpha, half=not kind.alpha)
