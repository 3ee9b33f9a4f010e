"""The CUDA kernels without a GPU: their source, compiled for the CPU, runs thread by thread on an
emulated machine.

csrc/cuda/emulation does the few instructions that C++ has no words for as the PTX ISA documents
them; all else (index arithmetic, packed weights, swizzles, barriers, epilogues) is the very text
that nvcc compiles. Reads before a barrier, copies that are waited for too late and deadlocks show
as NaN or as an error.
"""

from __future__ import annotations

import ctypes
import mmap
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diinn_fast import BackendError, backends
from diinn_fast.backends import _cuda, cuda, eager
from diinn_fast.geometry import Window, local_offset, lr_range, nearest_index
from diinn_fast.problem import Problem, query_weights
from tests.helpers import emulated_gpu

pytestmark = pytest.mark.skipif(
    emulated_gpu.unavailable() is not None, reason=str(emulated_gpu.unavailable())
)

H = _cuda.WIDTH
DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture
def library() -> ctypes.CDLL:
    """launch.cu's interface on the emulated machine."""
    return emulated_gpu.library()


@pytest.fixture(params=emulated_gpu.ARCHITECTURES)
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend ``cuda`` as if this were a GPU that takes the kernel in question."""
    emulated_gpu.install(monkeypatch, request.param)


def example(
    form: str,
    dtype: torch.dtype,
    lr: tuple[int, int],
    batch: int = 1,
    layers: int = 4,
    channels: int = 3,
) -> tuple[Tensor, list[Tensor]]:
    """Source and weights with sine arguments of a few units, so that every branch matters."""

    def uniform(*shape: Any) -> Any:
        return torch.rand(shape) * 2 - 1

    source = uniform(batch, *lr, layers * H).to(dtype)
    rows = 2 * H if form == "content" else H
    hidden = (uniform(layers - 1, rows, H) * 0.15).to(dtype)
    last = (uniform(channels, H) * 0.1).to(dtype)
    return source, [
        uniform(H, 3),
        uniform(H),
        hidden,
        uniform(layers - 1, H),
        last,
        uniform(channels),
    ]


def problem_of(
    form: str,
    lr: tuple[int, int],
    size: tuple[int, int],
    window: Window | None = None,
    origin: tuple[int, int] = (0, 0),
    index: Tensor | None = None,
    offset: Tensor | None = None,
) -> Problem:
    window = window or (None if index is not None else Window(0, size[0], 0, size[1]))
    return Problem(form, 3 if form == "content" else 1, lr, origin, size, window, index, offset, 0)


def in_float64(problem: Problem, source: Tensor, weights: list[Tensor]) -> Tensor:
    return eager.forward(problem, source.double(), [v.double() for v in weights])


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("struct", "file"), [(_cuda.Decode, "decode.h"), (_cuda.Gradient, "gradient.h")]
)
def test_structs_have_the_same_fields_in_python_and_c(
    struct: type[ctypes.Structure], file: str
) -> None:
    text = (emulated_gpu.FOLDER / file).read_text()
    start = text.index(f"struct {struct.__name__} {{")
    lines = [
        line.split("//")[0].strip()
        for line in text[start : text.index("\n};", start)].splitlines()[1:]
    ]
    names = [
        word.split()[-1].strip("*")
        for line in "".join(lines).split(";")
        if line
        for word in line.split(",")
    ]
    assert names == [name for name, *_ in struct._fields_]


@pytest.mark.parametrize("dtype", DTYPES)
def test_16_bit_numbers_round_as_torch_does(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    bits = torch.arange(1 << 16).to(torch.uint16)
    wide = torch.empty(1 << 16)
    library.diinn_emulate_widen(*pointers(bits, wide), ctypes.c_int64(1 << 16), _cuda.TYPES[dtype])
    assert torch.equal(wide.nan_to_num(nan=-7), bits.view(dtype).float().nan_to_num(nan=-7))
    finite = wide[wide.isfinite()].sort().values
    middles = (finite[1:].double() + finite[:-1].double()) / 2  # ties
    values = torch.cat(
        [middles.float(), torch.nextafter(middles.float(), torch.tensor(0.0)), torch.randn(1000)]
    )
    narrow = torch.empty(len(values), dtype=torch.uint16)
    library.diinn_emulate_narrow(
        *pointers(values, narrow), ctypes.c_int64(len(values)), _cuda.TYPES[dtype]
    )
    assert torch.equal(narrow.view(dtype), values.to(dtype))


def pointers(*tensors: Any) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(v.data_ptr()) for v in tensors]


@pytest.mark.parametrize("form", ["content", "modulation"])
@pytest.mark.parametrize("kernel", [_cuda.PORTABLE, _cuda.HOPPER])
def test_packing_moves_every_weight_to_one_place(
    library: ctypes.CDLL, kernel: int, form: str
) -> None:
    source, weights = example(form, torch.float16, (1, 1), layers=2, channels=5)
    hidden = query_weights(weights).hidden
    last = query_weights(weights).last
    hidden.view(torch.int16).copy_(torch.arange(hidden.numel()).view_as(hidden).to(torch.int16))
    decode = _cuda.describe(
        problem_of(form, (1, 1), (1, 1)), source, weights, source.new_empty(1, 5, 1, 1)
    )
    packed = torch.zeros(_cuda.packed_bytes(decode) // 2, dtype=torch.int16)
    assert _cuda.packed_bytes(decode) == library.diinn_packed_bytes(ctypes.byref(decode))
    decode.packed = packed.data_ptr()
    decode.kernel = kernel
    library.diinn_emulate_pack(ctypes.byref(decode))
    moved = (packed[: hidden.numel()].long() & 0xFFFF).bincount(minlength=1 << 16)
    times = hidden.numel() >> 16
    assert (moved == times).all()
    rest = packed[hidden.numel() :].view(torch.float16)
    assert torch.equal(
        rest[rest != 0].sort().values, last.flatten()[last.flatten() != 0].sort().values
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_and_biases_in_16_bit_are_widened(emulated: None, dtype: torch.dtype) -> None:
    """As if the caller had done so, to the bit: an operator less each."""
    source, weights = example("content", dtype, (3, 4), layers=3, channels=5)
    narrow = [v.to(dtype) for v in weights]
    problem = problem_of("content", (3, 4), (5, 9))
    ours = cuda.forward(problem, source, narrow)
    assert torch.equal(ours, cuda.forward(problem, source, [v.float() for v in narrow]))
    # One vector of another dtype, and the caller's are widened by the framework.
    mixed = [*narrow[:-1], narrow[-1].float()]
    assert torch.equal(ours, cuda.forward(problem, source, mixed))


@pytest.mark.parametrize(("largest", "error"), [(1e3, 2.5e-7), (1e4, 5e-7)])
def test_sine_reduction(library: ctypes.CDLL, largest: float, error: float) -> None:
    x = torch.cat([torch.linspace(-largest, largest, 100_001), torch.randn(1000) * 10])
    reduced = torch.empty_like(x)
    library.diinn_emulate_reduce(*pointers(x, reduced), ctypes.c_int64(len(x)))
    assert (reduced.double().sin() - x.double().sin()).abs().max() < error
    assert reduced.abs().max() < 3.1426


# -- queries ---------------------------------------------------------------------------------------


def located(
    library: ctypes.CDLL, problem: Problem, source: Tensor, weights: list[Tensor], out: Tensor
) -> Any:
    """LR element, output element (-1: none) and number of every query, and its (dy, dx)."""
    decode = _cuda.describe(problem, source, weights, out)
    count = library.diinn_emulate_locate(ctypes.byref(decode), None, None)
    places = torch.empty(count, 3, dtype=torch.int64)
    offsets = torch.empty(count, 2)
    library.diinn_emulate_locate(ctypes.byref(decode), *pointers(places, offsets))
    return places, offsets


def test_queries_of_windows_agree_with_geometry_to_the_bit(
    library: ctypes.CDLL, seed: random.Random
) -> None:
    weights = example("content", torch.float16, (1, 1), layers=2)[1]
    for case in range(150):
        lr = seed.randint(1, 300), seed.randint(1, 300)
        size = tuple(seed.randint(1, 400 if case % 2 else 1 << seed.randint(3, 24)) for _ in lr)
        y0, x0 = (seed.randrange(size[0]), 0) if case % 2 else map(seed.randrange, size)
        window = Window(
            y0, min(size[0], y0 + seed.randint(1, 9)), x0, min(size[1], x0 + seed.randint(1, 400))
        )
        origin = (
            lr_range(window.y0, window.y1, lr[0], size[0])[0],
            lr_range(window.x0, window.x1, lr[1], size[1])[0],
        )
        source = torch.empty(2, 2, 3, 2 * H, dtype=torch.float16)  # its addresses alone count
        out = torch.empty(2, 3, *window.shape)
        problem = problem_of("content", lr, size, window, origin)
        places, offsets = located(library, problem, source, weights, out)
        valid = places[:, 1] >= 0
        assert int(valid.sum()) == 2 * out[0, 0].numel()
        places = places[valid]
        offsets = offsets[valid]
        image = places[:, 1] // out.stride(0)
        within = places[:, 1] % out.stride(0)
        y = within // window.shape[1]
        x = within % window.shape[1]
        assert len(torch.unique(places[:, 1])) == len(places)
        assert torch.equal(places[:, 2], image * out[0, 0].numel() + within)
        i, j = (nearest_index(a, b, n, m) for a, b, n, m in axes(window, lr, size))
        dy = local_offset(window.y0, window.y1, i, lr[0], size[0], torch.float32)
        dx = local_offset(window.x0, window.x1, j, lr[1], size[1], torch.float32)
        assert torch.equal(offsets, torch.stack([dy[y], dx[x]], 1))
        strides = source.stride()
        assert torch.equal(
            places[:, 0],
            image * strides[0] + (i[y] - origin[0]) * strides[1] + (j[x] - origin[1]) * strides[2],
        )


def axes(window: Window | None, lr: tuple[int, int], size: tuple[int, int]) -> Any:
    return (window.y0, window.y1, lr[0], size[0]), (window.x0, window.x1, lr[1], size[1])


# -- whole kernels ---------------------------------------------------------------------------------


@pytest.mark.long
def test_tuning_changes_no_bits(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Blocks of a cluster, stages, and who goes ahead: the sums are the same."""
    source, weights = example("content", torch.bfloat16, (5, 5), layers=3)
    problem = problem_of("content", (5, 5), (19, 33))
    outs = []
    for built in (
        library,
        emulated_gpu.build(tmp_path, "-DDIINN_CLUSTER=4", "-DDIINN_STAGES=9", "-DDIINN_AHEAD=1"),
    ):
        emulated_gpu.install(monkeypatch, "hopper", built)
        emulated_gpu.schedule(8, 1, built)
        outs.append(cuda._forward(problem, source, weights))
    assert torch.equal(*outs)


@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16])
def test_output_types_and_strides(emulated: Any, output: torch.dtype) -> None:
    """Written exactly where the strides say, in any type; nothing else is touched."""
    source, weights = example("content", torch.float16, (3, 3), layers=2)
    problem = problem_of("content", (3, 3), (7, 10))
    canvas = torch.full((9, 12, 5), float("nan"), dtype=output)
    out = canvas[1:8, 1:11, :3].permute(2, 0, 1)[None]  # channels last, inside a larger picture
    launch(problem, source, weights, out)
    want = in_float64(problem, source, weights)
    torch.testing.assert_close(
        out.double(), want, rtol=0, atol=2e-2 if output == torch.bfloat16 else 3e-3
    )
    assert int(canvas.isnan().sum()) == canvas.numel() - out.numel()


def launch(problem: Problem, source: Tensor, weights: list[Tensor], out: Tensor) -> None:
    decode = _cuda.describe(problem, source, weights, out)
    decode.kernel = cuda._kernel(source)
    cuda._launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))


def test_addresses_beyond_2_to_the_31_elements(emulated: Any) -> None:
    """A window at the end of an image of 2^24 x 2^24 pixels, whose source and output are sparse 10
    GB mappings.
    """
    lr = (1 << 22, 1 << 22)
    size = (1 << 24, 1 << 24)
    layers = 2
    window = Window(size[0] - 3, size[0], size[1] - 5, size[1])
    problem = problem_of("content", lr, size, window, (lr[0] - 2, lr[1] - 3))
    source, weights = example("content", torch.float16, (2, 3), layers=layers)
    want = cuda._forward(problem, source, weights)
    mapped = np.frombuffer(
        mmap.mmap(
            -1,
            10 << 30,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0),
        ),
        np.uint16,
    )
    far = torch.from_numpy(mapped).view(torch.float16)
    spread = far.as_strided(source.shape, (0, 4_000_000_000, 40_000, 1))
    spread.copy_(source)
    out = far.as_strided(want.shape, (0, 7, 2_400_000_000, 1_000), 100_000_000)
    decode = _cuda.describe(problem, source, weights, out)
    decode.kernel = cuda._kernel(source)
    decode.source, (decode.source_row, decode.source_column) = far.data_ptr(), spread.stride()[1:3]
    cuda._launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))
    assert torch.equal(out, want)


def test_without_a_device_the_backend_says_so() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="CUDA device"):
            backends.use_backend("cuda")


# -- the emulated machine itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "symptom"),
    [(0, ""), (1, "wrong"), (2, "deadlock"), (3, "wrong"), (4, "crooked")],
    ids=["none", "no barrier", "barrier in a branch", "copy not waited for", "misaligned"],
)
def test_the_emulated_machine_notices_mistakes(
    library: ctypes.CDLL, mistake: int, symptom: str
) -> None:
    message = ctypes.create_string_buffer(400)
    seen = set()
    for seed in range(6):
        library.diinn_emulate_mistake(mistake, ctypes.c_uint64(seed), message, ctypes.c_int64(400))
        seen.add(message.value.decode())
    assert seen == {""} if not symptom else any(symptom in text for text in seen)
