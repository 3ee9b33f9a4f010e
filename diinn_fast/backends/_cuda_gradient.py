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
from diinn_fast.problem import Gradients, Problem, entry, query_weights

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
    sums = Gradients.zeros(inputs, needs, torch.float32)
    if grad.numel():
        for image in range(len(source)):
            for slab, rows in _slabs(problem, grad[image], image):
                _Slab(slab, source[image : image + 1], image, weights, sums, launch).run(rows)
    return sums.like(inputs)


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
        sums: Gradients,
        launch: Launch,
    ) -> None:
        self.problem = problem
        self.source = source
        self.image = image
        self.sums = sums
        self.launch = launch
        self.weights = weights
        query = _cuda.prepare(query_weights(weights), source.dtype)
        self.hidden = query.hidden
        self.last = query.last
        self.layers = query.layers
        self.modulation = problem.form == "modulation"

    def run(self, grad: Tensor) -> None:
        """Add this slab's part to the sums, given the gradient of its output [queries,
        channels].
        """
        source = self.source
        width = _cuda.WIDTH
        sums = self.sums
        grad = grad.to(source.dtype).contiguous()
        shape = (self.layers, len(grad), width)
        s = source.new_empty(shape, dtype=torch.float32)
        k = source.new_empty(shape)
        q = source.new_empty(shape)
        decode = _cuda.describe(self.problem, source, self.weights, None)
        decode.kernel = _cuda.PORTABLE
        decode.kept_s = s.data_ptr()
        decode.kept_k = k.data_ptr()
        decode.kept_q = q.data_ptr()
        self.launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))
        both = source.new_empty(self.layers, len(grad), 2 * width)
        self._chain(s, k, product(grad, self.last), both)
        add_product(sums.last, grad, q[-1])
        add_sum(sums.last_bias, grad)
        for n in range(self.layers - 1):
            add_product(entry(sums.hidden, n), self._of_weights(both[n + 1]), q[n])
            add_sum(entry(sums.hidden_bias, n), both[n + 1, :, width:])
        add_sum(sums.position_bias, both[0, :, width:])
        if sums.position is not None:
            sums.position += both[0, :, width:].float().t() @ self._position()
        if self.problem.window is None and sums.source is not None:
            assert self.problem.index is not None
            rows = both[..., :width].transpose(0, 1).flatten(1).float()
            add_rows(sums.source[self.image].flatten(0, 1), self.problem.index[0], rows)

    def _chain(self, s: Tensor, k: Tensor, dq: Tensor, both: Tensor) -> None:
        """both = [dk | ds] of all layers; dk also into the content's gradient, unless the queries
        are points.
        """
        gradient = _cuda.Gradient()
        gradient.queries = len(dq)
        gradient.layers = self.layers
        gradient.operand = _cuda.TYPES[k.dtype]
        gradient.modulation = int(self.modulation)
        gradient.hidden = self.hidden.data_ptr()
        gradient.kept_s = s.data_ptr()
        gradient.kept_k = k.data_ptr()
        gradient.dq = dq.data_ptr()
        gradient.both = both.data_ptr()
        alive = []
        if self.problem.window is not None and self.sums.source is not None:
            window = self.problem.window
            h, w = self.problem.lr
            height, width = self.problem.size
            i, j, _ = locate(self.problem, dq.device)
            top, row_start = owners(window.y0, window.y1, h, height, i)
            left, column_start = owners(window.x0, window.x1, w, width, j)
            alive = [row_start, column_start]
            gradient.source = self.sums.source[self.image].data_ptr()
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
