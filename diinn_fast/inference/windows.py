"""Samples of a window of the output, as the picture's kind has them: the same for a render and a
view.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diinn_fast.errors import ImageError
from diinn_fast.geometry import Window
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.engine import Engine, store, to_unit
from diinn_fast.inference.sources import Source


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
    lr = source.height, source.width
    planes = torch.from_numpy(samples).permute(2, 0, 1)
    colours = 1 if source.grey else 3
    band = to_unit(engine.decode(features, hr, window, tile=(lr, origin)))
    store(planes[:colours], band.mean(0, keepdim=True) if neutral else band, source.range)
    if source.alpha:
        i0, i1, j0, j1 = bicubic_range(window, lr, hr)
        _, alpha = source.read(i0, i1, j0, j1)
        if alpha is None:
            raise ImageError("the picture has lost its alpha: open it again.")
        store(planes[colours:], resize_bicubic(alpha, hr, window, tile=(lr, (i0, j0))))


def copy_samples(samples: np.ndarray, source: Source, window: Window) -> None:
    """Fill ``[rows, columns, C]`` with the source's own pixels, for an output of its size."""
    planes = torch.from_numpy(samples).permute(2, 0, 1)
    colours = 1 if source.grey else 3
    rgb, alpha = source.read(*window)
    store(planes[:colours], rgb[:colours], source.range)
    if alpha is not None:
        store(planes[colours:], alpha)
