"""A part of a picture that the network sees in one piece, and the window that it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diinn_fast.geometry import Window


@dataclass(frozen=True)
class Part:
    """Pixels and grids.

    Attributes:
        rgb: ``[3, h, w]`` in [0, 1], from row and column ``origin`` of the LR grid on.
        lr, hr: (height, width) of both grids.
        window: of the HR grid; what the network looks at for it is in ``rgb``.
    """

    rgb: Tensor
    origin: tuple[int, int]
    lr: tuple[int, int]
    hr: tuple[int, int]
    window: Window

    @classmethod
    def whole(cls, rgb: Tensor, hr: tuple[int, int]) -> Part:
        """Of a picture as a whole."""
        lr = rgb.shape[1], rgb.shape[2]
        return cls(rgb, (0, 0), lr, hr, Window(0, hr[0], 0, hr[1]))

    def turned(self, transposed: bool, flipped: Sequence[int]) -> Part:
        """The same of the grids transposed, if so, and then flipped along rows (1), columns (2)."""
        part = self._transposed() if transposed else self
        y0, y1, x0, x1 = part.window
        top, left = part.origin
        height, width = part.rgb.shape[1:]
        if 1 in flipped:
            y0, y1 = part.hr[0] - y1, part.hr[0] - y0
            top = part.lr[0] - top - height
        if 2 in flipped:
            x0, x1 = part.hr[1] - x1, part.hr[1] - x0
            left = part.lr[1] - left - width
        rgb = part.rgb.flip(list(flipped))
        return Part(rgb, (top, left), part.lr, part.hr, Window(y0, y1, x0, x1))

    def _transposed(self) -> Part:
        y0, y1, x0, x1 = self.window
        return Part(
            self.rgb.transpose(1, 2),
            self.origin[::-1],
            self.lr[::-1],
            self.hr[::-1],
            Window(x0, x1, y0, y1),
        )
