"""The CUDA kernels without a GPU: their source, compiled for the CPU, runs thread by thread on an
emulated machine.

csrc/cuda/emulation does the few instructions that C++ has no words for as the PTX ISA documents
them; all else (index arithmetic, packed weights, swizzles, barriers, epilogues) is the very text
that nvcc compiles. Reads before a barrier, copies that are waited for too late and deadlocks show
as NaN or as an error.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.problems import make_decoder, oracle

from diinn_fast import BackendError, backends
from diinn_fast.backends import _cuda, cuda, eager
from diinn_fast.geometry import Window, local_offset, lr_range, nearest_index
from diinn_fast.problem import Problem

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda"
COMPILER = (
    os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
)
pytestmark = pytest.mark.skipif(
    COMPILER is None or os.name == "nt", reason="no C++ compiler (GCC or Clang)"
)

KERNELS = {"portable": "86", "hopper": "90a"}
H = _cuda.WIDTH
DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """launch.cu's interface on the emulated machine."""
    return build(tmp_path_factory.mktemp("cuda"))


def build(folder, *macros):
    built = folder / "emulation.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", *macros]
    command = [*COMPILER.split(), *flags, str(FOLDER / "emulation/library.cpp"), "-o", str(built)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = cuda.interface(built)
    loaded.diinn_emulate_locate.restype = ctypes.c_int64
    return loaded


@pytest.fixture(params=KERNELS)
def emulated(request, library, monkeypatch):
    """Backend ``cuda`` as if this were a GPU that takes the kernel in question."""
    return install(library, monkeypatch, KERNELS[request.param])


@pytest.fixture
def backward_only(library, monkeypatch):
    """The same for the backward, whose kernels are the portable ones everywhere."""
    return install(library, monkeypatch, KERNELS["portable"])


def install(library, monkeypatch, arch: str):
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(cuda, "unsupported", cuda._unsuited)
    monkeypatch.setattr(cuda, "_library", lambda arch: library)
    monkeypatch.setattr(cuda, "_architecture", lambda source: arch)
    monkeypatch.setattr(cuda, "_checked", {})
    on(library, blocks=2, seed=0)
    return library


def on(library, blocks: int, seed: int) -> None:
    library.diinn_emulate_on(blocks, ctypes.c_uint64(seed))


def example(form, dtype, lr, batch=1, layers=4, channels=3):
    """Source and weights with sine arguments of a few units, so that every branch matters."""

    def uniform(*shape):
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


def problem_of(form, lr, size, window=None, origin=(0, 0), index=None, offset=None):
    window = window or (None if index is not None else Window(0, size[0], 0, size[1]))
    return Problem(form, 3 if form == "content" else 1, lr, origin, size, window, index, offset, 0)


def in_float64(problem, source, weights):
    return eager.forward(problem, source.double(), [v.double() for v in weights])


def check(problem, source, weights, out=None):
    """Within twice the error of plain PyTorch in the same dtype against float64, in root mean
    square.
    """
    ours = cuda._forward(problem, source, weights) if out is None else out
    want = in_float64(problem, source, weights)
    theirs = eager.forward(problem, source, weights)
    error = (ours.double() - want).square().mean().sqrt()
    allowed = (theirs.double() - want).square().mean().sqrt()
    assert error <= 2 * allowed + 1e-6
    return ours


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("struct", "file"), [(_cuda.Decode, "decode.h"), (_cuda.Gradient, "gradient.h")]
)
def test_structs_have_the_same_fields_in_python_and_c(struct, file):
    text = (FOLDER / file).read_text()
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
    assert names == [name for name, _ in struct._fields_]


@pytest.mark.parametrize("dtype", DTYPES)
def test_16_bit_numbers_round_as_torch_does(library, dtype):
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


def pointers(*tensors):
    return [ctypes.c_void_p(v.data_ptr()) for v in tensors]


@pytest.mark.parametrize("form", ["content", "modulation"])
@pytest.mark.parametrize("kernel", [_cuda.PORTABLE, _cuda.HOPPER])
def test_packing_moves_every_weight_to_one_place(library, kernel, form):
    source, weights = example(form, torch.float16, (1, 1), layers=2, channels=5)
    hidden = weights[2]
    last = weights[4]
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


@pytest.mark.parametrize(("largest", "error"), [(1e3, 2.5e-7), (1e4, 5e-7)])
def test_sine_reduction(library, largest, error):
    x = torch.cat([torch.linspace(-largest, largest, 100_001), torch.randn(1000) * 10])
    reduced = torch.empty_like(x)
    library.diinn_emulate_reduce(*pointers(x, reduced), ctypes.c_int64(len(x)))
    assert (reduced.double().sin() - x.double().sin()).abs().max() < error
    assert reduced.abs().max() < 3.1426


# -- queries ---------------------------------------------------------------------------------------


def located(library, problem, source, weights, out):
    """LR element, output element (-1: none) and number of every query, and its (dy, dx)."""
    decode = _cuda.describe(problem, source, weights, out)
    count = library.diinn_emulate_locate(ctypes.byref(decode), None, None)
    places = torch.empty(count, 3, dtype=torch.int64)
    offsets = torch.empty(count, 2)
    library.diinn_emulate_locate(ctypes.byref(decode), *pointers(places, offsets))
    return places, offsets


def test_queries_of_windows_agree_with_geometry_to_the_bit(library, seed):
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
        vertical, horizontal = axes(window, lr, size)
        dy = local_offset(*vertical[:2], i, *vertical[2:], torch.float32)
        dx = local_offset(*horizontal[:2], j, *horizontal[2:], torch.float32)
        assert torch.equal(offsets, torch.stack([dy[y], dx[x]], 1))
        strides = source.stride()
        assert torch.equal(
            places[:, 0],
            image * strides[0] + (i[y] - origin[0]) * strides[1] + (j[x] - origin[1]) * strides[2],
        )


def axes(window, lr, size):
    return (window.y0, window.y1, lr[0], size[0]), (window.x0, window.x1, lr[1], size[1])


# -- whole kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_modes_against_the_definition(emulated, mode, dtype):
    decoder = make_decoder(mode, channels=4).to(dtype)
    features = torch.randn(1, 4, 3, 5).to(dtype)
    with torch.no_grad():
        want = oracle(decoder, features, (7, 11))
        ours = decoder(features, (7, 11), backend="cuda").double()
        theirs = decoder(features, (7, 11), backend="eager").double()
    assert (ours - want).square().mean() <= 4 * (theirs - want).square().mean() + 1e-12


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_odd_sizes_batches_windows_and_tiles(emulated, form, seed):
    for lr, size in [((1, 1), (1, 1)), ((1, 7), (1, 19)), ((3, 4), (17, 9))]:
        source, weights = example(form, torch.float16, lr, batch=2, layers=2)
        whole = check(problem_of(form, lr, size), source, weights)
        y0 = seed.randrange(size[0])
        x0 = seed.randrange(size[1])
        window = Window(y0, seed.randint(y0 + 1, size[0]), x0, seed.randint(x0 + 1, size[1]))
        rows, columns = (slice(*lr_range(*axis)) for axis in axes(window, lr, size))
        problem = problem_of(form, lr, size, window, (rows.start, columns.start))
        part = cuda._forward(problem, source[:, rows, columns], weights)
        assert torch.equal(part, whole[:, :, window.y0 : window.y1, window.x0 : window.x1])


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_points(emulated, form):
    source, weights = example(form, torch.bfloat16, (5, 6), batch=2, layers=3)
    index = torch.randint(0, 30, (2, 70))
    offset = torch.rand(2, 70, 2) * 2 - 1
    problem = problem_of(form, (5, 6), (20, 24), index=index, offset=offset)
    check(problem, source, weights)
    index[1, 3] = 30
    out = cuda._forward(
        problem_of(form, (5, 6), (20, 24), index=index, offset=offset), source, weights
    )
    assert out.isnan().nonzero().tolist() == [[1, 3, c] for c in range(3)]


@pytest.mark.parametrize("layers", [2, 3, 6])
def test_any_number_of_layers_and_channels(emulated, layers):
    source, weights = example("content", torch.float16, (2, 2), layers=layers, channels=9)
    check(problem_of("content", (2, 2), (5, 6)), source, weights)


def test_bits_depend_neither_on_the_schedule_nor_on_the_number_of_blocks(emulated):
    source, weights = example("content", torch.float16, (5, 5), layers=3)
    problem = problem_of("content", (5, 5), (19, 33))
    outs = []
    for blocks, seed in [(1, 1), (2, 2), (5, 3), (4, 4)]:
        on(emulated, blocks, seed)
        outs.append(cuda._forward(problem, source, weights))
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert outs[0].isfinite().all()


def test_tuning_changes_no_bits(library, monkeypatch, tmp_path):
    """Blocks of a cluster, stages, and who goes ahead: the sums are the same."""
    source, weights = example("content", torch.bfloat16, (5, 5), layers=3)
    problem = problem_of("content", (5, 5), (19, 33))
    outs = []
    for built in (
        library,
        build(tmp_path, "-DDIINN_CLUSTER=4", "-DDIINN_STAGES=9", "-DDIINN_AHEAD=1"),
    ):
        on(install(built, monkeypatch, KERNELS["hopper"]), 8, 1)
        outs.append(cuda._forward(problem, source, weights))
    assert torch.equal(*outs)


@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16])
def test_output_types_and_strides(emulated, output):
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


def launch(problem, source, weights, out):
    decode = _cuda.describe(problem, source, weights, out)
    decode.kernel = cuda._kernel(source)
    cuda._launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))


def test_addresses_beyond_2_to_the_31_elements(emulated):
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


# -- gradients -------------------------------------------------------------------------------------


def gradients_of(problem, source, weights, grad):
    """By the kernels, by plain PyTorch in the same dtype, and by plain PyTorch in float64."""
    needs = [True] * (1 + len(weights))
    exact = eager.backward(
        problem, grad.double(), source.double(), [v.double() for v in weights], needs
    )
    theirs = eager.backward(problem, grad, source, weights, needs)
    return cuda._backward(problem, grad, source, weights, needs), theirs, exact


# Slabs of 6 and 3 rows of one image, or of both images whole.
@pytest.mark.parametrize("chunk", [80, 0])
@pytest.mark.parametrize(
    ("form", "dtype"), list(zip(("content", "modulation"), DTYPES, strict=True))
)
def test_gradients_of_a_window(backward_only, form, dtype, chunk):
    lr = (9, 8)
    size = (31, 21)
    window = Window(5, 14, 3, 16)
    origin = (1, 1)
    source, weights = example(form, dtype, (4, 7), batch=2, layers=3)
    problem = replace(problem_of(form, lr, size, window, origin), chunk=chunk)
    grad = torch.randn(2, 3, *window.shape).to(dtype)
    names = ("source", "position", "position_bias", "hidden", "hidden_bias", "last", "last_bias")
    for name, ours, theirs, exact in zip(
        names, *gradients_of(problem, source, weights, grad), strict=True
    ):
        error = (ours.double() - exact).norm()
        allowed = (theirs.double() - exact).norm()
        assert error <= 2 * allowed + 1e-3 * exact.norm(), name
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape


def test_gradients_of_points(backward_only):
    source, weights = example("content", torch.float16, (4, 5), batch=2, layers=2)
    index = torch.randint(0, 20, (2, 40))
    offset = torch.rand(2, 40, 2) * 2 - 1
    problem = problem_of("content", (4, 5), (16, 20), index=index, offset=offset)
    for ours, theirs, exact in zip(
        *gradients_of(problem, source, weights, torch.randn(2, 40, 3).half()), strict=True
    ):
        error = (ours.double() - exact).norm()
        allowed = (theirs.double() - exact).norm()
        assert error <= 2 * allowed + 1e-3 * exact.norm()


def test_gradients_are_the_same_bits_in_every_run_and_only_where_needed(backward_only):
    source, weights = example("content", torch.float16, (3, 4), layers=2)
    problem = problem_of("content", (3, 4), (13, 10))
    grad = torch.randn(1, 3, 13, 10).half()
    runs = []
    for blocks, seed in [(1, 1), (3, 2)]:
        on(backward_only, blocks, seed)
        runs.append(cuda._backward(problem, grad, source, weights, [True] * 7))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    some = cuda._backward(problem, grad, source, weights, [False, True] * 3 + [False])
    assert [v.numel() > 0 for v in some] == [False, True] * 3 + [False]
    assert all(torch.equal(a, b) for a, b in zip(some, runs[0], strict=True) if a.numel())


def test_training_step_through_the_operator(backward_only):
    decoder = make_decoder(3, channels=4).half()
    features = torch.randn(1, 4, 3, 3).half().requires_grad_()
    grads = [
        torch.autograd.grad(
            decoder(features, (7, 7), backend=name).float().square().sum(), [features]
        )[0].float()
        for name in ("cuda", "eager")
    ]
    assert (grads[0] - grads[1]).norm() <= 2e-2 * grads[1].norm()


# -- the backend around them -----------------------------------------------------------------------


def test_first_use_is_checked_against_eager(emulated, monkeypatch, caplog):
    source, weights = example("content", torch.float16, (3, 3), layers=2)
    problem = problem_of("content", (3, 3), (4, 4))
    with torch.no_grad():
        assert torch.equal(
            cuda.forward(problem, source, weights), cuda._forward(problem, source, weights)
        )
        assert list(cuda._checked.values()) == [None]
        cuda._checked.clear()
        right = cuda._forward
        monkeypatch.setattr(cuda, "_forward", lambda *arguments: right(*arguments) + 0.1)
        assert torch.equal(
            cuda.forward(problem, source, weights), eager.forward(problem, source, weights)
        )
    assert "differ from plain PyTorch" in caplog.text


def test_what_the_kernels_do_not_take(emulated):
    decoder = make_decoder(3, channels=4)
    with pytest.raises(BackendError, match=r"16|autocast"):
        decoder(torch.randn(1, 4, 3, 3), (6, 6), backend="cuda")
    with pytest.raises(BackendError, match="direct form"):
        make_decoder(3, init_q=True, channels=4).half()(
            torch.randn(1, 4, 3, 3).half(), (6, 6), backend="cuda"
        )
    narrow = make_decoder(3, width=32, channels=4).half()
    features = torch.randn(1, 4, 3, 3).half()
    with torch.no_grad():  # another width goes to plain PyTorch
        assert torch.equal(
            narrow(features, (6, 6), backend="cuda"), narrow(features, (6, 6), backend="eager")
        )


def test_without_a_device_the_backend_says_so():
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="CUDA device"):
            backends.use_backend("cuda")


# -- the emulated machine itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "symptom"),
    [(0, ""), (1, "wrong"), (2, "deadlock"), (3, "wrong"), (4, "crooked")],
    ids=["none", "no barrier", "barrier in a branch", "copy not waited for", "misaligned"],
)
def test_the_emulated_machine_notices_mistakes(library, mistake, symptom):
    message = ctypes.create_string_buffer(400)
    seen = set()
    for seed in range(6):
        library.diinn_emulate_mistake(mistake, ctypes.c_uint64(seed), message, ctypes.c_int64(400))
        seen.add(message.value.decode())
    assert seen == {""} if not symptom else any(symptom in text for text in seen)
