"""A decode, and a slab of its backward, as the CUDA kernels' C interface takes them: mirrors the
structs ``Decode`` of csrc/cuda/decode.h and ``Gradient`` of csrc/cuda/gradient.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from diinn_fast.geometry import round_float32
from diinn_fast.problem import Problem, Weights, query_weights

WIDTH = 256
MOST_LAYERS = 16
MOST_CHANNELS = 32
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MATRICES = ("hidden", "last")
"""Weights of products: operands of the tensor cores."""
PORTABLE = 0
HOPPER = 1
INTEGERS = 2

_INT64 = ctypes.c_int64
_INT32 = ctypes.c_int32
_FLOAT = ctypes.c_float
_POINTER = ctypes.c_void_p


class Decode(ctypes.Structure):
    _fields_ = [
        *((name, _INT64) for name in ("batch", "lr_h", "lr_w", "hr_h", "hr_w")),
        *((name, _INT64) for name in ("origin_y", "origin_x", "grid_rows", "grid_columns")),
        *((name, _INT64) for name in ("y0", "x0", "rows", "columns")),
        *((name, _FLOAT) for name in ("scale_y", "scale_x", "ratio")),
        *(
            (name, _INT32)
            for name in ("layers", "channels", "operand", "output", "modulation", "vectors")
        ),
        ("source", _POINTER),
        *((name, _INT64) for name in ("source_image", "source_row", "source_column")),
        *(
            (name, _POINTER)
            for name in ("position", "position_bias", "hidden", "hidden_bias", "last", "last_bias")
        ),
        *((name, _POINTER) for name in ("index", "offset", "out")),
        *((name, _INT64) for name in ("out_image", "out_channel", "out_row", "out_column")),
        *((name, _POINTER) for name in ("packed", "kept_s", "kept_k", "kept_q")),
        *((name, _INT32) for name in ("kernel", "device")),
        ("stream", _POINTER),
    ]
    alive: list[Tensor]
    """What the pointers point to."""


class Gradient(ctypes.Structure):
    _fields_ = [
        ("queries", _INT64),
        *((name, _INT32) for name in ("layers", "operand", "modulation", "device")),
        *(
            (name, _POINTER)
            for name in ("stream", "hidden", "packed", "kept_s", "kept_k", "dq", "both")
        ),
        *((name, _POINTER) for name in ("source", "row_start", "column_start")),
        *(
            (name, _INT64)
            for name in (
                *("images", "down", "across", "columns"),
                *("first_row", "first_column", "grid_rows", "grid_columns"),
            )
        ),
    ]


def describe(
    problem: Problem,
    source: Tensor,
    weights: Sequence[Tensor],
    out: Tensor | None,
    kernel: int = PORTABLE,
) -> Decode:
    """The decode without work space, device and stream. ``out`` None: to be recomputed into
    slabs.
    """
    source = aligned(source.detach())
    matrices = () if kernel == INTEGERS else MATRICES
    query = prepare(query_weights(weights), source.dtype, matrices)
    h, w = problem.lr
    height, width = problem.size
    # The image, the part of it that the source covers, and the factors of the nearest map.
    decode = Decode()
    decode.alive = [source, *query]
    decode.kernel = kernel
    decode.batch, decode.grid_rows, decode.grid_columns = source.shape[:3]
    decode.lr_h = h
    decode.lr_w = w
    decode.hr_h = height
    decode.hr_w = width
    decode.origin_y, decode.origin_x = problem.origin
    decode.scale_y = round_float32(h / height)
    decode.scale_x = round_float32(w / width)
    decode.ratio = problem.ratio
    # The network.
    decode.layers = query.layers
    decode.channels = query.channels
    decode.operand = TYPES[source.dtype]
    decode.vectors = TYPES[query.position.dtype]
    decode.modulation = int(problem.form == "modulation")
    decode.source = source.data_ptr()
    decode.source_image, decode.source_row, decode.source_column = source.stride()[:3]
    for name, value in query._asdict().items():
        setattr(decode, name, value.data_ptr())
    _say_queries(decode, problem)
    if out is not None:
        _say_output(decode, problem, out)
    return decode


def _say_queries(decode: Decode, problem: Problem) -> None:
    """Where they are: points count as a window of one row."""
    if problem.window is not None:
        decode.y0 = problem.window.y0
        decode.x0 = problem.window.x0
        decode.rows, decode.columns = problem.window.shape
    else:
        assert problem.index is not None and problem.offset is not None
        index = problem.index.contiguous()
        offset = problem.offset.detach().float().contiguous()
        # Converted copies must outlive the launch, which only has their addresses.
        decode.alive += [index, offset]
        decode.index = index.data_ptr()
        decode.offset = offset.data_ptr()
        decode.rows = 1
        decode.columns = index.shape[1]


def _say_output(decode: Decode, problem: Problem, out: Tensor) -> None:
    """Of any strides: what is written is as the caller laid it out."""
    decode.alive.append(out)
    decode.out = out.data_ptr()
    decode.output = TYPES[out.dtype]
    if problem.window is not None:
        decode.out_image, decode.out_channel, decode.out_row, decode.out_column = out.stride()
    else:
        decode.out_image, decode.out_column, decode.out_channel = out.stride()


def prepare(weights: Weights, dtype: torch.dtype, matrices: Sequence[str] = MATRICES) -> Weights:
    """The weights as the launchers take them: those named in ``matrices`` in ``dtype``, the rest
    all in one dtype, float32 or ``dtype``, which the launcher widens.
    """
    vectors = {v.dtype for name, v in weights._asdict().items() if name not in matrices}
    rest = dtype if vectors == {dtype} else torch.float32
    found = {
        name: aligned(v.detach().to(dtype if name in matrices else rest))
        for name, v in weights._asdict().items()
    }
    return Weights(**found)


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that 16-byte loads can take."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def packed_bytes(decode: Decode) -> int:
    """Size of the work space that holds the weights as the kernels read them."""
    rows = (decode.layers - 1) * (1 if decode.modulation else 2) * WIDTH
    # Positions [H, 3] and biases of L layers, and of the output.
    vectors = (decode.layers + 3) * WIDTH + decode.channels
    if decode.kernel == INTEGERS:
        # A byte for each weight, and what 1 stands for in each row; the RGB layer is a vector too.
        matrices = rows * WIDTH + 4 * rows
        vectors += decode.channels * WIDTH
    else:
        # The RGB layer is filled up to blocks of 8 rows.
        matrices = 2 * (rows + (decode.channels + 7) // 8 * 8) * WIDTH
    return int(matrices + (4 * vectors if decode.vectors != TYPES[torch.float32] else 0))
