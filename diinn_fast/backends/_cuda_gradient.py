"""Backward of the decode with the CUDA kernels: recomputed slab after slab of queries;
deterministic.

Per slab the forward kernel writes s, k and q of all layers; ``diinn_gradient`` goes back through
the layers, writes [dk | ds] of each and adds dk into the content's gradient; the weights' gradients
are the framework's products of [dk | ds] and q. Slabs follow each other in a fixed order and
nothing is added atomically: two runs are bitwise equal.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diinn_fast.backends import _cuda
from diinn_fast.backends._gradients import add_product, add_rows, add_sum, product
from diinn_fast.backends._slabs import Slab, slabs
from diinn_fast.problem import Gradients, Problem, query_weights

SLAB = 1 << 16
"""Queries at a time: 13 KiB each at 4 layers, so about 0.8 GiB. Some twenty launches per slab take
the CPU about 0.1 ms, and a GPU needs some 5 ns per query: fewer queries would leave it waiting."""

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
        chain = _Backward(source, weights, sums, launch)
        for slab in slabs(problem, grad.to(source.dtype), source, problem.chunk or SLAB):
            chain.run(slab)
    return sums.like(inputs)


class _Backward:
    """Adds one slab's part after the other to the sums."""

    def __init__(
        self, source: Tensor, weights: Sequence[Tensor], sums: Gradients, launch: Launch
    ) -> None:
        self.source = source
        self.sums = sums
        self.launch = launch
        self.weights = _cuda.prepare(query_weights(weights), source.dtype)

    def run(self, slab: Slab) -> None:
        weights = self.weights
        sums = self.sums
        width = _cuda.WIDTH
        grad = slab.grad.contiguous()
        # Only the inputs were saved.
        s, k, q = self._recompute(slab)
        both = self._chain(slab, s, k, product(grad, weights.last))
        add_product(sums.last, grad, q[-1])
        add_sum(sums.last_bias, grad)
        # Of the products [K; Q] r, in modulation form Q r, of all layers at once.
        recurrent = both[1:, :, width:] if slab.problem.form == "modulation" else both[1:]
        add_product(sums.hidden, recurrent, q[:-1])
        # Biases, and the first layer, whose input is the position.
        ds = both[..., width:].sum(1, dtype=torch.float32)
        if sums.hidden_bias is not None:
            sums.hidden_bias += ds[1:]
        if sums.position_bias is not None:
            sums.position_bias += ds[0]
        if sums.position is not None:
            add_product(sums.position, both[0, :, width:].float(), slab.position)
        # A window's content was added by the kernel; points come in any order.
        if sums.source is not None and slab.place.owners is None:
            rows = both[..., :width].transpose(0, 1).flatten(1).float()
            add_rows(sums.source[slab.images].flatten(0, 2), slab.pixel, rows)

    def _recompute(self, slab: Slab) -> tuple[Tensor, Tensor, Tensor]:
        """Sine arguments s (float32), modulation k and q of all layers, ``[L, queries, H]``."""
        source = self.source[slab.images]
        shape = (self.weights.layers, len(slab.grad), _cuda.WIDTH)
        s = source.new_empty(shape, dtype=torch.float32)
        k = source.new_empty(shape)
        q = source.new_empty(shape)
        # The Hopper kernel keeps nothing: its registers are full.
        decode = _cuda.describe(slab.problem, source, self.weights, None)
        decode.kernel = _cuda.PORTABLE
        decode.kept_s = s.data_ptr()
        decode.kept_k = k.data_ptr()
        decode.kept_q = q.data_ptr()
        self.launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))
        return s, k, q

    def _chain(self, slab: Slab, s: Tensor, k: Tensor, dq: Tensor) -> Tensor:
        """[dk | ds] of all layers, ``[L, queries, 2H]``; dk also into the content's gradient,
        unless the queries are points.
        """
        hidden = self.weights.hidden
        both = k.new_empty(len(k), len(dq), 2 * _cuda.WIDTH)
        gradient = _cuda.Gradient()
        # Addresses and sizes for the kernel's C structure, field by field.
        gradient.queries = len(dq)
        gradient.layers = len(k)
        gradient.operand = _cuda.TYPES[k.dtype]
        gradient.modulation = int(slab.problem.form == "modulation")
        gradient.hidden = hidden.data_ptr()
        gradient.kept_s = s.data_ptr()
        gradient.kept_k = k.data_ptr()
        gradient.dq = dq.data_ptr()
        gradient.both = both.data_ptr()
        # Without an address the kernel leaves the content's gradient out.
        owners = slab.place.owners
        if owners is not None and self.sums.source is not None:
            assert slab.problem.window is not None
            total = self.sums.source[slab.images]
            gradient.source = total.data_ptr()
            gradient.row_start = owners.row_start.data_ptr()
            gradient.column_start = owners.column_start.data_ptr()
            gradient.images = slab.count
            gradient.down, gradient.across = owners.shape
            gradient.columns = slab.problem.window.shape[1]
            gradient.first_row = owners.first_row
            gradient.first_column = owners.first_column
            gradient.grid_rows, gradient.grid_columns = total.shape[1:3]
        self.launch("diinn_gradient", gradient, dq, 2 * hidden.numel())
        return both
