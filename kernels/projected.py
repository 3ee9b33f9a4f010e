"""The decoder on LR-size content: forms ``content`` (modes 3 and 4) and ``modulation`` (modes 1 and
2).

    q_0 = k_0 sin(Q_0 p + b_0),  k_i = relu(c_i + K_i q_{i-1}),  q_i = k_i sin(Q_i q_{i-1} + b_i),
    out = last q + bias

One program keeps the q of BM queries in registers, as a tuple of [BM, BN] chunks. One rolled loop
runs over the output chunks of all layers, so that the compiler prefetches the weights of the next
chunk during the products of this one; finished chunks gather in the tuple ``new``, which becomes q
when a layer is complete.
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
    paired_product,
    product,
    put,
    put_all,
    relu,
    store_output,
    unpair,
)
from .trig import sin


@triton.jit
def layer_0(
    content, position, position_bias, point, slabs, rows,
    WIDTH: tl.constexpr, MODULATION: tl.constexpr, KEEP: tl.constexpr, FAST: tl.constexpr,
    BN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """q_0, as a tuple of [BM, BN]: three inputs and no products, chunk after chunk, unrolled."""
    slab_s, slab_k, slab_q = slabs
    q = ()
    for chunk in tl.static_range(WIDTH // BN):
        k = tl.load(content + chunk * BN).to(tl.float32)
        k = k if MODULATION else relu(k)
        s = first_argument(position, position_bias, point, chunk * BN, BN)
        value = k * sin(s, FAST)
        if KEEP:
            keep(slab_s, s, 0, chunk * BN, rows, WIDTH, BN)
            keep(slab_k, k, 0, chunk * BN, rows, WIDTH, BN)
            keep(slab_q, value, 0, chunk * BN, rows, WIDTH, BN)
        q = q + (narrow(value, DTYPE),)
    return q


@triton.jit
def hidden_layer(
    q, content, hidden, hidden_bias, layer, o,
    WIDTH: tl.constexpr, MODULATION: tl.constexpr, PAIRED: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Modulation k and sine argument s, float32 [BM, BN], of BN outputs from ``o`` * BN on of layer
    ``layer`` + 1.
    """
    PITCH: tl.constexpr = WIDTH if MODULATION else 2 * WIDTH  # rows of a layer in ``hidden``
    SYNTHESIS: tl.constexpr = 0 if MODULATION else WIDTH  # its first row of Q_i
    c = tl.load(content + (layer + 1) * WIDTH + o * BN)
    b = tl.load(hidden_bias + layer * WIDTH + o * BN + tl.arange(0, BN))
    weight = hidden + layer * (PITCH * WIDTH)
    # k and s of the same outputs, so that they meet in the same registers.
    if PAIRED:
        both = tl.zeros([q[0].shape[0], 2 * BN], tl.float32)
        for i in tl.static_range(WIDTH // BN):
            both = paired_product(q[i], weight, o * BN, i * BN, both, WIDTH, BN, PRECISION)
        k, s = unpair(both, BN)
    else:
        k = tl.zeros([q[0].shape[0], BN], tl.float32)
        s = tl.zeros([q[0].shape[0], BN], tl.float32)
        for i in tl.static_range(WIDTH // BN):
            s = product(q[i], weight, SYNTHESIS + o * BN, i * BN, s, WIDTH, BN, BN, PRECISION)
            if not MODULATION:
                k = product(q[i], weight, o * BN, i * BN, k, WIDTH, BN, BN, PRECISION)
    k += c.to(tl.float32)
    s += b[None, :]
    k = k if MODULATION else relu(k)
    return k, s


@triton.jit
def chunk(
    q, content, hidden, hidden_bias, layer, o, slabs, kept,
    WIDTH: tl.constexpr, MODULATION: tl.constexpr, KEEP: tl.constexpr, PAIRED: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q of BN outputs from ``o`` * BN on of layer ``layer`` + 1, float32 [BM, BN]."""
    k, s = hidden_layer(
        q, content, hidden, hidden_bias, layer, o, WIDTH, MODULATION, PAIRED, PRECISION, BN
    )
    value = k * sin(s, FAST)
    if KEEP:
        slab_s, slab_k, slab_q = slabs
        keep(slab_s, s, layer + 1, o * BN, kept, WIDTH, BN)
        keep(slab_k, k, layer + 1, o * BN, kept, WIDTH, BN)
        keep(slab_q, value, layer + 1, o * BN, kept, WIDTH, BN)
    return value


@triton.jit
def chunk_by_chunk(
    q, content, hidden, hidden_bias, slabs, kept,
    WIDTH: tl.constexpr, LAYERS: tl.constexpr, MODULATION: tl.constexpr, KEEP: tl.constexpr,
    PAIRED: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """q of the last layer, given that of the first: one loop over the output chunks of all layers,
    of which ``new`` gathers a layer's.
    """
    CHUNKS: tl.constexpr = WIDTH // BN
    new = q
    for step in tl.range((LAYERS - 1) * CHUNKS, num_stages=STAGES):
        layer = step // CHUNKS
        o = step % CHUNKS
        value = chunk(
            q, content, hidden, hidden_bias, layer, o, slabs, kept,
            WIDTH, MODULATION, KEEP, PAIRED, PRECISION, FAST, BN,
        )  # fmt: skip
        new = put(new, narrow(value, DTYPE), o, CHUNKS)
        # q changes when its layer is complete: selected, since the loop has no branches.
        q = put_all(q, new, o == CHUNKS - 1, CHUNKS)
    return q


@triton.jit
def layer_by_layer(
    q, content, hidden, hidden_bias, slabs, kept,
    WIDTH: tl.constexpr, LAYERS: tl.constexpr, MODULATION: tl.constexpr, KEEP: tl.constexpr,
    PAIRED: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """As ``chunk_by_chunk``, in a loop for each layer."""
    CHUNKS: tl.constexpr = WIDTH // BN
    for layer in tl.range(LAYERS - 1):
        new = q
        for o in tl.range(CHUNKS, num_stages=STAGES):
            value = chunk(
                q, content, hidden, hidden_bias, layer, o, slabs, kept,
                WIDTH, MODULATION, KEEP, PAIRED, PRECISION, FAST, BN,
            )  # fmt: skip
            new = put(new, narrow(value, DTYPE), o, CHUNKS)
        q = new
    return q


@triton.jit(do_not_specialize=GEOMETRY)
def projected(
    source, position, position_bias, hidden, hidden_bias, last, last_bias, index, offset, out,
    slab_s, slab_k, slab_q,
    h, w, height, width, scale_y, scale_x, ratio, origin_y, origin_x, grid_rows, grid_columns, y0,
    x0, rows, columns, images,
    WIDTH: tl.constexpr, LAYERS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr,
    MODULATION: tl.constexpr, PAIRED: tl.constexpr, NESTED: tl.constexpr, POINTS: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``source`` [B, rows, columns, L*H]; ``hidden`` [L-1, 2H, H] (modulation: [L-1, H, H]); see
    ``network`` for the rest. KEEP writes sine arguments, modulation and q of every layer to slabs
    [L, queries, H].
    """
    DTYPE: tl.constexpr = source.dtype.element_ty
    image, query, mask, row, column, dy, dx = locate(
        index, offset, h, w, height, width, scale_y, scale_x, origin_y, origin_x,
        grid_rows, grid_columns, y0, x0, rows, columns, POINTS, TY, TX,
    )  # fmt: skip
    # Queries of one image, and where this program's stand among those of all.
    total = rows.to(tl.int64) * columns
    kept = (images * total, image * total + query, mask)
    pixel = (image * grid_rows + row) * grid_columns + column
    content = source + pixel[:, None] * (LAYERS * WIDTH) + tl.arange(0, BN)[None, :]
    slabs = (slab_s, slab_k, slab_q)
    q = layer_0(
        content, position, position_bias, (dy, dx, ratio), slabs, kept,
        WIDTH, MODULATION, KEEP, FAST, BN, DTYPE,
    )  # fmt: skip
    if NESTED:
        q = layer_by_layer(
            q, content, hidden, hidden_bias, slabs, kept,
            WIDTH, LAYERS, MODULATION, KEEP, PAIRED, PRECISION, FAST, BN, STAGES, DTYPE,
        )  # fmt: skip
    else:
        q = chunk_by_chunk(
            q, content, hidden, hidden_bias, slabs, kept,
            WIDTH, LAYERS, MODULATION, KEEP, PAIRED, PRECISION, FAST, BN, STAGES, DTYPE,
        )  # fmt: skip
    if not KEEP:
        store_output(
            q, last, last_bias, out, image, query, mask, total,
            WIDTH, BN, CHANNELS, PADDED, POINTS, PRECISION,
        )  # fmt: skip
