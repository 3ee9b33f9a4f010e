"""One served picture: pixels of any region at any size, by the network or by bicubic."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

import diinn_fast
from diinn_fast.geometry import Window
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.sources import open_source

MAX_SCALE = 64
"""Most enlargement of a picture."""

BAND = 1 << 24
"""Most LR pixels that bicubic reads at once, so that a reduction of a large picture stays small."""


class Cut(NamedTuple):
    """A window (y0, y1, x0, x1) of the whole picture at ``size`` (H, W)."""

    window: Window
    size: tuple[int, int]


class Picture:
    """A picture and a model, for many clients at once.

    Args:
        name: its identifier in URLs.
        image: as of `diinn_fast.open`, like the rest.
        model: the network.
        options: further arguments of `diinn_fast.open`.

    Attributes:
        height, width: of the LR picture.
        icc: its colour profile, which answers carry too.
        identity: changes when the picture does.
    """

    def __init__(self, name: str, image: Any, model: Any = None, **options: Any) -> None:
        self.name = name
        self._view = diinn_fast.open(image, model, **options)
        self._source = open_source(image)
        self._lock = threading.Lock()
        self.height, self.width = self._view.shape
        self.icc = self._source.icc
        self.identity = self._source.identity

    def sharp(self, cut: Cut) -> np.ndarray:
        """8-bit samples [rows, columns] or [rows, columns, C] by the network: those of the whole.

        A view keeps features of what was seen before, so one thread at a time has it.
        """
        with self._lock:
            samples = self._view.render(cut.window, cut.size)
        return _bytes(samples)

    def bicubic(self, cut: Cut) -> np.ndarray:
        """The same by bicubic interpolation, antialiased where the picture gets smaller."""
        window = cut.window
        lr = (self.height, self.width)
        # Bands of rows, each of which needs no more of the picture than BAND pixels.
        needed = bicubic_range(window, lr, cut.size)
        pixels = (needed.y1 - needed.y0) * (needed.x1 - needed.x0)
        rows = max(1, (window.y1 - window.y0) * BAND // max(BAND, pixels))
        bands = []
        for y in range(window.y0, window.y1, rows):
            band = Window(y, min(y + rows, window.y1), window.x0, window.x1)
            i0, i1, j0, j1 = bicubic_range(band, lr, cut.size)
            rgb, alpha = self._source.read(i0, i1, j0, j1)
            planes = rgb[:1] if self._source.grey else rgb
            if alpha is not None:
                planes = torch.cat([planes, alpha])
            bands.append(resize_bicubic(planes, cut.size, band, (lr, (i0, j0))))
        samples = torch.cat(bands, 1).permute(1, 2, 0).numpy()
        return _bytes(samples[..., 0] if samples.shape[2] == 1 else samples)

    def close(self) -> None:
        """Release the file and the features."""
        self._view.close()
        self._source.close()


def locate(
    region: tuple[int, int, int, int],
    size: tuple[int, int],
    zoom: int,
    lr: tuple[int, int],
) -> Cut:
    """The window of the whole picture that a region becomes at a size.

    Exact wherever the region's borders fall on pixels of the result; elsewhere moved to the
    nearest, by half a pixel at most.

    Args:
        region: (x, y, width, height) on the grid of the picture enlarged ``zoom`` times.
        size: (width, height) of the result.
        lr: (height, width) of the picture.
    """
    x, y, w, h = region
    columns, x0 = _axis(x, w, size[0], zoom, lr[1])
    rows, y0 = _axis(y, h, size[1], zoom, lr[0])
    return Cut(Window(y0, y0 + size[1], x0, x0 + size[0]), (rows, columns))


def _axis(start: int, length: int, wanted: int, zoom: int, n: int) -> tuple[int, int]:
    """Length of the whole axis at the result's scale, and where the region starts on it."""
    scale = Fraction(wanted, length)
    whole = max(wanted, round(n * zoom * scale))
    return whole, min(round(start * scale), whole - wanted)


def _bytes(samples: np.ndarray) -> np.ndarray:
    """Samples as 8 bits: unchanged, from 16 bits, or from floats in [0, 1]."""
    if samples.dtype == np.uint8:
        return samples
    unit = samples.astype(np.float32)
    if samples.dtype == np.uint16:
        unit /= 65535
    return (unit * 255 + 0.5).astype(np.uint8)
