"""The Triton kernels' numbers, in Triton's interpreter on the CPU.

The interpreter is chosen by an environment variable when Triton is imported and excludes code
generation, so it gets a process of its own: the one test here runs the ``check_`` functions below
in a second pytest.

    TRITON_INTERPRET=1 python -m pytest tests/contract/test_triton_interpreted.py -o
    python_functions=check_*
"""

import importlib.util
import logging
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers.problems import MODES, make_decoder, oracle, random_geometry

from diinn_fast import BackendError, geometry, ops
from diinn_fast.backends import eager, triton

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from diinn_fast.kernels.network import local, nearest
    from diinn_fast.kernels.trig import cos, sin
    from triton import jit

    @jit(do_not_specialize=["n_in", "n_out", "scale"])
    def nearest_and_local(position, index, offset, n_in, n_out, scale):
        at = tl.arange(0, 64)
        y = tl.load(position + at)
        i = nearest(y, scale, n_in)
        tl.store(index + at, i)
        tl.store(offset + at, local(y, i, n_in, n_out))

    @jit
    def sine_and_cosine(x, sine, cosine, FAST: tl.constexpr):
        at = tl.program_id(0) * 16384 + tl.arange(0, 16384)
        v = tl.load(x + at)
        tl.store(sine + at, sin(v, FAST))
        tl.store(cosine + at, cos(v, FAST))


FLOATS = [torch.float32, torch.float16, torch.bfloat16]
TRITON = "triton"


def test_kernels_in_the_interpreter():
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
    run = subprocess.run(
        [*command, "-x", "--durations=8"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr


def rms(error: torch.Tensor) -> float:
    return float(error.double().square().mean().sqrt())


def small_decoder(mode: int, init_q: bool = False, width: int = 64, channels: int = 20):
    return make_decoder(mode, init_q, width, channels)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def check_output_is_within_twice_plain_pytorchs_error(mode, init_q, seed):
    """All dtypes; in root mean square over odd, tiny, anisotropic, up- and down-scaling
    geometry.
    """
    decoder = small_decoder(mode, init_q)
    for dtype in FLOATS:
        ours = []
        plain = []
        geometries = [(1, 1, 3, 5), (3, 4, 7, 9)]
        if dtype == torch.float32 and not init_q:  # a tenth of the work
            geometries += [(5, 4, 3, 2), random_geometry(seed, mode)]
        for h, w, height, width in geometries:
            size = min(height, 14), min(width, 14)
            features = torch.randn(min(2, h), 20, h, w)
            with torch.no_grad():
                exact = oracle(decoder, features, size)
                plain.append((oracle(decoder, features, size, dtype=dtype) - exact).flatten())
                got = decoder.to(dtype)(features.to(dtype), size, backend=TRITON)
                decoder.float()
            assert got.dtype == dtype
            ours.append((got - exact).flatten())
        assert rms(torch.cat(ours)) <= 2 * rms(torch.cat(plain)) + 1e-8, dtype


@pytest.mark.parametrize(
    ("mode", "init_q", "width", "channels", "dtype"),
    [
        (3, False, 256, 64, torch.float32),
        (3, False, 256, 64, torch.float16),
        (1, False, 256, 64, torch.bfloat16),
        (4, True, 128, 64, torch.float16),
        (2, True, 96, 7, torch.float32),
        (3, False, 48, 7, torch.float16),
    ],
)
def check_widths(mode, init_q, width, channels, dtype):
    """Several chunks of outputs, and several blocks of features."""
    decoder = make_decoder(mode, init_q, width, channels)
    features = torch.randn(1, channels, 3, 3)
    with torch.no_grad():
        exact = oracle(decoder, features, (5, 6))
        plain = oracle(decoder, features, (5, 6), dtype=dtype)
        got = decoder.to(dtype)(features.to(dtype), (5, 6), backend=TRITON)
    assert rms(got - exact) <= 2 * rms(plain - exact) + 1e-8


def check_other_numbers_of_layers():
    for layers in (2, 5):
        decoder = make_decoder(3, width=32, channels=16, layers=layers)
        features = torch.randn(1, 16, 3, 3)
        with torch.no_grad():
            torch.testing.assert_close(
                decoder(features, (7, 6), backend=TRITON), oracle(decoder, features, (7, 6)).float()
            )


def away_from_kinks(decoder):
    """Biases so large that rounding takes no relu's argument across zero, half of them off."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(0.25)
        for layer in decoder.K:
            layer[0].bias.copy_(torch.where(torch.rand_like(layer[0].bias) < 0.5, -4.0, 4.0))
    return decoder


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def check_gradients_are_within_twice_plain_pytorchs_error(mode, init_q):
    decoder = away_from_kinks(small_decoder(mode, init_q))
    for dtype in FLOATS:
        ours = []
        plain = []
        geometries = [(1, (2, 3), (5, 7))]
        if dtype == torch.float32 and not init_q:
            geometries.append((2, (3, 3), (2, 2)))  # down-scaling
        for batch, lr, size in geometries:
            decoder.to(dtype)
            features = torch.randn(batch, 20, *lr).to(dtype).requires_grad_()
            inputs = [features, *decoder.parameters()]
            exact = oracle(decoder, features, size)
            grad = torch.randn_like(exact).to(dtype)
            want = torch.autograd.grad(exact, inputs, grad.double())
            in_dtype = torch.autograd.grad(
                oracle(decoder, features, size, dtype=dtype), inputs, grad
            )
            got = torch.autograd.grad(decoder(features, size, backend=TRITON), inputs, grad)
            for a, b, c in zip(got, in_dtype, want, strict=True):
                assert a.dtype == dtype and a.shape == c.shape
                ours.append(((a - c) / rms(c)).flatten())
                plain.append(((b - c) / rms(c)).flatten())
            decoder.float()
        assert rms(torch.cat(ours)) <= 2 * rms(torch.cat(plain)) + 1e-7, dtype


def check_gradients_of_wide_layers():
    """Wider than a program of the backward; more queries than one."""
    decoder = away_from_kinks(small_decoder(3, width=192, channels=16))
    features = torch.randn(2, 16, 2, 3, requires_grad=True)
    inputs = [features, *decoder.parameters()]
    grad = torch.randn(2, 3, 9, 8)
    want = torch.autograd.grad(oracle(decoder, features, (9, 8)), inputs, grad.double())
    got = torch.autograd.grad(decoder(features, (9, 8), backend=TRITON), inputs, grad)
    for a, b in zip(got, want, strict=True):
        assert rms(a - b) <= 1e-5 * rms(b)


@pytest.mark.parametrize(("mode", "init_q"), [(3, False), (2, False), (1, True), (3, True)])
def check_gradients_in_slabs_and_of_wanted_inputs_only(mode, init_q):
    """However the queries are cut, the gradient is that of the whole; twice the same bits;
    ``needs`` is honoured.
    """
    decoder = small_decoder(mode, init_q, width=32, channels=16)
    problem, source, weights = spy(decoder, (5, 6))(torch.randn(2, 16, 2, 3))
    grad = torch.randn(2, 3, 5, 6)
    everything = [True] * (1 + len(weights))
    whole = triton.backward(problem, grad, source, weights, everything)
    again = triton.backward(problem, grad, source, weights, everything)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    for chunk in (13,) if init_q else (13, 30):  # some rows, an image; the whole: both images
        parts = triton.backward(replace(problem, chunk=chunk), grad, source, weights, everything)
        for a, b in zip(parts, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for wanted in (
        lambda n: n == 0,
        lambda n: n > 0,
        lambda n: n % 2 == 1,
    ):  # frozen decoder, frozen encoder
        needs = [wanted(n) for n in range(len(everything))]
        for got, want, need in zip(
            triton.backward(problem, grad, source, weights, needs), whole, needs, strict=True
        ):
            assert torch.equal(got, want) if need else got.numel() == 0


def spy(decoder, size):
    """A function from features to the (problem, source, weights) with which this decoder calls a
    backend.
    """

    def see(features):
        seen = []

        def forward(problem, source, weights):
            seen.append((problem, source, weights))
            return source.new_zeros(problem.output_shape(len(source), len(weights[4])))

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(eager, "forward", forward)
            decoder(features, size, backend="eager")
        return seen[0]

    return see


def check_windows_are_parts_of_the_whole(seed):
    """Content, nine taps, modulation, direct. To the last bits only: NumPy's products depend on a
    row's place.
    """
    for mode, init_q, height, width in [
        (3, False, 10, 19),
        (4, False, 7, 9),
        (1, False, 7, 9),
        (2, False, 4, 5),
    ]:
        decoder = small_decoder(mode, init_q, width=32, channels=16)
        h, w = (5, 6) if mode == 2 else (3, 4)
        features = torch.randn(2, 16, h, w)
        with torch.no_grad():
            whole = decoder(features, (height, width), backend=TRITON)
            rows = [0, seed.randint(1, height - 1), height]
            columns = [0, seed.randint(1, width - 1), width]
            for (y0, y1), (x0, x1) in ((a, b) for a in pairwise(rows) for b in pairwise(columns)):
                part = decoder(features, (height, width), window=(y0, y1, x0, x1), backend=TRITON)
                torch.testing.assert_close(part, whole[:, :, y0:y1, x0:x1], rtol=0, atol=2e-6)
            assert torch.equal(decoder(features[1:], (height, width), backend=TRITON), whole[1:])


# fewer and more points than LR pixels: direct and projected form
@pytest.mark.parametrize(
    ("mode", "init_q", "count"), [(1, False, 11), (1, False, 40), (3, False, 140), (2, True, 40)]
)
def check_points(mode, init_q, count):
    decoder = small_decoder(mode, init_q, width=32, channels=16)
    features = torch.randn(2, 16, 4, 5, requires_grad=True)
    yx = torch.stack([torch.randint(0, 13, (2, count)), torch.randint(0, 16, (2, count))], dim=-1)
    inputs = [features, *decoder.parameters()]
    grad = torch.randn(2, count, 3)
    got = decoder.sample_pixels(features, yx, (13, 16), backend=TRITON)
    want = decoder.sample_pixels(features, yx, (13, 16), backend="eager")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    pairs = zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def check_points_outside_the_source_are_nan():
    decoder = small_decoder(3)
    points = torch.tensor([[0, 5, 6, -1]])
    source, weights = spy(decoder, (4, 6))(torch.randn(1, 20, 2, 3))[1:]
    out = ops.decode(
        source, weights, form="content", mode=3, lr=(2, 3), size=(4, 6), index=points,
        offset=torch.zeros(1, 4, 2), backend=TRITON,
    )  # fmt: skip
    assert out.isnan().all(-1).tolist() == [[False, False, True, True]]


def check_far_corner_of_an_output_of_more_than_2_to_the_32_elements():
    decoder = small_decoder(3)
    features = torch.randn(1, 20, 40, 50)
    size = (70_000, 80_000)
    window = (69_997, 70_000, 79_991, 80_000)
    with torch.no_grad():
        exact = oracle(decoder, features, size, window)
        plain = oracle(decoder, features, size, window, torch.float32) - exact
        assert (
            rms(decoder(features, size, window=window, backend=TRITON) - exact)
            <= 2 * rms(plain) + 1e-8
        )


def check_every_element_is_written(monkeypatch):
    real = torch.Tensor.new_empty

    def poisoned(self, *args, **options):
        empty = real(self, *args, **options)
        return empty.fill_(float("nan")) if empty.is_floating_point() else empty

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for mode, init_q in [(1, False), (3, False), (4, False), (2, True)]:
        decoder = small_decoder(mode, init_q, width=32, channels=16)
        features = torch.randn(1, 16, 3, 4, requires_grad=True)
        out = decoder(features, (9, 17), backend=TRITON)
        assert out.isfinite().all()
        grads = torch.autograd.grad(out.sum(), [features, *decoder.parameters()])
        assert all(g.isfinite().all() for g in grads)


def check_nan_and_infinite_features_reach_the_output():
    decoder = small_decoder(3)
    for bad in (float("nan"), float("inf")):
        features = torch.randn(1, 20, 3, 3)
        features[0, 3, 1, 1] = bad
        with torch.no_grad():
            assert not decoder(features, (6, 6), backend=TRITON).isfinite().any()


# -- geometry and trigonometry ---------------------------------------------------------------------


def check_index_and_offset_have_the_bits_of_geometry(seed):
    """For a position's whole path through the kernel: Y, X to LR index and (dy, dx), up to the
    longest axis.
    """
    longest = geometry.MAX_LENGTH
    pairs = [
        (4, 166),
        (2, 41),
        (4, 82),
        (1, 64),
        (longest, longest),
        (longest - 1, longest),
        (3, longest),
        (longest, 64),
    ]
    pairs += [
        (seed.randint(1, 10 ** seed.randint(1, 6)), seed.randint(1, 10 ** seed.randint(2, 7)))
        for _ in range(200)
    ]
    for n_in, n_out in pairs:
        start = max(0, seed.choice([0, n_out // 2, n_out - 64]))
        want = geometry.nearest_index(start, start + 64, n_in, n_out)
        index = torch.empty(64, dtype=torch.int64)
        offset = torch.empty(64)
        position = torch.arange(start, start + 64, dtype=torch.int32)
        nearest_and_local[(1,)](
            position, index, offset, n_in, n_out, geometry.round_float32(n_in / n_out)
        )
        assert torch.equal(index, want), (n_in, n_out)
        assert torch.equal(
            offset, geometry.local_offset(start, start + 64, want, n_in, n_out, torch.float32)
        )


@pytest.mark.parametrize("fast", [True, False])
def check_sine_and_cosine(fast):
    """The interpreter has no special-function unit: for ``fast`` this tests the reduction that goes
    before it.
    """
    for limit, tolerance in [(8.0, 2.5e-7), (1e2, 2.5e-7), (1e4, 2.5e-7)]:
        x = (torch.rand(1 << 18) * 2 - 1) * limit
        x[:8] = torch.tensor(
            [0.0, -0.0, torch.pi, -torch.pi, torch.pi / 2, 3 * torch.pi / 2, limit, -limit]
        )
        sine = torch.empty_like(x)
        cosine = torch.empty_like(x)
        sine_and_cosine[(len(x) // 16384,)](x, sine, cosine, fast)
        assert (sine - x.double().sin()).abs().max() <= tolerance
        assert (cosine - x.double().cos()).abs().max() <= tolerance
        assert sine[0] == 0
    x = torch.full((16384,), float("nan"))
    x[::2] = float("inf")
    sine = torch.empty_like(x)
    cosine = torch.empty_like(x)
    sine_and_cosine[(1,)](x, sine, cosine, fast)
    assert sine.isnan().all() and cosine.isnan().all()


# -- the backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "init_q"), [(3, False)])
def check_the_operator_as_pytorch_sees_it(mode, init_q):
    decoder = small_decoder(mode, init_q, width=16, channels=16)
    features = torch.randn(1, 16, 2, 3, requires_grad=True)
    problem, source, weights = spy(decoder, (4, 5))(features)
    arguments = (
        source.detach().requires_grad_(), [w.detach().requires_grad_() for w in weights],
        problem.form, mode,
        [2, 3, 0, 0, 4, 5, 0, 4, 0, 5], None, None, 0, TRITON,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.diinn_fast.decode.default, arguments)


def check_compile_and_autocast():
    decoder = small_decoder(3)
    features = torch.randn(1, 20, 3, 3, requires_grad=True)
    compiled = torch.compile(
        lambda x: decoder(x, (7, 7), backend=TRITON), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(features), decoder(features, (7, 7), backend=TRITON))
    compiled(features).sum().backward()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            got = decoder(features, (7, 7), backend=TRITON)
        assert got.dtype == dtype
        assert rms(got - oracle(decoder, features, (7, 7))) < 0.02
        problem, source, weights = spy(decoder, (7, 7))(features.detach().to(dtype).float())
        grad = torch.randn(1, 3, 7, 7)
        needs = [True] * 7
        want = (
            triton.forward(problem, source, weights),
            *triton.backward(problem, grad, source, weights, needs),
        )
        with torch.autocast(
            "cpu", dtype
        ):  # is the decoder's business: inside the operator it changes nothing
            again = (
                triton.forward(problem, source, weights),
                *triton.backward(problem, grad, source, weights, needs),
            )
        assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "init_q"), [(1, False), (3, False)])
def check_self_check_passes_and_finds_a_wrong_kernel(mode, init_q, dtype, monkeypatch):
    decoder = small_decoder(mode, init_q, width=32, channels=16).to(dtype)
    problem, source, weights = spy(decoder, (9, 9))(torch.randn(1, 16, 4, 4, dtype=dtype))
    points = replace(
        problem,
        window=None,
        index=torch.zeros(1, 5, dtype=torch.int64),
        offset=torch.zeros(1, 5, 2),
    )
    for gradients in (False, True):
        assert triton.compare_with_eager(problem, source, weights, gradients) is None
        assert triton.compare_with_eager(points, source, weights, gradients) is None
    forward = triton._forward
    backward = triton._backward
    monkeypatch.setattr(triton, "_forward", lambda *args: forward(*args) * 1.1)
    assert "differ" in triton.compare_with_eager(problem, source, weights, False)
    assert "differ" in triton.compare_with_eager(points, source, weights, False)
    monkeypatch.setattr(
        triton, "_backward", lambda *args: [g * float("nan") for g in backward(*args)]
    )
    assert "differ" in triton.compare_with_eager(problem, source, weights, True)
    assert "differ" in triton.compare_with_eager(points, source, weights, True)
    monkeypatch.setattr(triton, "_forward", lambda *args: 1 / 0)
    assert "division by zero" in triton.compare_with_eager(problem, source, weights, False)


def check_a_failed_self_check_falls_back_loudly_and_once(monkeypatch, caplog):
    decoder = small_decoder(3, width=32, channels=16)
    features = torch.randn(1, 16, 4, 4)
    problem, source, weights = spy(decoder, (9, 9))(features)
    on_gpu = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=source.dtype, shape=source.shape)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(triton, "compare_with_eager", lambda *args: "they differ")
    monkeypatch.setattr(ops.Problem, "check_source", lambda *args: None)
    monkeypatch.setattr(triton, "_checked", {})
    with caplog.at_level(logging.WARNING):
        assert [triton._refused(problem, on_gpu, weights, gradients=False) for _ in range(2)] == [
            True,
            True,
        ]
    assert [r.getMessage() for r in caplog.records] == [
        "the Triton kernels are not used on cuda:0, plain PyTorch is: they differ"
    ]


def check_refusals():
    decoder = small_decoder(3)
    with pytest.raises(BackendError, match="float64"):
        decoder.double()(torch.randn(1, 20, 3, 3).double(), (6, 6), backend=TRITON)
    problem, source, weights = spy(decoder.float(), (9, 9))(torch.randn(1, 20, 4, 4))
    with pytest.raises(IndexError, match="outside the source's 2x4 tile"):
        triton.forward(problem, source[:, :2], weights)
    odd = make_decoder(3, width=20, channels=4)  # no multiple of 16: eager does it
    with torch.no_grad():
        features = torch.randn(1, 4, 3, 3)
        assert torch.equal(
            odd(features, (5, 5), backend=TRITON), odd(features, (5, 5), backend="eager")
        )
