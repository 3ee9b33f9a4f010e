"""Features of a picture's tiles: each encoded once however many threads ask, kept within a bound.

A *tile* is a square of the LR grid. It is encoded with the halo that makes its features those of
the whole picture, and `MARGIN` pixels more, so that a window that ends at a tile's border does not
wait for the next tile.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import torch
from torch import Tensor

from diinn_fast.encoders.convolutions import with_halo
from diinn_fast.geometry import Window
from diinn_fast.inference.engine import Engine
from diinn_fast.inference.sources import Source

TILE = 256
"""LR pixels along a side of a tile, for scales up to `TILE_SCALE`."""

TILE_SCALE = 2
"""Beyond this scale sides are halved as the scale doubles: fewer LR pixels are seen at a time."""

MOST_HALVINGS = 3

MARGIN = 2
"""LR pixels around a tile whose features it has, too: the decoder looks one pixel further than the
window, two where it sets up a grid."""


class FeatureTiles:
    """Features by tile, made when they are first needed; for any number of threads.

    Args:
        engine: what encodes.
        max_bytes: most bytes of features to keep; the least recently used make room.

    Attributes:
        encoded: tiles encoded until now.
    """

    def __init__(self, engine: Engine, max_bytes: int) -> None:
        self._engine = engine
        self._most = max_bytes
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._bytes = 0
        # One encoding at a time: each uses all cores, and who waited finds the tile made.
        self._lock = threading.Lock()
        radius = getattr(engine.model.encoder, "receptive_radius", None)
        self._radius = 0 if radius is None else radius
        self._tiled = radius is not None
        self.encoded = 0

    def sides(self, lr: tuple[int, int], scale: float) -> tuple[int, int]:
        """(rows, columns) of a tile at a scale; all of the picture, where the encoder has no
        bounded receptive field.
        """
        if not self._tiled:
            return lr
        halvings = math.floor(math.log2(max(scale, TILE_SCALE) / TILE_SCALE))
        side = TILE // 2 ** min(halvings, MOST_HALVINGS)
        return side, side

    @torch.inference_mode()
    def window(self, source: Source, needed: Window, scale: float) -> Tensor:
        """Features ``[1, C, rows, columns]`` of LR rows and columns."""
        lr = source.height, source.width
        high, wide = self.sides(lr, scale)
        rows = spans(needed.y0, needed.y1, high, lr[0])
        columns = spans(needed.x0, needed.x1, wide, lr[1])
        out = None
        for a, top, bottom in rows:
            for b, left, right in columns:
                # Tiles overlap by what the encoder sees: each gives its own middle part.
                reach, features = self._tile(source, a, b, (high, wide))
                part = features[
                    :,
                    :,
                    top - reach.y0 : bottom - reach.y0,
                    left - reach.x0 : right - reach.x0,
                ]
                # The usual case, without a copy.
                if len(rows) == len(columns) == 1:
                    return part
                if out is None:
                    out = features.new_empty(1, features.shape[1], *needed.shape)
                place = (
                    slice(top - needed.y0, bottom - needed.y0),
                    slice(left - needed.x0, right - needed.x0),
                )
                out[:, :, *place] = part
        assert out is not None
        return out

    def clear(self) -> None:
        """Forget all features."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _tile(
        self, source: Source, a: int, b: int, sides: tuple[int, int]
    ) -> tuple[Window, Tensor]:
        """A tile's reach, margin included, and its features, kept or made."""
        lr = source.height, source.width
        with self._lock:
            if (found := self._find(lr, a, b, sides)) is not None:
                return found
            reach = _reach(lr, a, b, sides)
            features = self._encode(source, reach)
            self._keep((*lr, *sides, a, b), features)
            return reach, features

    def _find(
        self, lr: tuple[int, int], a: int, b: int, sides: tuple[int, int]
    ) -> tuple[Window, Tensor] | None:
        """A kept tile, or the larger one of a smaller scale that holds it."""
        for times in (2**n for n in range(MOST_HALVINGS + 1)):
            larger = sides[0] * times, sides[1] * times
            key = (*lr, *larger, a // times, b // times)
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return _reach(lr, a // times, b // times, larger), kept
        return None

    def _encode(self, source: Source, reach: Window) -> Tensor:
        read = with_halo(reach, (source.height, source.width), self._radius)
        rgb, _ = source.read(*read)
        whole = self._engine.encode(rgb)
        self.encoded += 1
        rows = slice(reach.y0 - read.y0, reach.y1 - read.y0)
        columns = slice(reach.x0 - read.x0, reach.x1 - read.x0)
        return whole[:, :, rows, columns].clone()

    def _keep(self, key: tuple[int, ...], features: Tensor) -> None:
        self._kept[key] = features
        self._bytes += _bytes(features)
        while len(self._kept) > 1 and self._bytes > self._most:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _bytes(dropped)


def spans(start: int, stop: int, side: int, length: int) -> list[tuple[int, int, int]]:
    """The tiles along an axis that a range is put together from: (index, start, stop) each, one
    after the other. As few as margins allow.
    """
    first = min((start + MARGIN) // side, (length - 1) // side)
    last = max(first, (stop - 1 - MARGIN) // side)
    borders = [start, *(n * side for n in range(first + 1, last + 1)), stop]
    return [(first + n, borders[n], borders[n + 1]) for n in range(last - first + 1)]


def _reach(lr: tuple[int, int], a: int, b: int, sides: tuple[int, int]) -> Window:
    """LR pixels of which a tile has the features."""
    high, wide = sides
    return Window(
        max(0, a * high - MARGIN),
        min(lr[0], (a + 1) * high + MARGIN),
        max(0, b * wide - MARGIN),
        min(lr[1], (b + 1) * wide + MARGIN),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
