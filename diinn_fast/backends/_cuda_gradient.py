"""Backward of the decode with the CUDA kernels: recomputed slab after slab of queries;
deterministic.

Per slab the forward kernel writes s, k and q of all layers; ``diinn_gradient`` goes back through
the layers, writes [dk | ds] of each and adds dk into the content's gradient; the weights' gradients
are the framework's products of [dk | ds] and q. Slabs follow each other in a fixed order and
nothing is added atomically: two runs are bitwise equal.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.backends import _cuda
from diinn_fast.backends._gradients import (
    add_product,
    add_rows,
    add_sum,
    locate,
    owners,
    parts,
    product,
)

if TYPE_CHECKING:
    from diinn_fast.ops import Problem

SLAB = 16384
"""Queries at a time: 13 KiB each at 4 layers, so about 0.2 GiB."""

Launch = Callable[[str, ctypes.Structure, Tensor, int], None]
"""Function, problem, a tensor on the device, bytes of work space."""


def backward(
    problem: Problem,
    grad: Tensor,
    source: Tensor,
    weights: Sequence[Tensor],
    needs: Sequence[bool],
    launch: Launch,
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed."""
    inputs = [source, *weights]
    sums = [
        torch.zeros(v.shape, dtype=torch.float32, device=v.device) if need else None
        for v, need in zip(inputs, needs, strict=True)
    ]
    if grad.numel():
        for image in range(len(source)):
            for slab, rows in _slabs(problem, grad[image], image):
                _Slab(slab, source[image : image + 1], image, weights, sums, launch).run(rows)
    return [
        v.new_empty(0) if s is None else s.to(v.dtype) for v, s in zip(inputs, sums, strict=True)
    ]


def _slabs(problem: Problem, grad: Tensor, image: int) -> Iterator[tuple[Problem, Tensor]]:
    """One image's queries in slabs, with the gradient of their output [queries, channels]."""
    most = problem.chunk or SLAB
    if problem.window is None:
        assert problem.index is not None and problem.offset is not None
        for start in range(0, problem.index.shape[1], most):
            part = slice(start, start + most)
            index = problem.index[image : image + 1, part]
            offset = problem.offset[image : image + 1, part]
            yield replace(problem, index=index, offset=offset), grad[part]
        return
    top, _, left, _ = problem.window
    for cut in parts(problem.window, most):
        rows = grad[:, cut.y0 - top : cut.y1 - top, cut.x0 - left : cut.x1 - left].flatten(1).t()
        yield replace(problem, window=cut), rows


class _Slab:
    """The backward of one slab of one image's queries."""

    def __init__(
        self,
        problem: Problem,
        source: Tensor,
        image: int,
        weights: Sequence[Tensor],
        sums: Sequence[Tensor | None],
        launch: Launch,
    ) -> None:
        self.problem = problem
        self.source = source
        self.image = image
        self.sums = sums
        self.launch = launch
        self.weights, self.hidden = weights, _cuda.aligned(weights[2].detach().to(source.dtype))
        self.layers = len(self.hidden) + 1
        self.modulation = problem.form == "modulation"

    def run(self, grad: Tensor) -> None:
        """Add this slab's part to the sums, given the gradient of its output [queries,
        channels].
        """
        source = self.source
        width = _cuda.WIDTH
        last = self.weights[4].detach().to(self.source.dtype)
        grad = grad.to(source.dtype).contiguous()
        shape = (self.layers, len(grad), width)
        s = source.new_empty(shape, dtype=torch.float32)
        k = source.new_empty(shape)
        q = source.new_empty(shape)
        decode = _cuda.describe(self.problem, source, self.weights, None)
        decode.kernel, (decode.kept_s, decode.kept_k, decode.kept_q) = (
            _cuda.PORTABLE,
            (v.data_ptr() for v in (s, k, q)),
        )
        self.launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))
        both = source.new_empty(self.layers, len(grad), 2 * width)
        self._chain(s, k, product(grad, last), both)
        dposition, dposition_bias, dhidden, dhidden_bias, dlast, dlast_bias = self.sums[1:7]
        add_product(dlast, grad, q[-1])
        add_sum(dlast_bias, grad)
        for n in range(self.layers - 1):
            add_product(
                None if dhidden is None else dhidden[n], self._of_weights(both[n + 1]), q[n]
            )
            add_sum(None if dhidden_bias is None else dhidden_bias[n], both[n + 1, :, width:])
        add_sum(dposition_bias, both[0, :, width:])
        if dposition is not None:
            dposition += both[0, :, width:].float().t() @ self._position()
        if self.problem.window is None and self.sums[0] is not None:
            assert self.problem.index is not None
            rows = both[..., :width].transpose(0, 1).flatten(1).float()
            add_rows(self.sums[0][self.image].flatten(0, 1), self.problem.index[0], rows)

    def _chain(self, s: Tensor, k: Tensor, dq: Tensor, both: Tensor) -> None:
        """both = [dk | ds] of all layers; dk also into the content's gradient, unless the queries
        are points.
        """
        gradient = _cuda.Gradient()
        gradient.queries = len(dq)
        gradient.layers = self.layers
        gradient.operand, gradient.modulation = _cuda.TYPES[k.dtype], int(self.modulation)
        gradient.hidden, gradient.kept_s, gradient.kept_k = (
            self.hidden.data_ptr(),
            s.data_ptr(),
            k.data_ptr(),
        )
        gradient.dq, gradient.both = dq.data_ptr(), both.data_ptr()
        alive = []
        if self.problem.window is not None and self.sums[0] is not None:
            window = self.problem.window
            h, w = self.problem.lr
            height, width = self.problem.size
            i, j, _ = locate(self.problem, dq.device)
            top, row_start = owners(window.y0, window.y1, h, height, i)
            left, column_start = owners(window.x0, window.x1, w, width, j)
            alive = [row_start, column_start]
            gradient.source = self.sums[0][self.image].data_ptr()
            gradient.row_start, gradient.column_start = (
                row_start.data_ptr(),
                column_start.data_ptr(),
            )
            gradient.down, gradient.across, gradient.columns = (
                len(row_start) - 1,
                len(column_start) - 1,
                window.shape[1],
            )
            gradient.first_row = top - self.problem.origin[0]
            gradient.first_column = left - self.problem.origin[1]
            gradient.grid_columns = self.problem.grid(self.source)[1]
        self.launch("diinn_gradient", gradient, dq, 2 * self.hidden.numel())
        del alive

    def _of_weights(self, both: Tensor) -> Tensor:
        """Gradient of the products [K; Q] r (modulation form: Q r)."""
        return both[:, _cuda.WIDTH :] if self.modulation else both

    def _position(self) -> Tensor:
        """The first layer's input (dy, dx, ratio), float32 [queries, 3]."""
        problem = self.problem
        device = self.source.device
        if problem.window is None:
            assert problem.offset is not None
            offset = problem.offset[0].detach().float()
        else:
            offset = locate(problem, device)[2]
        return F.pad(offset, (0, 1), value=problem.ratio)
