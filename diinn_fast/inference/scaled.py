"""A picture at one size as an array that computes what is sliced out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diinn_fast.inference.features import TILE
from diinn_fast.version import __version__

if TYPE_CHECKING:
    from diinn_fast.inference.view import View

MOST_SIDE = 2048
"""Most output pixels along a side of a chunk: some ten seconds' work of a CPU core."""


class Scaled:
    """A picture at one size, to be sliced as an array: ``view.at((4000, 6000))[:512, 1024:1536]``.

    It has what `dask.array.from_array`, `zarr` and `numpy.asarray` look for, and can be sent to
    another process as its view can.

    Attributes:
        shape: [H, W] (grey) or [H, W, C].
        dtype: of the samples.
        ndim: 2 or 3.
        size: number of samples.
        chunks: shape of the pieces in which it is best asked for: whole tiles of the LR picture.
    """

    def __init__(self, view: View, size: Sequence[int]) -> None:
        height, width = view.check_size(size)
        self._view = view
        self._hr = height, width
        self.shape = self._hr if view.channels == 1 else (height, width, view.channels)
        self.dtype = view.dtype
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        sides = (_chunk(n, hr) for n, hr in zip(view.shape, self._hr, strict=True))
        self.chunks = (*sides, *self.shape[2:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            n = keys.index(Ellipsis)
            keys[n : n + 1] = [slice(None)] * (self.ndim + 1 - len(keys))
        keys += [slice(None)] * (self.ndim - len(keys))
        # Only the rows and columns that are asked for are computed; steps are taken afterwards.
        y0, y1, rows = _span(keys[0], self._hr[0])
        x0, x1, columns = _span(keys[1], self._hr[1])
        if y0 == y1 or x0 == x1:
            found = np.empty((y1 - y0, x1 - x0, *self.shape[2:]), self.dtype)
        else:
            found = self._view.render((y0, y1, x0, x1), self._hr)
        result: np.ndarray = found[(rows, columns, *keys[2:])]
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[()].astype(dtype or self.dtype, copy=False)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """What the samples depend on, for the names of dask's results."""
        return "diinn_fast", __version__, self._view.identity, self._hr


def _chunk(lr: int, hr: int) -> int:
    """Output pixels along an axis of a chunk: of as many whole tiles as do not exceed `MOST_SIDE`,
    or of a half, a quarter, ... of one.
    """
    tile = max(1, math.ceil(TILE * hr / lr))
    if tile <= MOST_SIDE:
        return min(hr, tile * (MOST_SIDE // tile))
    return int(min(hr, math.ceil(tile / 2 ** math.ceil(math.log2(tile / MOST_SIDE)))))


def _span(key: Any, length: int) -> tuple[int, int, Any]:
    """First and one-past-last position that a key (an integer or a slice) takes, and the key within
    those.
    """
    if not isinstance(key, slice):
        position = range(length)[key]
        return position, position + 1, 0
    taken = range(length)[key]
    if not taken:
        return 0, 0, slice(None)
    return min(taken[0], taken[-1]), max(taken[0], taken[-1]) + 1, slice(None, None, taken.step)
