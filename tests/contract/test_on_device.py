"""The GPU backends where they run: values, gradients, bits, and what PyTorch does around an
operator.

On a machine with a CUDA device all ``check_`` functions below run there, at the published size.
Elsewhere some of them run once in Triton's interpreter, small, so that they are known to work
before a GPU is at hand. By hand:

    python -m pytest tests/contract/test_on_device.py -o addopts= -o python_functions=check_*
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.problems import make_decoder, oracle
from torch import Tensor

from diinn_fast import DIINN, Graphed, backends, ops
from diinn_fast.backends import eager
from diinn_fast.encoders import EDSR
from diinn_fast.geometry import Window, local_offset, nearest_index
from diinn_fast.graphed import record

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
WIDTH, CHANNELS = (256, 64) if DEVICE == "cuda" else (32, 16)
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
MODES = [(mode, init_q) for mode in (1, 2, 3, 4) for init_q in (False, True)]
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")


def fused() -> list[str]:
    """Backends with kernels for DEVICE; the interpreter stands in for a GPU."""
    names = [n for n in backends.NAMES if "cuda" in backends.load(n).DEVICES and n != "eager"]
    return [n for n in names if backends.load(n).unavailable() is None]


def takes(backend: str, dtype: torch.dtype, direct: bool = False) -> bool:
    """Whether the backend has kernels for the dtype and form; by name, it refuses otherwise."""
    problem = ops.Problem(
        "direct" if direct else "content", 3, (1, 1), (0, 0), (1, 1), None, None, None, 0
    )
    return (
        backends.load(backend).unsupported(
            problem, torch.empty(1, 3, 3, CHANNELS, dtype=dtype, device=DEVICE)
        )
        is None
    )


@pytest.mark.skipif(not HAS_TRITON and DEVICE == "cpu", reason="Triton is not installed")
def test_on_the_device_or_in_the_interpreter():
    command = [
        sys.executable,
        "-m",
        "pytest",
        __file__,
        "-o",
        "addopts=-q",
        "-o",
        "python_functions=check_*",
        "-p",
        "no:cacheprovider",
    ]
    environment = dict(os.environ)
    if DEVICE == "cpu":
        environment |= {"TRITON_INTERPRET": "1"}
        command += ["-k", "mode3-float16"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The dtype of a precision, with products in float32 as the precision says, for both
    libraries.
    """
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [s.fp32_precision for s in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if name == "tf32" else "ieee"
    try:
        yield torch.float32 if name == "tf32" else getattr(torch, name)
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@pytest.fixture(autouse=True)
def the_kernels_themselves(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No self-check finds anything: plain PyTorch, which would do the work, must not pass for the
    kernels.
    """
    yield
    assert not [r.getMessage() for r in caplog.get_records("call") if "not used" in r.getMessage()]


TF32_ERROR = 3e-3
"""Relative error that TF32 may have in any case: for tiny shapes the framework's own convolution
may be an exact one, and its error says nothing then."""


def tf32_floor(name: str, exact: Tensor) -> float:
    return TF32_ERROR * rms(exact) if name == "tf32" else 0.0


def rms(error: Tensor) -> float:
    return float(error.detach().double().square().mean().sqrt())


def random_features(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def network(mode: int, init_q: bool = False, channels: int = CHANNELS):
    return make_decoder(mode, init_q, WIDTH, channels).to(DEVICE)


def away_from_kinks(decoder):
    """Biases so large that rounding takes no relu's argument across zero, half of them off."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(0.25)
        for layer in decoder.K:
            bias = layer[0].bias
            bias.copy_(torch.where(torch.rand_like(bias) < 0.5, -4.0, 4.0))
    return decoder


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN: what a kernel leaves unwritten shows."""
    new_empty = Tensor.new_empty
    empty = torch.empty

    def filled(values: Tensor) -> Tensor:
        return values.fill_(float("nan")) if values.is_floating_point() else values

    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **o: filled(new_empty(self, *a, **o)))
    monkeypatch.setattr(torch, "empty", lambda *a, **o: filled(empty(*a, **o)))


def operands(
    decoder, features: Tensor, size: tuple[int, int]
) -> tuple[ops.Problem, Tensor, list[Tensor]]:
    """The (problem, source, weights) with which this decoder calls a backend."""
    seen = []

    def forward(problem: ops.Problem, source: Tensor, weights: list[Tensor]) -> Tensor:
        seen.append((problem, source, weights))
        return source.new_zeros(problem.output_shape(len(source), len(weights[4])))

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(eager, "forward", forward)
        decoder(features, size, backend="eager")
    return seen[0]


def cases(function):
    """For every backend, mode, with and without init_q, and precision; the last part of the id is
    the precision.
    """
    values = [
        pytest.param(b, m, i, p, id=f"{b}-mode{m}{'-init_q' if i else ''}-{p}")
        for b in fused()
        for m, i in MODES
        for p in PRECISIONS
        if takes(b, torch.float32 if p == "tf32" else getattr(torch, p), i)
    ]
    return pytest.mark.parametrize(("backend", "mode", "init_q", "name"), values)(function)


# -- numbers: every mode, init_q, precision and form -----------------------------------------------


@cases
def check_values(backend, mode, init_q, name, monkeypatch):
    """Within twice plain PyTorch's error of the same dtype, in root mean square: odd, tiny,
    anisotropic, down-scaling (the direct form), batch, windows; with poisoned outputs."""
    decoder = network(mode, init_q)
    sizes = [
        (2, (3, 4), (13, 18), None),
        (1, (1, 1), (3, 5), None),
        (1, (5, 6), (21, 17), (3, 20, 9, 17)),
    ]
    sizes.append((1, (6, 5), (4, 4), None))
    if DEVICE == "cuda":
        sizes.append((1, (24, 31), (75, 111), None))
    ours = []
    plain = []
    with precision(name) as dtype, torch.no_grad():
        for batch, lr, size, window in sizes:
            if size == (4, 4) and not takes(backend, dtype, direct=True):
                continue
            features = random_features(batch, CHANNELS, *lr).to(dtype)
            exact = oracle(decoder, features, size, window)
            plain.append((oracle(decoder, features, size, window, dtype=dtype) - exact).flatten())
            with monkeypatch.context() as patch:
                poison(patch)
                got = decoder.to(dtype)(features, size, window=window, backend=backend)
            decoder.float()
            assert got.dtype == dtype and got.isfinite().all()
            ours.append((got - exact).flatten())
    assert rms(torch.cat(ours)) <= 2 * rms(torch.cat(plain)) + 1e-8 + tf32_floor(name, exact)


@cases
def check_points(backend, mode, init_q, name):
    """More and fewer points than LR pixels (both forms): as plain PyTorch, values and gradients."""
    if mode == 4:
        return  # refused: its last layer needs a grid
    decoder = away_from_kinks(network(mode, init_q))
    with precision(name) as dtype:
        decoder.to(dtype)
        for count in (9, 150) if takes(backend, dtype, direct=True) else (150,):
            features = random_features(2, CHANNELS, 4, 5).to(dtype).requires_grad_()
            yx = torch.stack([torch.randint(0, n, (2, count)) for n in (13, 16)], dim=-1).to(DEVICE)
            inputs = [features, *decoder.parameters()]
            got = decoder.sample_pixels(features, yx, (13, 16), backend=backend)
            want = decoder.sample_pixels(features, yx, (13, 16), backend="eager")
            grad = torch.randn(got.shape).to(got)
            pairs = [
                (got, want),
                *zip(*(torch.autograd.grad(v, inputs, grad) for v in (got, want)), strict=True),
            ]
            limit = {"float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 0.1}[name]
            for a, b in pairs:
                assert rms(a - b) <= limit * rms(b) + 1e-8


@cases
def check_gradients(backend, mode, init_q, name, monkeypatch):
    """Within twice plain PyTorch's error of the same dtype, up- and down-scaling; all of memory
    poisoned.
    """
    decoder = away_from_kinks(network(mode, init_q))
    ours = []
    plain = []
    with precision(name) as dtype:
        sizes = [(2, (3, 4), (11, 9))] + [(1, (4, 3), (3, 3))] * takes(backend, dtype, direct=True)
        for batch, lr, size in sizes:
            decoder.to(dtype)
            features = random_features(batch, CHANNELS, *lr).to(dtype).requires_grad_()
            inputs = [features, *decoder.parameters()]
            exact = oracle(decoder, features, size)
            grad = torch.randn_like(exact).to(dtype)
            want = torch.autograd.grad(exact, inputs, grad.double())
            in_dtype = torch.autograd.grad(
                oracle(decoder, features, size, dtype=dtype), inputs, grad
            )
            with monkeypatch.context() as patch:
                poison(patch)
                got = torch.autograd.grad(decoder(features, size, backend=backend), inputs, grad)
            for a, b, c in zip(got, in_dtype, want, strict=True):
                assert a.dtype == dtype and a.shape == c.shape
                ours.append(((a - c) / rms(c)).flatten())
                plain.append(((b - c) / rms(c)).flatten())
            decoder.float()
    floor = TF32_ERROR if name == "tf32" else 1e-7  # errors are relative here
    assert rms(torch.cat(ours)) <= 2 * rms(torch.cat(plain)) + floor


@cases
def check_bits(backend, mode, init_q, name):
    """Two runs, forward and backward, agree to the bit; on a device, windows and points agree with
    the whole too.
    """
    decoder = network(mode, init_q)
    module = backends.load(backend)
    with precision(name) as dtype:
        sizes = [(13, 18)] + [(3, 5)] * takes(
            backend, dtype, direct=True
        )  # projected and direct form
        sizes = sizes if DEVICE == "cuda" else [(5, 7)]
        decoder.to(dtype)
        for size in sizes:
            problem, source, weights = operands(
                decoder, random_features(2, CHANNELS, 4, 5).to(dtype), size
            )
            whole = module.forward(problem, source, weights)
            assert torch.equal(module.forward(problem, source, weights), whole)
            arguments = (
                problem,
                torch.randn_like(whole),
                source,
                weights,
                [True] * (1 + len(weights)),
            )
            for a, b in zip(module.backward(*arguments), module.backward(*arguments), strict=True):
                assert torch.equal(a, b)
            if DEVICE == "cuda":  # NumPy's products depend on a row's place
                height, width = size
                middle = size[0] // 2
                for cut in (
                    (0, 1, 0, width),
                    (middle, height, 1, 3),
                    (height - 1, height, width - 1, width),
                ):
                    part = module.forward(replace(problem, window=Window(*cut)), source, weights)
                    assert torch.equal(part, whole[:, :, cut[0] : cut[1], cut[2] : cut[3]])
                assert torch.equal(
                    module.forward(as_points(problem), source, weights), whole.flatten(2).mT
                )


def as_points(problem: ops.Problem) -> ops.Problem:
    """The same queries as points."""
    assert problem.window is not None
    y0, y1, x0, x1 = problem.window
    h, w = problem.lr
    height, width = problem.size
    i = nearest_index(y0, y1, h, height)
    j = nearest_index(x0, x1, w, width)
    dy = local_offset(y0, y1, i, h, height, torch.float32)
    dx = local_offset(x0, x1, j, w, width, torch.float32)
    index = (i[:, None] * w + j).flatten().expand(2, -1).to(DEVICE)
    offset = (
        torch.stack([v.flatten() for v in torch.meshgrid(dy, dx, indexing="ij")], -1)
        .expand(2, -1, -1)
        .to(DEVICE)
    )
    return replace(problem, window=None, index=index, offset=offset)


# -- the surroundings ------------------------------------------------------------------------------

every_backend = pytest.mark.parametrize("backend", fused())


def autocast(backend: str) -> torch.autocast:
    """float16 where the backend does not take float32."""
    return torch.autocast(DEVICE, torch.float16, enabled=not takes(backend, torch.float32))


def loose(backend: str, factor: float = 1.0) -> float:
    """A relative tolerance for two ways to the same kernel, of which one may round inputs
    differently.
    """
    return min(0.1, factor * (1e-4 if takes(backend, torch.float32) else 1e-2))


@every_backend
def check_surroundings_autocast(backend):
    """fp32 parameters, 16-bit operands; the gradients are float32."""
    decoder = network(3)
    features = random_features(1, CHANNELS, 5, 4).requires_grad_()
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(DEVICE, dtype):
            got = decoder(features, (11, 13), backend=backend)
        assert got.dtype == dtype
        assert rms(got - oracle(decoder, features, (11, 13))) < 0.05 * rms(got)
        grads = torch.autograd.grad(got.float().square().mean(), [features, *decoder.parameters()])
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@every_backend
def check_surroundings_compile(backend):
    decoder = network(3)
    features = random_features(1, CHANNELS, 5, 4).requires_grad_()
    compiler = "inductor" if DEVICE == "cuda" else "aot_eager"
    half = not takes(backend, torch.float32)

    def decode(x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.float16, enabled=half):
            return decoder(x, (11, 13), backend=backend)

    compiled = torch.compile(decode, fullgraph=True, backend=compiler)
    got = compiled(features)
    want = decode(features)
    assert rms(got - want) <= loose(backend, 100) * rms(want)  # convolutions may be others, in TF32
    got = torch.autograd.grad(got.float().square().sum(), features)[0]
    want = torch.autograd.grad(want.float().square().sum(), features)[0]
    assert rms(got - want) <= loose(backend, 100) * rms(want)


@every_backend
def check_surroundings_operator(backend):
    dtype = torch.float32 if takes(backend, torch.float32) else torch.float16
    decoder = network(3).to(dtype)
    features = random_features(1, CHANNELS, 2, 3).to(dtype)
    problem, source, weights = operands(decoder, features, (4, 5))
    inputs = source.detach().requires_grad_(), [w.detach().requires_grad_() for w in weights]
    arguments = (*inputs, problem.form, 3, [2, 3, 0, 0, 4, 5, 0, 4, 0, 5], None, None, 0, backend)
    torch.library.opcheck(torch.ops.diinn_fast.decode.default, arguments)


@every_backend
def check_surroundings_far_corner(backend):
    """Of an output of more than 2^32 elements."""
    decoder = network(3)
    features = random_features(1, CHANNELS, 40, 50)
    size = (70_000, 80_000)
    window = (69_997, 70_000, 79_991, 80_000)
    with precision("float32"), torch.no_grad():
        exact = oracle(decoder, features, size, window)
        with autocast(backend):  # not the oracle in float16: positions are beyond its range
            plain = oracle(decoder, features, size, window, torch.float32) - exact
            got = decoder(features, size, window=window, backend=backend)
        assert rms(got - exact) <= 2 * rms(plain) + 1e-8


def _train(rank: int, world: int, backend: str, folder: str) -> None:
    """One step of one rank on its part of a batch; rank 0 leaves the gradients."""
    device = torch.device(DEVICE, rank) if DEVICE == "cuda" else torch.device("cpu")
    if DEVICE == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
    )
    decoder, features, target = (
        v.to(device) for v in torch.load(f"{folder}/job.pt", weights_only=False)
    )
    model = torch.nn.parallel.DistributedDataParallel(
        decoder, device_ids=[rank] if DEVICE == "cuda" else None
    )
    share = slice(rank * len(features) // world, (rank + 1) * len(features) // world)
    with autocast(backend):
        out = model(features[share], target.shape[-2:], backend=backend)
    (out.float() - target[share]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad.cpu() for p in decoder.parameters()], f"{folder}/grads.pt")
    torch.distributed.destroy_process_group()


@every_backend
def check_surroundings_distributed(backend, tmp_path: Path):
    """Data parallel over all devices: the gradients of one device on the whole batch."""
    world = max(1, torch.cuda.device_count()) if DEVICE == "cuda" else 1
    decoder = away_from_kinks(network(3)).cpu()
    features = torch.randn(2 * world, CHANNELS, 4, 3)
    target = torch.randn(2 * world, 3, 9, 10)
    torch.save((decoder, features, target), tmp_path / "job.pt")
    torch.multiprocessing.spawn(_train, (world, backend, str(tmp_path)), nprocs=world)
    got = torch.load(tmp_path / "grads.pt", weights_only=True)
    decoder.to(DEVICE)
    with autocast(backend):
        out = decoder(features.to(DEVICE), (9, 10), backend=backend)
    loss = (out.float() - target.to(DEVICE)).square().mean()
    for a, b in zip(got, torch.autograd.grad(loss, list(decoder.parameters())), strict=True):
        assert rms(a - b.cpu()) <= loose(backend) * rms(b)


@needs_cuda
@every_backend
def check_surroundings_graph(backend):
    """Captured in a CUDA graph and replayed on other features: the bits of a plain call."""
    decoder = network(3).half()
    static = random_features(1, CHANNELS, 24, 24).half()

    def decode() -> Tensor:
        with torch.no_grad():
            return decoder(static, (96, 96), backend=backend)

    out, replay = record(decode)
    for _ in range(2):
        static.normal_()
        replay()
        assert torch.equal(out, decode())


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
@every_backend
def check_surroundings_graphed(backend, compiled):
    """`Graphed`: other images, shapes and streams give what the model does under autocast."""
    model = DIINN(encoder=EDSR(blocks=2)).to(DEVICE)
    fast = Graphed(model, compile=compiled)
    for shape in ((1, 3, 24, 24), (2, 3, 17, 30), (1, 3, 24, 24)):
        x = torch.rand(shape, device=DEVICE) * 2 - 1
        with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
            want = model(x, scale=3.5, backend=backend)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        first = fast(x, scale=3.5, backend=backend)
        with torch.cuda.stream(side):
            second = fast(x, scale=3.5, backend=backend)
        torch.cuda.synchronize()
        assert first.dtype == torch.float32 and torch.equal(first, second)
        assert rms(first - want) <= 1e-2 * rms(want)


@needs_cuda
@every_backend
def check_surroundings_streams(backend):
    """Work goes to the current stream: here behind a copy that comes late."""
    decoder = network(3).half()
    other = random_features(1, CHANNELS, 24, 24).half()
    features = torch.zeros_like(other)
    side = torch.cuda.Stream()
    with torch.no_grad():
        want = decoder(other, (96, 96), backend=backend)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            features.copy_(other)
            got = decoder(features, (96, 96), backend=backend)
        side.synchronize()
    assert torch.equal(got, want)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@every_backend
def check_surroundings_second_device(backend):
    """Tensors decide where the work is done, not the current device."""
    decoder = network(3)
    features = random_features(1, CHANNELS, 5, 4)
    with precision("float32"), torch.no_grad(), autocast(backend):
        want = decoder(features, (11, 13), backend=backend)
        got = decoder.to("cuda:1")(features.to("cuda:1"), (11, 13), backend=backend)
    assert got.device.index == 1
    assert rms(got.to(want.device) - want) <= loose(backend) * rms(want)


@needs_cuda
@every_backend
def check_surroundings_large_output(backend):
    """More than 2^31 elements, written for real: each corner is what its window gives."""
    side = 27_000
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    decoder = network(3).half()
    features = random_features(1, CHANNELS, 30, 30).half()
    problem, source, weights = operands(decoder, features, (60, 60))

    def decode(*window: int) -> Tensor:
        part = replace(problem, size=(side, side), window=Window(*window))
        return backends.load(backend).forward(part, source, weights)

    whole = decode(0, side, 0, side)
    assert whole.numel() > 1 << 31
    for y in (0, side - 9):
        for x in (0, side - 7):
            assert torch.equal(decode(y, y + 9, x, x + 7), whole[:, :, y : y + 9, x : x + 7])
