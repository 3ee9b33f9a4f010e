"""How far the output is off with a halo smaller than the encoder's receptive radius."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diinn_fast.geometry import Window
from diinn_fast.inference.engine import Engine, to_unit
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.sources import Source
from diinn_fast.inference.wrapped import Frame

if TYPE_CHECKING:
    from torch import Tensor

DEPTH = 4
"""LR pixels along the inner edges of a tile that are compared; the error falls off inwards."""


def halo_error(engine: Engine, source: Source, plan: Plan, frame: Frame, corners: int = 3) -> float:
    """Largest difference, in [0, 1], from the exact output, at up to ``corners`` corners where four
    tiles meet.

    Compared are the pixels nearest to the corner of the tile below and to the right of it.
    """
    if plan.tiles == (1, 1):
        return 0.0
    tiles = [
        t
        for t in plan.tile_windows()
        if (t.y0 > 0 or plan.tiles[0] == 1) and (t.x0 > 0 or plan.tiles[1] == 1)
    ]
    chosen = tiles[:: max(1, len(tiles) // corners)][:corners]
    return max(_error(engine, source, plan, frame, tile) for tile in chosen)


def _error(engine: Engine, source: Source, plan: Plan, frame: Frame, tile: Window) -> float:
    exact = engine.model.encoder.receptive_radius
    assert isinstance(exact, int)
    # A few LR rows and columns at the tile's corner, where the missing halo shows most.
    scale = [max(1, round(DEPTH * out / n)) for out, n in zip(plan.hr, plan.lr, strict=True)]
    window = frame.place(
        Window(tile.y0, min(tile.y1, tile.y0 + scale[0]), tile.x0, min(tile.x1, tile.x0 + scale[1]))
    )
    h, w = frame.lr
    i0, i1, j0, j1 = engine.model.decoder.lr_window(window, frame.lr, frame.hr)

    def output(before: int) -> Tensor:
        """With ``before`` LR pixels above and to the left, and all that the encoder sees below and
        to the right.
        """
        top = max(i0 - before, 0)
        left = max(j0 - before, 0)
        rgb, _ = source.read(top, min(i1 + exact, h), left, min(j1 + exact, w))
        features = engine.encode(rgb, plan.work_bytes)
        return to_unit(engine.decode(features, frame.hr, window, tile=(frame.lr, (top, left))))

    return float((output(plan.radius) - output(exact)).abs().max())
