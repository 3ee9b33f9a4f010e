"""The decoder on LR-size content with 8-bit integers as factors of the hidden products: forms
``content`` (modes 3 and 4) and ``modulation`` (modes 1 and 2), forward.

The arithmetic is that of csrc/cpu (``quantise.h``, ``forward_int8.h``): integers are the hidden
weights, by their rows, and each query's q between layers, by its largest value; sums are exact;
position, content, biases, arguments of the sine, q as it is made and the RGB layer are float32.

The structure is ``projected``'s, nested: q must be complete before its largest value is known.
"""

# ruff: noqa: RUF005 - Triton has no starred expressions

import triton
import triton.language as tl

from .network import GEOMETRY, locate, narrow, put, relu, unpair
from .projected import layer_0
from .trig import ROUND, sin

LARGEST = tl.constexpr(127.0)
LEAST = tl.constexpr(2.0**-100)
"""A row that nowhere reaches it counts as zero."""
INFINITE_BITS = tl.constexpr(0x7F800000)


@triton.jit
def quantise(x, CHUNKS: tl.constexpr):
    """Rows of float32 x, a tuple of [BM, BN], as integers n in -127..127, and what 1 stands for
    [BM]: n = round(x * (127 / a)) to the nearest even, fused, and a / 127, with a = max |x|.

    A row with NaN or infinity stands for NaN.
    """
    most = tl.abs(x[0])
    for i in tl.static_range(1, CHUNKS):
        most = tl.maximum(most, tl.abs(x[i]), propagate_nan=tl.PropagateNan.ALL)
    # Without the sign the bits of floats are in the order of the floats, NaN the largest.
    bits = tl.max(most.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    finite = bits < INFINITE_BITS
    largest = bits.to(tl.float32, bitcast=True)
    counts = finite & (largest >= LEAST)
    divisor = tl.where(counts, largest, 1.0)
    full = tl.full(largest.shape, LARGEST, tl.float32)
    inverse = tl.where(counts, tl.div_rn(full, divisor), 0.0)
    unit = tl.where(counts, tl.div_rn(divisor, full), tl.where(finite, 0.0, float("nan")))
    # The sum with 1.5 * 2^23 has the rounded integer in its last bits.
    integers = ()
    for i in tl.static_range(CHUNKS):
        shifted = tl.fma(x[i], inverse[:, None], ROUND)
        integers = integers + (shifted.to(tl.int32, bitcast=True).to(tl.int8),)
    return integers, unit


@triton.jit(do_not_specialize=["rows"])
def quantise_rows(
    values, integers, units, rows, WIDTH: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr
):
    """The rows of ``values`` [rows, WIDTH] as integers and units; a program is BM of them."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    mask = m < rows
    at = m[:, None] * WIDTH + tl.arange(0, BN)[None, :]
    x = ()
    for i in tl.static_range(WIDTH // BN):
        part = tl.load(values + at + i * BN, mask=mask[:, None], other=0.0)
        x = x + (part.to(tl.float32),)
    n, unit = quantise(x, WIDTH // BN)
    for i in tl.static_range(WIDTH // BN):
        tl.store(integers + at + i * BN, n[i], mask=mask[:, None])
    tl.store(units + m, unit, mask=mask)


@triton.jit
def integer_product(x, matrix, output, column, total, WIDTH: tl.constexpr, BK: tl.constexpr):
    """total + x M^T for the rows ``output`` and BK columns from ``column`` on of an integer matrix
    [rows, WIDTH]: int32, exact.
    """
    k = column + tl.arange(0, BK)
    m = tl.load(matrix + output[None, :] * WIDTH + k[:, None])
    return tl.dot(x, m, total, out_dtype=tl.int32)


@triton.jit
def scaled(total, units, unit, term):
    """What integer sums stand for, given what 1 stands for in each row's weights and each query's
    integers, plus ``term`` in one fused step: float32 [BM, BN].
    """
    return tl.fma(total.to(tl.float32) * units[None, :], unit[:, None], term)


@triton.jit
def paired_sums(n, weight, o, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Sums of the rows K and Q of BN outputs from ``o`` * BN on, by one product, which reads and
    awaits n once: ``network.paired_product`` in integers.
    """
    column = tl.arange(0, 2 * BN)
    pair = column // 2
    output = column % 2 * WIDTH + o * BN + pair // 8 * 8 + pair % 4 * 2 + pair // 4 % 2
    both = tl.zeros([n[0].shape[0], 2 * BN], tl.int32)
    for i in tl.static_range(WIDTH // BN):
        both = integer_product(n[i], weight, output, i * BN, both, WIDTH, BN)
    return unpair(both, BN)


@triton.jit
def sums(n, weight, output, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Sums of the rows ``output`` [BN] of a layer's weights."""
    total = tl.zeros([n[0].shape[0], BN], tl.int32)
    for i in tl.static_range(WIDTH // BN):
        total = integer_product(n[i], weight, output, i * BN, total, WIDTH, BN)
    return total


@triton.jit
def hidden_chunk(
    n, unit, content, hidden, units, hidden_bias, layer, o,
    WIDTH: tl.constexpr, MODULATION: tl.constexpr, PAIRED: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q of BN outputs from ``o`` * BN on of layer ``layer`` + 1, float32 [BM, BN], given the
    integers of the layer below and what 1 stands for in them.
    """
    ROWS: tl.constexpr = WIDTH if MODULATION else 2 * WIDTH  # of a layer in ``hidden``
    own = o * BN + tl.arange(0, BN)
    synthesis = layer * ROWS + (0 if MODULATION else WIDTH) + own
    k = tl.load(content + (layer + 1) * WIDTH + o * BN).to(tl.float32)
    b = tl.load(hidden_bias + layer * WIDTH + own)[None, :]
    weight = hidden + layer * (ROWS * WIDTH)
    if MODULATION:
        s = sums(n, weight, own, WIDTH, BN)
    else:
        # k and s of the same outputs, so that they meet in the same registers.
        if PAIRED:
            c, s = paired_sums(n, weight, o, WIDTH, BN)
        else:
            s = sums(n, weight, WIDTH + own, WIDTH, BN)
            c = sums(n, weight, own, WIDTH, BN)
        k = relu(scaled(c, tl.load(units + layer * ROWS + own), unit, k))
    return k * sin(scaled(s, tl.load(units + synthesis), unit, b), True)


@triton.jit
def store_rgb(
    q, last, last_bias, out, image, query, mask, total,
    WIDTH: tl.constexpr, BN: tl.constexpr, CHANNELS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """out = last q + bias in float32, channel by channel: too few for a product on tensor cores to
    be worth three of TF32. ``total``: queries per image.
    """
    for channel in tl.range(CHANNELS):
        terms = tl.zeros(q[0].shape, tl.float32)
        for i in tl.static_range(WIDTH // BN):
            w = tl.load(last + channel * WIDTH + i * BN + tl.arange(0, BN))
            terms = tl.fma(q[i], w[None, :], terms)
        rgb = tl.sum(terms, 1) + tl.load(last_bias + channel)
        # [B, N, channels] of points, [B, channels, rows, columns] of a window.
        if POINTS:
            at = (image * total + query) * CHANNELS + channel
        else:
            at = (image * CHANNELS + channel) * total + query
        tl.store(out + at, narrow(rgb, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=GEOMETRY)
def quantised(
    source, position, position_bias, hidden, units, hidden_bias, last, last_bias, index, offset,
    out,
    h, w, height, width, scale_y, scale_x, ratio, origin_y, origin_x, grid_rows, grid_columns, y0,
    x0, rows, columns, images,
    WIDTH: tl.constexpr, LAYERS: tl.constexpr, CHANNELS: tl.constexpr, MODULATION: tl.constexpr,
    PAIRED: tl.constexpr, POINTS: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``source`` [B, rows, columns, L*H]; ``hidden`` [L-1, 2H, H] in int8 and ``units`` [L-1, 2H]
    of ``quantise_rows`` (modulation: H rows); see ``network`` for the rest.
    """
    CHUNKS: tl.constexpr = WIDTH // BN
    image, query, mask, row, column, dy, dx = locate(
        index, offset, h, w, height, width, scale_y, scale_x, origin_y, origin_x,
        grid_rows, grid_columns, y0, x0, rows, columns, POINTS, TY, TX,
    )  # fmt: skip
    total = rows.to(tl.int64) * columns
    pixel = (image * grid_rows + row) * grid_columns + column
    content = source + pixel[:, None] * (LAYERS * WIDTH) + tl.arange(0, BN)[None, :]
    q = layer_0(
        content, position, position_bias, (dy, dx, ratio), (None, None, None), None,
        WIDTH, MODULATION, False, True, BN, tl.float32,
    )  # fmt: skip
    for layer in tl.range(LAYERS - 1):
        n, unit = quantise(q, CHUNKS)
        new = q
        for o in tl.range(CHUNKS, num_stages=STAGES):
            value = hidden_chunk(
                n, unit, content, hidden, units, hidden_bias, layer, o,
                WIDTH, MODULATION, PAIRED, BN,
            )  # fmt: skip
            new = put(new, value, o, CHUNKS)
        q = new
    store_rgb(
        q, last, last_bias, out, image, query, mask, total, WIDTH, BN, CHANNELS, POINTS
    )  # fmt: skip
