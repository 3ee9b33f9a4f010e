"""The decoder on features: form ``direct``, all modes, with and without the sine layer of init_q.

    x   = 3x3 neighbourhood of the nearest feature
    k_i = relu(C_i x + c_i + K_i r)     r = q_{i-1} (modes 3, 4) or k_{i-1} (modes 1, 2)
    q_i = k_i sin(Q_i q_{i-1} + b_i)
    init_q: p' = sin(F p + f), x <- x * p', and Q_0 takes p' for p

As ``projected``, but the content products are done per query: a second rolled loop over the nine
taps, which gathers [BM, BC] features at a time. Each layer is two passes, first all chunks of k_i,
then all of q_i, so that no more than three [BM, H] activations are alive. For few queries, scales
below 1, and init_q, where nothing can be projected.
"""

# ruff: noqa: RUF005 - Triton has no starred expressions

import triton
import triton.language as tl

from .network import (
    GEOMETRY,
    first_argument,
    keep,
    locate,
    narrow,
    product,
    put,
    relu,
    store_output,
)
from .trig import sin


@triton.jit
def content_product(
    neighbourhood, pitch, content, content_row, first, first_bias, dy, dx, ratio,
    INIT_Q: tl.constexpr, DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """C_i x for BN outputs: float32 [BM, BN]. ``content`` is [rows, 9*DEPTH], columns tap*DEPTH +
    channel; ``neighbourhood`` [BM] points to the top left feature, of rows of ``pitch``
    elements.
    """
    BLOCKS: tl.constexpr = DEPTH // BC
    total = tl.zeros([dy.shape[0], BN], tl.float32)
    for step in tl.range(9 * BLOCKS, num_stages=STAGES):
        tap = step // BLOCKS
        at = tap // 3 * pitch + tap % 3 * DEPTH + step % BLOCKS * BC
        x = tl.load(neighbourhood[:, None] + (at + tl.arange(0, BC))[None, :])
        if INIT_Q:
            p = sin(first_argument(first, first_bias, dy, dx, ratio, step * BC, BC), FAST)
            x = narrow(x.to(tl.float32) * p, content.dtype.element_ty)
        total = product(x, content, content_row, step * BC, total, 9 * DEPTH, BN, BC, PRECISION)
    return total


@triton.jit
def position_product(
    position, row, first, first_bias, dy, dx, ratio,
    DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Q_0 p' of init_q for BN outputs, a sine argument, therefore in float32: [BM, BN]."""
    total = tl.zeros([dy.shape[0], BN], tl.float32)
    for step in tl.range(9 * DEPTH // BC, num_stages=STAGES):
        p = sin(first_argument(first, first_bias, dy, dx, ratio, step * BC, BC), FAST)
        total = product(p, position, row, step * BC, total, 9 * DEPTH, BN, BC, PRECISION)
    return total


@triton.jit(do_not_specialize=GEOMETRY)
def direct(
    source, position, position_bias, hidden, hidden_bias, last, last_bias, content, content_bias,
    first, first_bias,
    index, offset, out, slab_s, slab_k, slab_q,
    h, w, height, width, scale_y, scale_x, ratio, origin_y, origin_x, grid_rows, grid_columns, y0,
    x0, rows, columns,
    images,
    WIDTH: tl.constexpr, LAYERS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr,
    DEPTH: tl.constexpr, BC: tl.constexpr, MODE: tl.constexpr, INIT_Q: tl.constexpr,
    POINTS: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``source`` [B, rows+2, columns+2, DEPTH]; ``content`` [L*H, 9*DEPTH] (mode 1: [H, 9*DEPTH]);
    ``first`` [9*DEPTH, 3] and ``position`` [H, 9*DEPTH] with init_q; see ``projected`` for the
    rest.
    """
    CHUNKS: tl.constexpr = WIDTH // BN
    DTYPE: tl.constexpr = source.dtype.element_ty
    ACCURATE: tl.constexpr = "ieee" if PRECISION == "ieee" else "tf32x3"
    image, query, mask, row, column, dy, dx = locate(
        index, offset, h, w, height, width, scale_y, scale_x, origin_y, origin_x,
        grid_rows, grid_columns, y0, x0, rows, columns, POINTS, TY, TX,
    )  # fmt: skip
    # Queries of one image, and where this program's stand among those of all.
    total = rows.to(tl.int64) * columns
    place = image * total + query
    queries = images * total
    # The top left of each query's 3x3 features: the source has a border of one pixel.
    pitch = (grid_columns.to(tl.int64) + 2) * DEPTH
    neighbourhood = source + ((image * (grid_rows + 2) + row) * (grid_columns + 2) + column) * DEPTH
    n = tl.arange(0, BN)

    # Tuples of the right type: a loop's variables must keep theirs.
    k = ()
    q = ()
    for _ in tl.static_range(CHUNKS):
        k = k + (tl.zeros([TY * TX, BN], DTYPE),)
        q = q + (tl.zeros([TY * TX, BN], DTYPE),)
    # Layer 0: its modulation and its sine argument, BN outputs at a time.
    for o in tl.range(CHUNKS):
        c = content_product(
            neighbourhood, pitch, content, o * BN, first, first_bias, dy, dx, ratio,
            INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
        )  # fmt: skip
        modulation = relu(c + tl.load(content_bias + o * BN + n)[None, :])
        if INIT_Q:
            s = position_product(
                position, o * BN, first, first_bias, dy, dx, ratio,
                DEPTH, BC, BN, ACCURATE, FAST, STAGES,
            )  # fmt: skip
            s += tl.load(position_bias + o * BN + n)[None, :]
        else:
            s = first_argument(position, position_bias, dy, dx, ratio, o * BN, BN)
        value = modulation * sin(s, FAST)
        if KEEP:
            keep(slab_s, s, 0, o * BN, queries, place, mask, WIDTH, BN)
            keep(slab_k, modulation, 0, o * BN, queries, place, mask, WIDTH, BN)
            keep(slab_q, value, 0, o * BN, queries, place, mask, WIDTH, BN)
        k = put(k, narrow(modulation, DTYPE), o, CHUNKS)
        q = put(q, narrow(value, DTYPE), o, CHUNKS)

    for layer in tl.range(1, LAYERS):
        weight = hidden + (layer - 1) * (2 * WIDTH * WIDTH)
        # First all of k_i, then all of q_i: only three activations are alive.
        next_k = k
        next_q = q
        for o_k in tl.range(CHUNKS, num_stages=STAGES):
            if MODE == 1:
                next_c = tl.zeros([TY * TX, BN], tl.float32)
            else:
                next_c = content_product(
                    neighbourhood, pitch, content, layer * WIDTH + o_k * BN, first, first_bias,
                    dy, dx, ratio,
                    INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
                )  # fmt: skip
            # The recurrent input: k of the layer below in modes 1 and 2, else q.
            for i in tl.static_range(CHUNKS):
                r = k[i] if MODE <= 2 else q[i]
                next_c = product(r, weight, o_k * BN, i * BN, next_c, WIDTH, BN, BN, PRECISION)
            next_c = relu(next_c + tl.load(content_bias + layer * WIDTH + o_k * BN + n)[None, :])
            if KEEP:
                keep(slab_k, next_c, layer, o_k * BN, queries, place, mask, WIDTH, BN)
            next_k = put(next_k, narrow(next_c, DTYPE), o_k, CHUNKS)
        for o_q in tl.range(CHUNKS, num_stages=STAGES):
            next_s = tl.zeros([TY * TX, BN], tl.float32)
            for i in tl.static_range(CHUNKS):
                next_s = product(
                    q[i], weight, WIDTH + o_q * BN, i * BN, next_s, WIDTH, BN, BN, PRECISION
                )
            next_s += tl.load(hidden_bias + (layer - 1) * WIDTH + o_q * BN + n)[None, :]
            # k of these outputs, selected: registers cannot be indexed.
            chosen = next_k[0]
            for i in tl.static_range(1, CHUNKS):
                chosen = tl.where(o_q == i, next_k[i], chosen)
            next_value = chosen.to(tl.float32) * sin(next_s, FAST)
            if KEEP:
                keep(slab_s, next_s, layer, o_q * BN, queries, place, mask, WIDTH, BN)
                keep(slab_q, next_value, layer, o_q * BN, queries, place, mask, WIDTH, BN)
            next_q = put(next_q, narrow(next_value, DTYPE), o_q, CHUNKS)
        k = next_k
        q = next_q

    if not KEEP:
        store_output(
            q, last, last_bias, out, image, query, mask, total,
            WIDTH, BN, CHANNELS, PADDED, POINTS, PRECISION,
        )  # fmt: skip
