"""The element-wise and reducing kernels of the backward; ``gradient`` puts them together with products."""

import triton
import triton.language as tl

from .network import narrow
from .trig import cos, sin


@triton.jit(do_not_specialize=["queries"])
def split(
    dq, carry, s, k, both, queries,
    WIDTH: tl.constexpr, CARRY: tl.constexpr, MODULATION: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of q = relu(a) sin(s): ``both`` [queries, 2H] = [dk | ds].

    dk = (dq sin(s) + carry) [k > 0], ds = dq k cos(s); ``carry`` is what k_i got from k_{i+1} (modes 1 and 2, direct);
    in the modulation form k is the source itself, without relu.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < queries.to(tl.int64) * WIDTH
    g, argument = tl.load(dq + at, mask=mask, other=0.0), tl.load(s + at, mask=mask, other=0.0)
    modulation = tl.load(k + at, mask=mask, other=0.0).to(tl.float32)
    dk, ds = g * sin(argument, FAST), g * modulation * cos(argument, FAST)
    if CARRY:
        dk += tl.load(carry + at, mask=mask, other=0.0)
    if not MODULATION:
        dk = tl.where(modulation > 0, dk, 0.0)
    to = both + at // WIDTH * (2 * WIDTH) + at % WIDTH
    tl.store(to, narrow(dk, both.dtype.element_ty), mask=mask)
    tl.store(to + WIDTH, narrow(ds, both.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["queries", "columns", "i0", "j0", "down", "span", "grid_rows", "grid_columns"])
def sum_queries(
    values, pitch, target, target_pitch, row_start, column_start, queries, columns, i0, j0, down, span,
    grid_rows, grid_columns,
    FEATURES: tl.constexpr, BF: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """target[LR pixel] += sum of values[query] over the queries of that LR pixel: no atomics, always the same order.

    ``values`` [images * queries, pitch], an image's queries row by row in a rectangle of ``columns``; the LR pixel
    (i0 + a, j0 + b) owns its rows row_start[a] : row_start[a+1] and columns column_start[b] : column_start[b+1]. A
    program is one LR pixel (``down`` rows of ``span`` of them an image) and BF features.
    """
    image = (tl.program_id(0) // (down * span)).to(tl.int64)
    program = tl.program_id(0) % (down * span)
    a, b = program // span, program % span
    y0, y1 = tl.load(row_start + a), tl.load(row_start + a + 1)
    x0, x1 = tl.load(column_start + b), tl.load(column_start + b + 1)
    across = x1 - x0
    count = (y1 - y0) * across
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    exists = f < FEATURES
    total = tl.zeros([BF], tl.float32)
    start = count * 0
    while start < count:
        n = start + tl.arange(0, BQ)
        query = image * queries + (y0 + n // across) * columns + x0 + n % across
        mask = (n < count)[:, None] & exists[None, :]
        total += tl.sum(tl.load(values + query[:, None] * pitch + f[None, :], mask=mask, other=0.0).to(tl.float32), 0)
        start += BQ
    to = target + ((image * grid_rows + i0 + a) * grid_columns + j0 + b) * target_pitch + f
    tl.store(to, tl.load(to, mask=exists) + total, mask=exists)
