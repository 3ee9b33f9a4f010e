"""What the decoder kernels share: where a query lies, products, activations, the output."""

# ruff: noqa: RUF005 - Triton has no starred expressions

import triton
import triton.language as tl

from .trig import INTERPRETED

GEOMETRY = (
    "h", "w", "height", "width", "scale_y", "scale_x", "ratio",  # sizes, float32(h / H), ...
    "origin_y", "origin_x", "grid_rows", "grid_columns",  # the source's first LR pixel and size
    "y0", "x0", "rows", "columns",  # the window; for points rows = 1, columns = N
    "images",
)  # fmt: skip
"""Scalar arguments of the kernels that differ from image to image: no specialisation, or each size
would compile.
"""


@triton.jit
def nearest(position, scale, n_in):
    """LR index of HR positions along one axis: the float32 formula of ``geometry.nearest_index``,
    bit for bit.
    """
    return tl.minimum(((position.to(tl.float32) + 0.5) * scale).to(tl.int64), n_in.to(tl.int64) - 1)


@triton.jit
def local(position, index, n_in, n_out):
    """Local coordinate in LR half-pixels: numerator in int64, division rounded as IEEE says."""
    numerator = (2 * position.to(tl.int64) + 1) * n_in - (2 * index + 1) * n_out
    return tl.div_rn(
        numerator.to(tl.float32), tl.zeros_like(numerator).to(tl.float32) + n_out.to(tl.float32)
    )


@triton.jit
def locate(
    index, offset, h, w, height, width, scale_y, scale_x, origin_y, origin_x, grid_rows,
    grid_columns,
    y0, x0, rows, columns, POINTS: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
):  # fmt: skip
    """The queries of this program: image, number within the image, mask, source row and column, dy,
    dx.

    A program has TY*TX points, or a tile of TY x TX pixels of the window: neighbours share LR
    pixels, so that their gathers hit the cache. Queries past the end repeat the last one, masked.
    """
    m = tl.arange(0, TY * TX)
    # Programs count through the images, in each through its tiles, row by row.
    tiles_x = tl.cdiv(columns, TX)
    tiles = tl.cdiv(rows, TY) * tiles_x if not POINTS else tl.cdiv(columns, TY * TX)
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    tile = program % tiles
    if POINTS:
        query = tile.to(tl.int64) * (TY * TX) + m
        mask = query < columns
        query = tl.minimum(query, columns.to(tl.int64) - 1)
        at = image * columns + query
        # An index outside the source gives NaN, not another pixel.
        pixel = tl.load(index + at)
        inside = (pixel >= 0) & (pixel < grid_rows.to(tl.int64) * grid_columns)
        pixel = tl.where(inside, pixel, 0)
        row = pixel // grid_columns
        column = pixel % grid_columns
        dy = tl.load(offset + 2 * at)
        dx = tl.load(offset + 2 * at + 1)
        dy = tl.where(inside, dy, float("nan"))
    else:
        y = tile // tiles_x * TY + m // TX
        x = tile % tiles_x * TX + m % TX
        mask = (y < rows) & (x < columns)
        # Past the end, so that every address is one of the source's.
        y = tl.minimum(y, rows - 1)
        x = tl.minimum(x, columns - 1)
        query = y.to(tl.int64) * columns + x
        # From the window to the image, to its LR pixels, to those of the source.
        y = y + y0
        x = x + x0
        i = nearest(y, scale_y, h)
        j = nearest(x, scale_x, w)
        dy = local(y, i, h, height)
        dx = local(x, j, w, width)
        row = i - origin_y
        column = j - origin_x
    return image, query, mask, row, column, dy, dx


@triton.jit
def product(
    x, matrix, row, column, total,
    PITCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + x M^T for M = ``matrix[row : row+ROWS, column : column+COLUMNS]`` of a row-major
    matrix.

    x is [BM, COLUMNS], total float32 [BM, ROWS]: operands in their own dtype, sums in float32.
    """
    n = tl.arange(0, ROWS)
    k = tl.arange(0, COLUMNS)
    m = tl.load(matrix + (row + n)[None, :] * PITCH + (column + k)[:, None])
    if INTERPRETED:  # whose bfloat16 products are wrong
        return tl.dot(x.to(tl.float32), m.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(x, m, total, input_precision=PRECISION)


@triton.jit
def paired_product(
    x, matrix, row, column, total, WIDTH: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr
):
    """``product`` of the rows K and Q of the same BN outputs at once, total [BM, 2 BN]: x is read
    once, and waited for once. Their columns stand as ``unpair`` takes them apart.
    """
    n = tl.arange(0, 2 * BN)
    k = column + tl.arange(0, BN)
    # Columns n and n + 1 are k and s of one output, and a thread has both; that of its pairs in two
    # blocks of 8 columns the outputs are neighbours, as they are in a product of BN columns.
    pair = n // 2
    output = pair // 8 * 8 + pair % 4 * 2 + pair // 4 % 2
    m = tl.load(matrix + (n % 2 * WIDTH + row + output)[None, :] * WIDTH + k[:, None])
    if INTERPRETED:  # whose bfloat16 products are wrong
        return tl.dot(x.to(tl.float32), m.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(x, m, total, input_precision=PRECISION)


@triton.jit
def unpair(both, BN: tl.constexpr):
    """k and s [BM, BN] of a ``paired_product``, without a move between threads."""
    BM: tl.constexpr = both.shape[0]
    pairs = tl.permute(tl.reshape(both, [BM, BN // 8, 2, 4, 2]), (0, 1, 3, 2, 4))
    return tl.split(tl.reshape(pairs, [BM, BN, 2]))


@triton.jit
def first_argument(position, bias, point, column, BN: tl.constexpr):
    """Sine argument of layer 0, Q_0 (dy, dx, ratio) + b_0 of ``point`` = (dy, dx, ratio), for BN
    outputs from ``column``: float32 [BM, BN].
    """
    dy, dx, ratio = point
    # Fused by name: left to the compiler, which of two products it fuses depends on the tile, and
    # so would the bits.
    n = column + tl.arange(0, BN)
    constant = tl.fma(tl.load(position + 3 * n + 2), ratio, tl.load(bias + n))
    s = tl.fma(dy[:, None], tl.load(position + 3 * n)[None, :], constant[None, :])
    return tl.fma(dx[:, None], tl.load(position + 3 * n + 1)[None, :], s)


@triton.jit
def store_output(
    q, last, last_bias, out, image, query, mask, total, WIDTH: tl.constexpr, BN: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, POINTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = last q + bias; ``last`` is [PADDED, H], its surplus rows zero. ``total``: queries per
    image.
    """
    CHUNKS: tl.constexpr = WIDTH // BN
    # The RGB layer, chunk by chunk of q, as every other product.
    rgb = tl.zeros([query.shape[0], PADDED], tl.float32)
    for i in tl.static_range(CHUNKS):
        rgb = product(q[i], last, 0, i * BN, rgb, WIDTH, PADDED, BN, PRECISION)
    channel = tl.arange(0, PADDED)
    exists = channel < CHANNELS
    rgb += tl.load(last_bias + channel, mask=exists, other=0.0)[None, :]
    # [B, N, channels] of points, [B, channels, rows, columns] of a window.
    if POINTS:
        at = (image * total + query[:, None]) * CHANNELS + channel[None, :]
    else:
        at = (image * CHANNELS + channel[None, :]) * total + query[:, None]
    tl.store(out + at, narrow(rgb, out.dtype.element_ty), mask=mask[:, None] & exists[None, :])


@triton.jit
def keep(slab, value, layer, column, rows, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Write a [BM, BN] tile of a layer into a slab [layers, queries, H], for the backward;
    ``rows`` = (queries of all images, place of each among them, mask).
    """
    queries, place, mask = rows
    where = (layer * queries + place)[:, None] * WIDTH + (column + tl.arange(0, BN))[None, :]
    tl.store(slab + where, narrow(value, slab.dtype.element_ty), mask=mask[:, None])


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 x rounded to the operands' dtype, half to even."""
    if INTERPRETED and DTYPE.is_bf16():  # the interpreter cuts the low bits off instead
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def relu(x):
    """max(x, 0); NaN stays NaN."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def put(chunks, value, at, CHUNKS: tl.constexpr):
    """The tuple with ``chunks[at]`` replaced: registers have no addresses, so a selection stands
    for an index.

    (Rotating the tuple is cheaper but yields loop variables untouched, and the pipeliner then skips
    the loop.)
    """
    replaced = ()
    for i in tl.static_range(CHUNKS):
        replaced = replaced + (tl.where(at == i, value, chunks[i]),)
    return replaced


@triton.jit
def put_all(chunks, others, condition, CHUNKS: tl.constexpr):
    """The tuple ``others`` if the condition holds, else ``chunks``."""
    chosen = ()
    for i in tl.static_range(CHUNKS):
        chosen = chosen + (tl.where(condition, others[i], chunks[i]),)
    return chosen


@triton.jit
def pick(chunks, at, CHUNKS: tl.constexpr):
    """``chunks[at]``, selected, since registers cannot be indexed."""
    chosen = chunks[0]
    for i in tl.static_range(1, CHUNKS):
        chosen = tl.where(at == i, chunks[i], chosen)
    return chosen
