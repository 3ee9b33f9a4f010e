"""Slabs: the pieces in which the GPU backends' backward goes through a decode's queries, and where
a slab's queries lie.

Launches are what a small slab costs, so one may hold several images. What depends on the window
alone is computed once and serves all images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.geometry import Window, local_offset, lr_range, nearest_index
from diinn_fast.problem import Problem


class Owners(NamedTuple):
    """The queries of each LR row and column of a window: LR row ``first_row + a`` has the window's
    rows ``row_start[a]`` to ``row_start[a + 1]``, columns alike. LR rows and columns count from the
    source's first.
    """

    first_row: int
    first_column: int
    row_start: Tensor
    column_start: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """LR rows and columns that have queries."""
        return len(self.row_start) - 1, len(self.column_start) - 1


@dataclass
class Slab:
    """Some queries of some images; they count through the images, row by row."""

    problem: Problem
    images: slice
    grad: Tensor
    """Of the output, ``[queries, channels]``."""
    place: Place

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.images.stop - self.images.start)

    @cached_property
    def position(self) -> Tensor:
        """The first layer's input (dy, dx, ratio), float32 ``[queries, 3]``."""
        return self.place.position[: len(self.grad)]

    @cached_property
    def pixel(self) -> Tensor:
        """LR pixel of every query, int64, counted through the images."""
        return self.place.pixel[: len(self.grad)]


class Place:
    """Where the queries of ``count`` images lie, in sources of ``grid`` LR rows and columns."""

    def __init__(self, problem: Problem, count: int, grid: tuple[int, int], like: Tensor) -> None:
        self.problem = problem
        self.count = count
        self.grid = grid
        self.device = like.device

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """LR index of each of the window's rows and columns."""
        assert self.problem.window is not None
        y0, y1, x0, x1 = self.problem.window
        h, w = self.problem.lr
        height, width = self.problem.size
        i = nearest_index(y0, y1, h, height, self.device)
        return i, nearest_index(x0, x1, w, width, self.device)

    @cached_property
    def position(self) -> Tensor:
        """Positions (dy, dx, ratio) of the queries, float32 ``[queries, 3]``."""
        problem = self.problem
        if problem.window is None:
            assert problem.offset is not None
            offset = problem.offset.detach().float().flatten(0, 1)
            return F.pad(offset, (0, 1), value=problem.ratio)
        # Row by row, as the kernels write their slabs.
        y0, y1, x0, x1 = problem.window
        i, j = self._axes
        dy = local_offset(y0, y1, i, problem.lr[0], problem.size[0], torch.float32)
        dx = local_offset(x0, x1, j, problem.lr[1], problem.size[1], torch.float32)
        position = dy.new_empty(self.count, len(dy), len(dx), 3)
        position[..., 0] = dy[:, None]
        position[..., 1] = dx
        position[..., 2] = problem.ratio
        return position.flatten(0, 2)

    @cached_property
    def pixel(self) -> Tensor:
        """Index of each query's pixel among those of the source."""
        rows, columns = self.grid
        if self.problem.window is None:
            assert self.problem.index is not None
            pixel = self.problem.index
        else:
            i, j = self._axes
            top, left = self.problem.origin
            pixel = ((i - top)[:, None] * columns + (j - left)).flatten()
        # Each image's pixels come after those of the images before it.
        before = torch.arange(self.count, device=self.device) * (rows * columns)
        return (before[:, None] + pixel).flatten()

    @cached_property
    def owners(self) -> Owners | None:
        """None for points, which come in any order."""
        if self.problem.window is None:
            return None
        y0, y1, x0, x1 = self.problem.window
        i, j = self._axes
        top, row_start = _starts(y0, y1, self.problem.lr[0], self.problem.size[0], i)
        left, column_start = _starts(x0, x1, self.problem.lr[1], self.problem.size[1], j)
        origin = self.problem.origin
        return Owners(top - origin[0], left - origin[1], row_start, column_start)


def _starts(start: int, stop: int, n_in: int, n_out: int, index: Tensor) -> tuple[int, Tensor]:
    """First LR index of the positions start <= Y < stop, and where each LR index's positions begin
    (and all end).
    """
    first, end = lr_range(start, stop, n_in, n_out)
    return first, torch.searchsorted(index, torch.arange(first, end + 1, device=index.device))


def slabs(problem: Problem, grad: Tensor, source: Tensor, most: int) -> Iterator[Slab]:
    """All queries: several images whole, or parts of one, at most ``most`` queries at a time."""
    grid = problem.grid(source)
    for part, rows in _parts(problem, grad, most):
        # Part after part, so that images share what is computed of it.
        together = max(1, most // rows.shape[1])
        shared = Place(part, min(together, len(grad)), grid, source)
        for start in range(0, len(grad), together):
            images = slice(start, min(start + together, len(grad)))
            # A window lies alike in all images, points do not.
            own = part
            place = shared
            if part.index is not None and part.offset is not None:
                own = replace(part, index=part.index[images], offset=part.offset[images])
                place = Place(own, images.stop - start, grid, source)
            yield Slab(own, images, rows[images].flatten(0, 1), place)


def _parts(problem: Problem, grad: Tensor, most: int) -> Iterator[tuple[Problem, Tensor]]:
    """At most ``most`` queries of each image, with their gradient ``[B, queries, channels]``."""
    if problem.window is None:
        assert problem.index is not None and problem.offset is not None
        for start in range(0, problem.index.shape[1], most):
            stop = start + most
            index = problem.index[:, start:stop]
            offset = problem.offset[:, start:stop]
            yield replace(problem, index=index, offset=offset), grad[:, start:stop]
        return
    top, _, left, _ = problem.window
    for cut in _cuts(problem.window, most):
        rgb = grad[:, :, cut.y0 - top : cut.y1 - top, cut.x0 - left : cut.x1 - left]
        yield replace(problem, window=cut), rgb.flatten(2).transpose(1, 2)


def _cuts(window: Window, most: int) -> Iterator[Window]:
    """The window in parts of at most ``most`` queries, row by row."""
    y0, y1, x0, x1 = window
    across = min(most, x1 - x0)
    down = max(1, most // across)
    for y in range(y0, y1, down):
        for x in range(x0, x1, across):
            yield Window(y, min(y + down, y1), x, min(x + across, x1))
