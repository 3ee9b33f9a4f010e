"""Backward of the decode: recomputed slab after slab of queries, so that its memory is bounded;
deterministic.

A slab's sine arguments s, modulation k and q come from the forward kernel; then per layer, from the
last to the first,

    dW += [dk | ds]^T r;   dC[LR pixel] += sum of dk;   dq = [dk | ds] W, and the next [dk | ds]
    from dq, s and k

The last two steps are one kernel, so that dq is never written; dW is the framework's product
(operands in the source's dtype, sums in float32). Slabs follow each other in a fixed order, and
within a slab every LR pixel is summed by one program: two runs are bitwise equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from diinn_fast.backends._gradients import add_product, add_rows, add_sum, product
from diinn_fast.backends._slabs import Slab, slabs
from diinn_fast.formulation import FORMULATIONS
from diinn_fast.problem import Gradients, Problem, entry

from . import tiles
from .backward import split, step_back, sum_queries
from .launch import Network
from .tiles import divisor

SLAB = 1 << 16
"""Queries at a time: about 11 KiB each in 16 bit at H = 256 and 4 layers (direct form: 24 KiB), so
0.7 to 1.5 GiB. Some forty launches per slab take the CPU about 0.4 ms, and a GPU needs some 10 ns
per query: fewer queries would leave it waiting."""


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed."""
    network = Network(problem, source, weights)
    inputs = [source, *weights]
    sums = Sums.of(network, needs)
    if grad.numel():
        for slab in slabs(problem, grad.to(source.dtype), source, problem.chunk or SLAB):
            _Backward(network, slab, sums).run()
    return sums.finish(network).like(inputs)


@dataclass
class Sums(Gradients):
    """Gradients in float32, in the kernels' layout; None where not needed."""

    taps: Tensor | None = None
    """Gradient of each LR pixel's neighbourhood, ``[B, rows*columns, 9*depth]``."""

    @classmethod
    def of(cls, n: Network, needs: Sequence[bool]) -> Sums:
        """Zeros in the shapes of the network's tensors."""
        inputs = [n.source, n.position, n.position_bias, n.hidden, n.hidden_bias]
        inputs += [n.last, n.last_bias]
        direct = [n.content, n.content_bias, n.first, n.first_bias]
        inputs += [v for v in direct if v is not None]
        sums = cls(**vars(Gradients.zeros(inputs, needs, torch.float32)))
        if n.form == "direct" and sums.source is not None:
            batch, rows, columns, depth = n.source.shape
            sums.taps = sums.source.new_zeros(batch, (rows - 2) * (columns - 2), 9 * depth)
        return sums

    def finish(self, n: Network) -> Gradients:
        """The gradients in the operator's layout."""
        grads = Gradients(**{k: v for k, v in vars(self).items() if k != "taps"})
        if n.form != "direct":
            return grads
        # A feature is in the neighbourhoods of nine LR pixels: their taps are added up.
        if grads.source is not None and self.taps is not None:
            source = grads.source
            batch, rows, columns, depth = source.shape
            taps = self.taps.view(batch, rows - 2, columns - 2, 9, depth)
            for tap in range(9):
                y, x = divmod(tap, 3)
                source[:, y : y + rows - 2, x : x + columns - 2] += taps[..., tap, :]
            grads.source = source[..., : n.features]
        # The kernels' weights are tap-major and padded, the operator's are not.
        if grads.content is not None:
            grads.content = n.channel_major(grads.content)
        if n.first is None:
            return grads
        if grads.position is not None:
            grads.position = n.channel_major(grads.position)
        if grads.first is not None:
            grads.first = n.channel_major(grads.first.t()).t()
        if grads.first_bias is not None:
            grads.first_bias = n.channel_major(grads.first_bias[None])[0]
        return grads


class _Backward:
    """The backward of one slab."""

    def __init__(self, network: Network, slab: Slab, sums: Sums) -> None:
        self.network = network
        self.slab = slab
        self.problem = slab.problem
        self.images = slab.images
        self.sums = sums
        self.rows, self.columns = slab.place.grid

    def run(self) -> None:
        """Add the slab's part to the sums."""
        n = self.network
        sums = self.sums
        width = self.network.width
        # Only the inputs were saved.
        grad = self.slab.grad.contiguous()
        s, k, q = n.recompute(self.problem, self.images)
        add_product(sums.last, grad, q[-1])
        add_sum(sums.last_bias, grad)
        both = self._split(product(grad, n.last), None, s[-1], k[-1])
        # In the direct form's modes 1 and 2 k_i has a gradient of its own, from k_{i+1}.
        chain = n.form == "direct" and FORMULATIONS[n.mode].recurrent_k
        dks: list[Tensor] = []
        for layer in reversed(range(n.layers)):
            dk = both[:, :width]
            ds = both[:, width:]
            # dk of the content: into the LR pixels now, or of all layers at the end.
            if n.form == "direct":
                dks.insert(0, dk)
            elif sums.source is not None:
                self._to_pixels(
                    sums.source[self.images].flatten(0, 2)[:, layer * width :], both, width
                )
            if layer == 0:
                break
            # To the layer below: the weights' gradients, then [dk | ds] there.
            weight = n.hidden[layer - 1]
            below = q[layer - 1]
            total = entry(sums.hidden, layer - 1)
            add_sum(entry(sums.hidden_bias, layer - 1), ds)
            if chain:
                add_product(entry(total, slice(0, width)), dk, k[layer - 1])
                add_product(entry(total, slice(width, None)), ds, below)
                carry = product(dk, weight[:width])
                dq = product(ds, weight[width:])
                both = self._split(dq, carry, s[layer - 1], k[layer - 1])
            else:
                add_product(total, ds if n.form == "modulation" else both, below)
                both = self._step_back(both, weight, s[layer - 1], k[layer - 1])
        add_sum(sums.position_bias, ds)
        if n.form == "direct":
            self._direct(dks, ds)
        else:
            add_product(sums.position, ds.float(), self.slab.position)

    def _direct(self, dks: list[Tensor], ds: Tensor) -> None:
        """From the gradients dk_i and ds_0 to content weights, features, and the sine layer of
        init_q.
        """
        n = self.network
        sums = self.sums
        width = self.network.width
        assert n.content is not None
        padded = n.source[self.images].flatten(0, 2)  # [images (rows+2) (columns+2), depth]
        pitch = self.columns + 2
        # Where each query's neighbourhood begins; an image has two rows of border.
        row = self.slab.pixel // self.columns
        corner = (row + row // self.rows * 2) * pitch + self.slab.pixel % self.columns
        x = torch.cat([padded[corner + tap // 3 * pitch + tap % 3] for tap in range(9)], dim=1)
        # What K_i and Q_0 are given: with init_q, x * p' and p' (see `direct`).
        modulated = x
        position = self.slab.position
        argument = None
        if n.first is not None and n.first_bias is not None:
            argument = torch.addmm(n.first_bias, self.slab.position, n.first.t())
            position = torch.sin(argument)
            modulated = (x.float() * position).to(n.dtype)
        add_product(sums.position, ds.float(), position)
        # Content weights, and all that the layers tell of x.
        dx = torch.zeros(x.shape, dtype=torch.float32, device=n.device)
        for layer, dk in enumerate(dks):
            rows = slice(layer * width, (layer + 1) * width)
            add_sum(entry(sums.content_bias, rows), dk)
            if rows.start < len(n.content):
                add_product(entry(sums.content, rows), dk, modulated)
                dx += product(dk, n.content[rows])
        # p' = sin(F p + f) is both Q_0's input and a factor of x.
        if argument is not None:
            dp = (dx * x + product(ds.float(), n.position)) * torch.cos(argument)
            add_product(sums.first, dp, self.slab.position)
            add_sum(sums.first_bias, dp)
            dx *= position
        if sums.taps is not None:
            self._to_pixels(sums.taps[self.images].flatten(0, 1), dx, dx.shape[1])

    def _split(self, dq: Tensor, carry: Tensor | None, s: Tensor, k: Tensor) -> Tensor:
        n = self.network
        block = 1024
        both = k.new_empty(len(k), 2 * n.width)
        split[(triton.cdiv(s.numel(), block),)](
            dq=dq, carry=carry, s=s, k=k, both=both, queries=len(k),
            WIDTH=n.width, CARRY=carry is not None, MODULATION=n.form == "modulation",
            FAST=n.fast_sine, BLOCK=block,
            enable_fp_fusion=True,
        )  # fmt: skip
        return both

    def _step_back(self, above: Tensor, weight: Tensor, s: Tensor, k: Tensor) -> Tensor:
        n = self.network
        both = above.new_empty(above.shape)
        tile = tiles.step_back(n.dtype, n.width)
        grid = triton.cdiv(len(both), tile.bm), n.width // tile.bn
        step_back[grid](
            above=above, weight=weight, s=s, k=k, both=both, queries=len(both),
            WIDTH=n.width, MODULATION=n.form == "modulation", PRECISION=n.precision,
            FAST=n.fast_sine,
            **tiles.step_back_constants(tile), num_warps=tile.warps, num_stages=tile.stages,
            enable_fp_fusion=True,
        )  # fmt: skip
        return both

    def _to_pixels(self, target: Tensor, values: Tensor, features: int) -> None:
        """target[LR pixel, :features] += the sum of values[:, :features] over its queries."""
        owners = self.slab.place.owners
        # Points come in any order: the framework sorts them.
        if owners is None or self.problem.window is None:
            add_rows(target[:, :features], self.slab.pixel, values[:, :features].float())
            return
        down, span = owners.shape
        block = divisor(features, 256)
        sum_queries[(self.slab.count * down * span, features // block)](
            values=values, pitch=values.stride(0), target=target, target_pitch=target.stride(0),
            row_start=owners.row_start, column_start=owners.column_start,
            queries=len(values) // self.slab.count, columns=self.problem.window.shape[1],
            i0=owners.first_row, j0=owners.first_column,
            down=down, span=span, grid_rows=self.rows, grid_columns=self.columns,
            FEATURES=features, BF=block, BQ=16, enable_fp_fusion=True,
        )  # fmt: skip
