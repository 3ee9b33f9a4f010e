"""One served picture: pixels of any region at any size, by the network or by bicubic."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from diinn_fast.formats.missing import TOPS
from diinn_fast.formats.sample_range import FULL
from diinn_fast.geometry import Window
from diinn_fast.inference import View

MAX_SCALE = 64
"""Most enlargement of a picture."""


class Cut(NamedTuple):
    """A window (y0, y1, x0, x1) of the whole picture at ``size`` (H, W)."""

    window: Window
    size: tuple[int, int]


class Picture:
    """A view under a name, in 8 bits; for many clients at once.

    Args:
        name: its identifier in URLs.
        view: the picture and a model.

    Attributes:
        height, width: of the LR picture.
        alpha: answers have alpha, too.
        icc: its colour profile, which answers carry too.
        identity: changes when the picture or the model does.
    """

    def __init__(self, name: str, view: View) -> None:
        self.name = name
        self._view = view
        self.height, self.width = view.shape
        self.alpha = view.channels in (2, 4)
        self.icc = view.icc
        self.identity = view.identity

    def sharp(self, cut: Cut) -> np.ndarray:
        """8-bit samples [rows, columns] or [rows, columns, C] by the network: those of the
        whole.
        """
        return self._bytes(self._view.render(cut.window, cut.size))

    def bicubic(self, cut: Cut) -> np.ndarray:
        """The same by bicubic interpolation, antialiased where the picture gets smaller."""
        return self._bytes(self._view.bicubic(cut.window, cut.size))

    def close(self) -> None:
        """Release the file and the features."""
        self._view.close()

    def _bytes(self, samples: np.ndarray) -> np.ndarray:
        """Samples as 8 bits: what is black and white to the network is so here."""
        shown = self._view.range
        if samples.dtype == np.uint8 and shown == FULL:
            return samples
        unit = samples.astype(np.float32) / np.float32(TOPS[samples.dtype.name])
        colours = unit[..., :-1] if self.alpha else unit
        if shown != FULL:
            colours -= shown.low
            # Of one colour alone nothing is left to divide.
            colours /= (shown.high - shown.low) or 1.0
        return (unit.clip(0, 1) * 255 + 0.5).astype(np.uint8)


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
