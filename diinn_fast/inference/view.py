"""Windows of a picture at any scale, on demand: what a viewer asks for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diinn_fast.errors import UpscaleError
from diinn_fast.geometry import Window, check_size, check_window
from diinn_fast.inference.engine import Engine
from diinn_fast.inference.neutral import source_is_neutral
from diinn_fast.inference.plan import split, with_halo
from diinn_fast.inference.reduced import needs_network, reduced
from diinn_fast.inference.sources import Source
from diinn_fast.inference.sources.inpainted import InpaintedSource
from diinn_fast.inference.windows import copy_samples, write_samples

BAND_PIXELS = 1 << 19
"""Output pixels decoded at a time."""

TILE = 256
"""LR pixels along a side of a tile whose features are kept together."""


class View:
    """A picture and a model; `render` gives windows. Features are kept per tile of the LR picture,
    whatever the size.

    Attributes:
        shape: (height, width) of the LR picture.
        channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
        dtype: of the samples, the picture's: uint8, uint16, or float32 in [0, 1].
        encoded: tiles encoded until now.
    """

    def __init__(self, engine: Engine, source: Source, max_features: int) -> None:
        if source.alpha:
            source = InpaintedSource.of(source, None)
        self._engine = engine
        self._source = source
        self._most = max_features
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._neutral: bool | None = None  # not known yet
        self.shape = source.height, source.width
        self.channels = (1 if source.grey else 3) + source.alpha
        self.dtype = np.dtype(source.dtype)
        self.encoded = 0
        radius = getattr(engine.model.encoder, "receptive_radius", None)
        self._radius = 0 if radius is None else radius
        self._tile = None if radius is None else (TILE, TILE)

    def render(self, window: Sequence[int] | None, size: Sequence[int]) -> np.ndarray:
        """Samples ``[rows, columns]`` (grey) or ``[rows, columns, C]`` of a window of the picture
        at size (H, W).

        ``window`` is (y0, y1, x0, x1) in pixels of that size, None all of it. The pixels are those
        of the whole.
        """
        try:
            hr = check_size(size, self.shape)
            cut = check_window(window, hr)
        except ValueError as error:
            raise UpscaleError(str(error)) from None
        self._engine.check_sizes(self.shape, hr)
        samples = np.empty((*cut.shape, self.channels), self.dtype)
        source = reduced(self._source, hr)
        lr = source.height, source.width
        rows, columns = (
            max(1, t * out // n) for t, out, n in zip(self._tile or lr, hr, lr, strict=True)
        )
        columns = min(columns, cut.shape[1], BAND_PIXELS)
        rows = min(rows, max(1, BAND_PIXELS // columns))
        for part in split(cut, rows, columns):
            y = part.y0 - cut.y0
            x = part.x0 - cut.x0
            self._render(source, part, hr, samples[y : y + part.shape[0], x : x + part.shape[1]])
        return samples[..., 0] if self.channels == 1 else samples

    def at(self, size: Sequence[int]) -> Scaled:
        """The picture at size (H, W) as an array that computes what is sliced out of it."""
        return Scaled(self, size)

    def close(self) -> None:
        """Forget the features and release the file."""
        self._kept.clear()
        self._source.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _render(self, source: Source, window: Window, hr: tuple[int, int], out: np.ndarray) -> None:
        if not needs_network(self.shape, hr):
            copy_samples(out, source, window)
            return
        if self._neutral is None:
            self._neutral = source_is_neutral(self._source)
        lr = source.height, source.width
        needed = self._engine.model.decoder.lr_window(window, lr, hr)
        features = self._features(source, needed)
        origin = needed.y0, needed.x0
        write_samples(out, self._engine, source, features, origin, window, hr, self._neutral)

    @torch.inference_mode()
    def _features(self, source: Source, needed: Window) -> Tensor:
        """Features ``[1, C, rows, columns]`` of LR rows and columns, put together from tiles."""
        i0, i1, j0, j1 = needed
        high, wide = self._tile or (source.height, source.width)
        out = None
        for a in range(i0 // high, (i1 - 1) // high + 1):
            for b in range(j0 // wide, (j1 - 1) // wide + 1):
                features = self._encoded(source, a, b)
                top = max(i0, a * high)
                bottom = min(i1, (a + 1) * high)
                left = max(j0, b * wide)
                right = min(j1, (b + 1) * wide)
                part = features[
                    :, :, top - a * high : bottom - a * high, left - b * wide : right - b * wide
                ]
                if part.shape[2:] == needed.shape:
                    return part
                if out is None:
                    out = features.new_empty(1, features.shape[1], *needed.shape)
                out[:, :, top - i0 : bottom - i0, left - j0 : right - j0] = part
        assert out is not None
        return out

    def _encoded(self, source: Source, a: int, b: int) -> Tensor:
        """Features of a tile, kept or made; the least recently used make room."""
        key = source.height, source.width, a, b
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        h, w = source.height, source.width
        high, wide = self._tile or (h, w)
        i0 = a * high
        i1 = min((a + 1) * high, h)
        j0 = b * wide
        j1 = min((b + 1) * wide, w)
        top, bottom, left, right = with_halo((i0, i1, j0, j1), (h, w), self._radius)
        rgb, _ = source.read(top, bottom, left, right)
        whole = self._engine.encode(rgb)
        features = whole[:, :, i0 - top : i1 - top, j0 - left : j1 - left].clone()
        self.encoded += 1
        self._kept[key] = features
        while len(self._kept) > 1 and sum(_bytes(f) for f in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
        return features


class Scaled:
    """A picture at one size, to be sliced as an array: ``view.at((4000, 6000))[:512, 1024:1536]``.

    It has what `dask.array.from_array` and `numpy.asarray` look for.
    """

    def __init__(self, view: View, size: Sequence[int]) -> None:
        self._view, self._size = view, (int(size[0]), int(size[1]))
        self.shape = self._size if view.channels == 1 else (*self._size, view.channels)
        self.dtype, self.ndim = view.dtype, len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            n = keys.index(Ellipsis)
            keys[n : n + 1] = [slice(None)] * (self.ndim + 1 - len(keys))
        keys += [slice(None)] * (self.ndim - len(keys))
        (y0, y1, rows), (x0, x1, columns) = (
            _span(k, n) for k, n in zip(keys[:2], self._size, strict=True)
        )
        if y0 == y1 or x0 == x1:
            found = np.empty((y1 - y0, x1 - x0, *self.shape[2:]), self.dtype)
        else:
            found = self._view.render((y0, y1, x0, x1), self._size)
        return found[(rows, columns, *keys[2:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[()].astype(dtype or self.dtype, copy=False)


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


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
