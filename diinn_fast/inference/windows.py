"""Samples of a window of the output, as the picture's kind has them: the same for a render and a
view.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diinn_fast.errors import ImageError
from diinn_fast.geometry import Window
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.engine import Engine, rounded, store, to_unit
from diinn_fast.inference.sources import Source
from diinn_fast.inference.transfer import Download


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
) -> Callable[[], None]:
    """Begin `write_samples`; what it returns ends it. Between the two a CUDA device decodes."""
    lr = source.height, source.width
    planes = torch.from_numpy(samples).permute(2, 0, 1)
    colours = planes[: 1 if source.grey else 3]
    raw = engine.start_decode(features, hr, window, tile=(lr, origin))
    finite = Download(torch.isfinite(raw).all())
    band = to_unit(raw)
    band = band.mean(0, keepdim=True) if neutral else band
    found = Download(rounded(band, colours.dtype, source.range))
    del raw, band

    def finish() -> None:
        engine.check_finite(finite.wait())
        colours.copy_(found.wait().to(colours.dtype))
        if source.alpha:
            _write_alpha(planes[len(colours) :], source, window, hr)

    return finish


def _write_alpha(plane: Tensor, source: Source, window: Window, hr: tuple[int, int]) -> None:
    lr = source.height, source.width
    i0, i1, j0, j1 = bicubic_range(window, lr, hr)
    _, alpha = source.read(i0, i1, j0, j1)
    if alpha is None:
        raise ImageError("the picture has lost its alpha: open it again.")
    store(plane, resize_bicubic(alpha, hr, window, tile=(lr, (i0, j0))))


def copy_samples(samples: np.ndarray, source: Source, window: Window) -> None:
    """Fill ``[rows, columns, C]`` with the source's own pixels, for an output of its size."""
    planes = torch.from_numpy(samples).permute(2, 0, 1)
    colours = 1 if source.grey else 3
    rgb, alpha = source.read(*window)
    store(planes[:colours], rgb[:colours], source.range)
    if alpha is not None:
        store(planes[colours:], alpha)
