"""float32 sums shared by the backward passes."""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n, a] times weight [..., a, b], of one matrix or a stack: float32 sums."""
    multiply = torch.mm if x.ndim == 2 else torch.bmm
    if x.is_cuda and x.dtype != torch.float32:
        return multiply(x, weight, out_dtype=torch.float32)
    return multiply(x.float(), weight.float())


def add_product(total: Tensor | None, grad: Tensor, x: Tensor) -> None:
    """total [..., out, in] += grad [..., n, out] transposed times x [..., n, in]."""
    if total is not None:
        total += product(grad.mT, x)


def add_sum(total: Tensor | None, grad: Tensor) -> None:
    """total [out] += the sum of grad [n, out] over its rows."""
    if total is not None:
        total += grad.sum(0, dtype=torch.float32)


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """total[index[n]] += rows[n], repeated indices summed in a fixed order."""
    if total.is_cuda:
        # It sorts, so that sums have a fixed order; index_add_ would add atomically.
        total.index_put_((index,), rows, accumulate=True)
    else:
        total.scatter_add_(0, index[:, None].expand_as(rows), rows)
