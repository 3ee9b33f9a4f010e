"""The kernels of the backward that are not the framework's products; ``gradient`` puts them
together.
"""

import triton
import triton.language as tl

from .network import narrow
from .trig import INTERPRETED, cos, sin


@triton.jit
def gradients_of_layer(dq, dk, s, k, MODULATION: tl.constexpr, FAST: tl.constexpr):
    """(dk, ds) of q = relu(a) sin(s): dk = (dq sin(s) + dk) [k > 0], ds = dq k cos(s), all float32.

    The given dk is what k_i got from k_{i+1} (modes 1 and 2, direct); in the modulation form k is
    the source itself, without relu.
    """
    dk += dq * sin(s, FAST)
    if not MODULATION:
        dk = tl.where(k > 0, dk, 0.0)
    return dk, dq * k * cos(s, FAST)


@triton.jit(do_not_specialize=["queries"])
def split(
    dq, carry, s, k, both, queries,
    WIDTH: tl.constexpr, CARRY: tl.constexpr, MODULATION: tl.constexpr, FAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``both`` [queries, 2H] = [dk | ds] of a layer, given dq [queries, H] (and ``carry``, the dk
    from above).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < queries.to(tl.int64) * WIDTH
    g = tl.load(dq + at, mask=mask, other=0.0)
    argument = tl.load(s + at, mask=mask, other=0.0)
    modulation = tl.load(k + at, mask=mask, other=0.0).to(tl.float32)
    # The carry comes from the recurrence k_i = f(k_{i-1}) alone.
    above = tl.load(carry + at, mask=mask, other=0.0) if CARRY else tl.zeros([BLOCK], tl.float32)
    dk, ds = gradients_of_layer(g, above, argument, modulation, MODULATION, FAST)
    to = both + at // WIDTH * (2 * WIDTH) + at % WIDTH
    tl.store(to, narrow(dk, both.dtype.element_ty), mask=mask)
    tl.store(to + WIDTH, narrow(ds, both.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["queries"])
def step_back(
    above, weight, s, k, both, queries,
    WIDTH: tl.constexpr, MODULATION: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """From a layer's [dk | ds] to that of the layer below: ``split`` of dq = ``above`` W, which is
    never written.

    ``above`` and ``both`` are [queries, 2H], ``weight`` [2H, H] (modulation: ds alone counts, and
    [H, H]). A program is BM queries by BN columns.
    """
    # Rows past the end repeat the last one and are not stored.
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = m < queries
    m = tl.minimum(m, queries.to(tl.int64) - 1)
    SKIPPED: tl.constexpr = WIDTH if MODULATION else 0  # columns of dk
    ROWS: tl.constexpr = 2 * WIDTH - SKIPPED
    # dq = [dk | ds] W, in blocks of BK terms that the compiler fetches ahead.
    dq = tl.zeros([BM, BN], tl.float32)
    for step in tl.range(ROWS // BK, num_stages=STAGES):
        row = step * BK + tl.arange(0, BK)
        x = tl.load(above + (m * (2 * WIDTH) + SKIPPED)[:, None] + row[None, :])
        w = tl.load(weight + row[:, None] * WIDTH + n[None, :])
        if INTERPRETED:  # whose bfloat16 products are wrong
            dq = tl.dot(x.to(tl.float32), w.to(tl.float32), dq, input_precision="ieee")
        else:
            dq = tl.dot(x, w, dq, input_precision=PRECISION)
    # Through the activation of the layer below, while dq is in registers.
    at = m[:, None] * WIDTH + n[None, :]
    modulation = tl.load(k + at).to(tl.float32)
    argument = tl.load(s + at)
    dk, ds = gradients_of_layer(
        dq, tl.zeros([BM, BN], tl.float32), argument, modulation, MODULATION, FAST
    )
    to = both + m[:, None] * (2 * WIDTH) + n[None, :]
    tl.store(to, narrow(dk, both.dtype.element_ty), mask=mask[:, None])
    tl.store(to + WIDTH, narrow(ds, both.dtype.element_ty), mask=mask[:, None])


@triton.jit(
    do_not_specialize=[
        "queries",
        "columns",
        "i0",
        "j0",
        "down",
        "span",
        "grid_rows",
        "grid_columns",
    ]
)
def sum_queries(
    values, pitch, target, target_pitch, row_start, column_start, queries, columns, i0, j0, down,
    span,
    grid_rows, grid_columns,
    FEATURES: tl.constexpr, BF: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """target[LR pixel] += sum of values[query] over the queries of that LR pixel: no atomics,
    always the same order.

    ``values`` [images * queries, pitch], an image's queries row by row in a rectangle of
    ``columns``; the LR pixel (i0 + a, j0 + b) owns its rows row_start[a] : row_start[a+1] and
    columns column_start[b] : column_start[b+1]. A program is one LR pixel (``down`` rows of
    ``span`` of them an image) and BF features.
    """
    image = (tl.program_id(0) // (down * span)).to(tl.int64)
    program = tl.program_id(0) % (down * span)
    a = program // span
    b = program % span
    # The rectangle of queries that this LR pixel owns.
    y0 = tl.load(row_start + a)
    y1 = tl.load(row_start + a + 1)
    x0 = tl.load(column_start + b)
    x1 = tl.load(column_start + b + 1)
    across = x1 - x0
    count = (y1 - y0) * across
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    exists = f < FEATURES
    # BQ queries at a time, in order; `while`, since the interpreter fails on run-time ranges.
    total = tl.zeros([BF], tl.float32)
    start = count * 0
    while start < count:
        n = start + tl.arange(0, BQ)
        query = image * queries + (y0 + n // across) * columns + x0 + n % across
        mask = (n < count)[:, None] & exists[None, :]
        total += tl.sum(
            tl.load(values + query[:, None] * pitch + f[None, :], mask=mask, other=0.0).to(
                tl.float32
            ),
            0,
        )
        start += BQ
    # No other program adds to this LR pixel: no atomics.
    to = target + ((image * grid_rows + i0 + a) * grid_columns + j0 + b) * target_pitch + f
    tl.store(to, tl.load(to, mask=exists) + total, mask=exists)
