"""What the backwards of the GPU backends share: slabs of queries, where they lie, and sums in
float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diinn_fast.geometry import Window, local_offset, lr_range, nearest_index
from diinn_fast.problem import Problem


def parts(window: Window, most: int) -> Iterator[Window]:
    """The window in parts of at most ``most`` queries, row by row."""
    y0, y1, x0, x1 = window
    across = min(most, x1 - x0)
    down = max(1, most // across)
    for y in range(y0, y1, down):
        for x in range(x0, x1, across):
            yield Window(y, min(y + down, y1), x, min(x + across, x1))


def locate(problem: Problem, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of a window: LR index of each row and of each column, int64, and (dy, dx) of every query,
    float32 ``[n, 2]``.
    """
    assert problem.window is not None
    y0, y1, x0, x1 = problem.window
    h, w = problem.lr
    height, width = problem.size
    i = nearest_index(y0, y1, h, height, device)
    j = nearest_index(x0, x1, w, width, device)
    dy = local_offset(y0, y1, i, h, height, torch.float32)
    dx = local_offset(x0, x1, j, w, width, torch.float32)
    return (
        i,
        j,
        torch.stack([dy[:, None].expand(-1, len(dx)), dx.expand(len(dy), -1)], -1).flatten(0, 1),
    )


def owners(start: int, stop: int, n_in: int, n_out: int, index: Tensor) -> tuple[int, Tensor]:
    """First LR index of the positions start <= Y < stop, and where each LR index's positions begin
    (and all end).
    """
    first, end = lr_range(start, stop, n_in, n_out)
    return first, torch.searchsorted(index, torch.arange(first, end + 1, device=index.device))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, a] times weight [a, b]: float32 sums."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight, out_dtype=torch.float32)
    return torch.mm(x.float(), weight.float())


def add_product(total: Tensor | None, grad: Tensor, x: Tensor) -> None:
    """total [out, in] += grad [n, out] transposed times x [n, in]."""
    if total is not None:
        total += product(grad.t(), x)


def add_sum(total: Tensor | None, grad: Tensor) -> None:
    """total [out] += the sum of grad [n, out] over its rows."""
    if total is not None:
        total += grad.sum(0, dtype=torch.float32)


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """total[index[n]] += rows[n], repeated indices summed in a fixed order."""
    if total.is_cuda:
        total.index_put_(
            (index,), rows, accumulate=True
        )  # sorts; index_add_ and scatter_add_ would add atomically
    else:
        total.scatter_add_(0, index[:, None].expand_as(rows), rows)
