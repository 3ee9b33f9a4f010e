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
    pick,
    product,
    put,
    relu,
    store_output,
)
from .trig import sin


@triton.jit
def content_product(
    features, content, content_row, first, point,
    INIT_Q: tl.constexpr, DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """C_i x for BN outputs: float32 [BM, BN]. ``content`` is [rows, 9*DEPTH], columns tap*DEPTH +
    channel; ``features`` = (pointers [BM] to the top left feature, elements of a row of them).
    """
    neighbourhood, pitch = features
    weight, bias = first
    BLOCKS: tl.constexpr = DEPTH // BC
    total = tl.zeros([neighbourhood.shape[0], BN], tl.float32)
    for step in tl.range(9 * BLOCKS, num_stages=STAGES):
        tap = step // BLOCKS
        at = tap // 3 * pitch + tap % 3 * DEPTH + step % BLOCKS * BC
        x = tl.load(neighbourhood[:, None] + (at + tl.arange(0, BC))[None, :])
        if INIT_Q:
            p = sin(first_argument(weight, bias, point, step * BC, BC), FAST)
            x = narrow(x.to(tl.float32) * p, content.dtype.element_ty)
        total = product(x, content, content_row, step * BC, total, 9 * DEPTH, BN, BC, PRECISION)
    return total


@triton.jit
def position_argument(
    position, position_bias, row, first, point,
    INIT_Q: tl.constexpr, DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sine argument of layer 0 for BN outputs, with init_q Q_0 p' + b_0, whose products therefore
    are as exact as float32: [BM, BN].
    """
    if INIT_Q:
        ACCURATE: tl.constexpr = "ieee" if PRECISION == "ieee" else "tf32x3"
        weight, bias = first
        s = tl.zeros([point[0].shape[0], BN], tl.float32)
        for step in tl.range(9 * DEPTH // BC, num_stages=STAGES):
            p = sin(first_argument(weight, bias, point, step * BC, BC), FAST)
            s = product(p, position, row, step * BC, s, 9 * DEPTH, BN, BC, ACCURATE)
        s += tl.load(position_bias + row + tl.arange(0, BN))[None, :]
    else:
        s = first_argument(position, position_bias, point, row, BN)
    return s


@triton.jit
def modulation_of_layer(
    k, q, weight, content_bias, features, content, first, point, layer, o,
    WIDTH: tl.constexpr, MODE: tl.constexpr,
    INIT_Q: tl.constexpr, DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """k of a layer for BN outputs from o * BN on, float32 [BM, BN]: given k and q of the layer
    below.
    """
    row = layer * WIDTH + o * BN
    if MODE == 1:
        c = tl.zeros([k[0].shape[0], BN], tl.float32)
    else:
        c = content_product(
            features, content, row, first, point, INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES
        )
    # The recurrent input: k of the layer below in modes 1 and 2, else q.
    for i in tl.static_range(WIDTH // BN):
        r = k[i] if MODE <= 2 else q[i]
        c = product(r, weight, o * BN, i * BN, c, WIDTH, BN, BN, PRECISION)
    return relu(c + tl.load(content_bias + row + tl.arange(0, BN))[None, :])


@triton.jit
def argument_of_layer(
    q, weight, hidden_bias, layer, o,
    WIDTH: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sine argument of a layer for BN outputs from o * BN on, float32 [BM, BN]."""
    s = tl.zeros([q[0].shape[0], BN], tl.float32)
    for i in tl.static_range(WIDTH // BN):
        s = product(q[i], weight, WIDTH + o * BN, i * BN, s, WIDTH, BN, BN, PRECISION)
    return s + tl.load(hidden_bias + (layer - 1) * WIDTH + o * BN + tl.arange(0, BN))[None, :]


@triton.jit
def layer_0(
    features, content, content_bias, position, position_bias, first, point, slabs, kept,
    WIDTH: tl.constexpr, KEEP: tl.constexpr,
    INIT_Q: tl.constexpr, DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """k_0 and q_0, tuples of [BM, BN]."""
    slab_s, slab_k, slab_q = slabs
    CHUNKS: tl.constexpr = WIDTH // BN
    DTYPE: tl.constexpr = content.dtype.element_ty
    # Tuples of the right type: a loop's variables must keep theirs.
    k = ()
    q = ()
    for _ in tl.static_range(CHUNKS):
        k = k + (tl.zeros([features[0].shape[0], BN], DTYPE),)
        q = q + (tl.zeros([features[0].shape[0], BN], DTYPE),)
    for o in tl.range(CHUNKS):
        c = content_product(
            features, content, o * BN, first, point,
            INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
        )  # fmt: skip
        modulation = relu(c + tl.load(content_bias + o * BN + tl.arange(0, BN))[None, :])
        s = position_argument(
            position, position_bias, o * BN, first, point,
            INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
        )  # fmt: skip
        value = modulation * sin(s, FAST)
        if KEEP:
            keep(slab_s, s, 0, o * BN, kept, WIDTH, BN)
            keep(slab_k, modulation, 0, o * BN, kept, WIDTH, BN)
            keep(slab_q, value, 0, o * BN, kept, WIDTH, BN)
        k = put(k, narrow(modulation, DTYPE), o, CHUNKS)
        q = put(q, narrow(value, DTYPE), o, CHUNKS)
    return k, q


@triton.jit
def hidden_layer(
    k, q, hidden, hidden_bias, content_bias, features, content, first, point, slabs, kept, layer,
    WIDTH: tl.constexpr, MODE: tl.constexpr, KEEP: tl.constexpr,
    INIT_Q: tl.constexpr, DEPTH: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """k and q of a layer, given those of the layer below: first all of k, then all of q, so that
    only three activations are alive.
    """
    slab_s, slab_k, slab_q = slabs
    CHUNKS: tl.constexpr = WIDTH // BN
    DTYPE: tl.constexpr = content.dtype.element_ty
    weight = hidden + (layer - 1) * (2 * WIDTH * WIDTH)
    next_k = k
    for o in tl.range(CHUNKS, num_stages=STAGES):
        modulation = modulation_of_layer(
            k, q, weight, content_bias, features, content, first, point, layer, o,
            WIDTH, MODE, INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
        )  # fmt: skip
        if KEEP:
            keep(slab_k, modulation, layer, o * BN, kept, WIDTH, BN)
        next_k = put(next_k, narrow(modulation, DTYPE), o, CHUNKS)
    next_q = q
    for o in tl.range(CHUNKS, num_stages=STAGES):
        s = argument_of_layer(q, weight, hidden_bias, layer, o, WIDTH, BN, PRECISION)
        value = pick(next_k, o, CHUNKS).to(tl.float32) * sin(s, FAST)
        if KEEP:
            keep(slab_s, s, layer, o * BN, kept, WIDTH, BN)
            keep(slab_q, value, layer, o * BN, kept, WIDTH, BN)
        next_q = put(next_q, narrow(value, DTYPE), o, CHUNKS)
    return next_k, next_q


@triton.jit(do_not_specialize=GEOMETRY)
def direct(
    source, position, position_bias, hidden, hidden_bias, last, last_bias, content, content_bias,
    first, first_bias, index, offset, out, slab_s, slab_k, slab_q,
    h, w, height, width, scale_y, scale_x, ratio, origin_y, origin_x, grid_rows, grid_columns, y0,
    x0, rows, columns, images,
    WIDTH: tl.constexpr, LAYERS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr,
    DEPTH: tl.constexpr, BC: tl.constexpr, MODE: tl.constexpr, INIT_Q: tl.constexpr,
    POINTS: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``source`` [B, rows+2, columns+2, DEPTH]; ``content`` [L*H, 9*DEPTH] (mode 1: [H, 9*DEPTH]);
    ``first`` [9*DEPTH, 3] and ``position`` [H, 9*DEPTH] with init_q; see ``projected`` for the
    rest.
    """
    image, query, mask, row, column, dy, dx = locate(
        index, offset, h, w, height, width, scale_y, scale_x, origin_y, origin_x,
        grid_rows, grid_columns, y0, x0, rows, columns, POINTS, TY, TX,
    )  # fmt: skip
    # Queries of one image, and where this program's stand among those of all.
    total = rows.to(tl.int64) * columns
    kept = (images * total, image * total + query, mask)
    # The top left of each query's 3x3 features: the source has a border of one pixel.
    pixel = (image * (grid_rows + 2) + row) * (grid_columns + 2) + column
    features = (source + pixel * DEPTH, (grid_columns.to(tl.int64) + 2) * DEPTH)
    sine_layer = (first, first_bias)
    point = (dy, dx, ratio)
    slabs = (slab_s, slab_k, slab_q)
    k, q = layer_0(
        features, content, content_bias, position, position_bias, sine_layer, point, slabs, kept,
        WIDTH, KEEP, INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
    )  # fmt: skip
    for layer in tl.range(1, LAYERS):
        k, q = hidden_layer(
            k, q, hidden, hidden_bias, content_bias, features, content, sine_layer, point, slabs,
            kept, layer,
            WIDTH, MODE, KEEP, INIT_Q, DEPTH, BC, BN, PRECISION, FAST, STAGES,
        )  # fmt: skip
    if not KEEP:
        store_output(
            q, last, last_bias, out, image, query, mask, total,
            WIDTH, BN, CHANNELS, PADDED, POINTS, PRECISION,
        )  # fmt: skip
