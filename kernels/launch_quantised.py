"""From a ``Problem`` to a launch of the forward kernel with 8-bit integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from diinn_fast.problem import Problem, query_weights

from . import launch, tiles, tuned
from .quantised import quantise_rows, quantised

ROWS = 16
"""Of the weights that a program quantises."""


class QuantisedNetwork(launch.Network):
    """Source, and weights whose hidden rows are integers, of one decode in the forms content and
    modulation.
    """

    def __init__(
        self,
        problem: Problem,
        source: Tensor,
        weights: Sequence[Tensor],
        tile: tiles.Tile | None = None,
    ) -> None:
        """``tile``: this one, whatever the tables and the tuned file say."""
        super().__init__(problem, source, weights, tile)
        query = query_weights(weights)
        self.last = query.last.detach().float().contiguous()
        self.hidden, self.units = quantised_rows(query.hidden.detach())

    def _launch(
        self,
        problem: Problem,
        source: Tensor,
        out: Tensor | None,
        slabs: launch.Slabs | None,
    ) -> None:
        assert slabs is None, "integers have no gradient"
        tile = self.tile or tuned.tile(self.form, self.device, torch.int8, self.width)
        quantised[(launch.programs(problem, tile) * len(source),)](
            source=source,
            last=self.last,
            units=self.units,
            out=out,
            **self._weights(),
            **launch.point_tensors(problem),
            **launch.geometry(problem, source),
            **self._constants(problem.window is None, False, tile),
            **launch.options(tile),
        )

    def _constants(self, points: bool, keep: bool, tile: tiles.Tile) -> dict[str, Any]:
        return constants(tile, self.form == "modulation") | {
            "WIDTH": self.width,
            "LAYERS": self.layers,
            "CHANNELS": self.channels,
            "POINTS": points,
        }


def constants(tile: tiles.Tile, modulation: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel that follow from the tile and the form."""
    cut = {"TY": tile.ty, "TX": tile.tx, "BN": tile.bn, "STAGES": tile.stages}
    return cut | {"MODULATION": modulation, "PAIRED": tile.paired}


def quantised_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix`` [..., width] as integers of its shape, and float32 [...], what 1 stands for in
    each row.
    """
    values = matrix.contiguous()
    integers = torch.empty_like(values, dtype=torch.int8)
    units = values.new_empty(values.shape[:-1], dtype=torch.float32)
    width = values.shape[-1]
    # Nothing to do, and no programs, for a decoder of one layer.
    if rows := units.numel():
        block = tiles.divisor(width, 256)
        quantise_rows[(triton.cdiv(rows, ROWS),)](
            values, integers, units, rows, WIDTH=width, BN=block, BM=ROWS
        )
    return integers, units
