"""The compiled CPU kernels: values and gradients against the definition, bitwise invariances,
refusals.
"""

from __future__ import annotations

import logging
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from helpers.problems import MODES, make_decoder, oracle, random_geometry

from diinn_fast import BackendError, backends, use_backend
from diinn_fast.backends import cpu, eager

if os.environ.get("DIINN_FAST_NO_KERNELS") == "1" or isinstance(cpu._load(), str):
    pytest.skip(f"no CPU kernels: {cpu._load()}", allow_module_level=True)

ISAS = cpu._kernels().instruction_sets()


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch) -> str:
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", request.param)
    assert cpu.unavailable() is None
    return request.param


@pytest.fixture(autouse=True)
def threads():
    """Sets the thread count: one unless a test says otherwise: on a busy machine small products
    wait.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poison():
    """Uninitialised tensors are full of NaN: an element that is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rms(error: torch.Tensor) -> float:
    return float(error.detach().double().square().mean().sqrt())


# LR and HR sizes: 1x1 input, one row, integer scale, anisotropic, down-scaling (the direct form)
GEOMETRIES = [
    (1, 1, 7, 5),
    (1, 9, 3, 40),
    (5, 6, 20, 24),
    (4, 7, 9, 41),
    (9, 8, 4, 5),
    (11, 3, 7, 25),
]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_values_are_within_twice_plain_pytorchs_error(mode, init_q, isa, seed):
    decoder = make_decoder(mode, init_q, width=64, channels=5)
    plain = []
    ours = []
    for n, (h, w, height, width) in enumerate(
        [*GEOMETRIES, *(random_geometry(seed, mode) for _ in range(4))]
    ):
        features = torch.randn(3 if n % 2 else 1, 5, w, h).transpose(2, 3)  # not contiguous
        with torch.no_grad():
            exact = oracle(decoder, features, (height, width))
            plain.append(
                (oracle(decoder, features, (height, width), dtype=torch.float32) - exact).flatten()
            )
            got = decoder(features, (height, width), backend="cpu")
        assert got.isfinite().all(), "not every output was written"
        ours.append((got - exact).flatten())
    assert rms(torch.cat(ours)) <= 2 * rms(torch.cat(plain))
    assert torch.cat(ours).abs().max() <= 3 * torch.cat(plain).abs().max()


@pytest.mark.parametrize("mode", [1, 3, 4])
def test_values_at_full_width(mode):
    decoder = make_decoder(mode)
    features = torch.randn(1, 64, 9, 10)
    with torch.no_grad():
        exact = oracle(decoder, features, (31, 40))
        plain = oracle(decoder, features, (31, 40), dtype=torch.float32) - exact
        assert rms(decoder(features, (31, 40), backend="cpu") - exact) <= 2 * rms(plain)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_gradients_are_within_twice_plain_pytorchs_error(mode, init_q, isa, seed):
    decoder = make_decoder(mode, init_q, width=64, channels=5)
    parameters = list(decoder.parameters())
    plain: dict[int, list[torch.Tensor]] = {}
    ours: dict[int, list[torch.Tensor]] = {}
    for h, w, height, width in [*GEOMETRIES, random_geometry(seed, mode)]:
        features = torch.randn(2, 5, h, w, requires_grad=True)
        inputs = [features, *parameters]
        grad = torch.randn(2, 3, height, width)
        exact = torch.autograd.grad(
            oracle(decoder, features, (height, width)), inputs, grad.double()
        )
        kept = torch.autograd.grad(
            oracle(decoder, features, (height, width), dtype=torch.float32), inputs, grad
        )
        got = torch.autograd.grad(decoder(features, (height, width), backend="cpu"), inputs, grad)
        for n, (a, b, want) in enumerate(zip(got, kept, exact, strict=True)):
            ours.setdefault(n, []).append((a - want).flatten())
            plain.setdefault(n, []).append((b - want).flatten())
    for n in ours:
        assert rms(torch.cat(ours[n])) <= 2 * rms(torch.cat(plain[n])), f"input {n}"


@pytest.mark.parametrize("init_q", [False, True])
def test_points_equal_pixels_and_their_gradients_equal_eagers(init_q, isa):
    decoder = make_decoder(3, init_q, width=64, channels=5)
    features = torch.randn(2, 5, 6, 7, requires_grad=True)
    size = (25, 31)
    for count in (1, 30, 700):  # few: the direct form
        yx = torch.stack([torch.randint(n, (2, count)) for n in size], dim=-1)
        out = decoder.sample_pixels(features, yx, size, backend="cpu")
        whole = decoder(features, size, backend="cpu")
        expected = torch.stack([whole[b][:, yx[b, :, 0], yx[b, :, 1]].T for b in range(2)])
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        grad = torch.randn_like(out)
        inputs = [features, *decoder.parameters()]
        got = torch.autograd.grad(out, inputs, grad)
        want = torch.autograd.grad(
            decoder.sample_pixels(features, yx, size, backend="eager"), inputs, grad
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))


def test_a_point_outside_the_source_is_refused():
    problem, source, weights = _operator_case("content")
    index = torch.full((source.shape[0], 4), source.shape[1] * source.shape[2])
    problem = type(problem)(
        **{**vars(problem), "window": None, "index": index, "offset": torch.zeros(*index.shape, 2)}
    )
    with pytest.raises(IndexError, match="point indices"):
        cpu.forward(problem, source, weights)


def _operator_case(form: str, mode: int = 3, width: int = 64, layers: int = 4, batch: int = 2):
    """Operands of the operator for a tile that does not start at 0, 0."""
    from diinn_fast.geometry import Window, lr_range
    from diinn_fast.problem import Problem

    lr = (9, 8)
    size = (30, 41)
    window = Window(7, 29, 5, 38)
    rows = lr_range(*window[0:2], lr[0], size[0])
    columns = lr_range(*window[2:4], lr[1], size[1])
    grid = rows[1] - rows[0], columns[1] - columns[0]
    if form == "direct":
        source = torch.randn(batch, grid[0] + 2, grid[1] + 2, 6)
    else:
        source = torch.randn(batch, *grid, layers * width)
    taps = 54
    product = width if form == "modulation" else 2 * width
    weights = [torch.randn(width, taps if form == "direct" else 3) / 3, torch.randn(width)]
    weights += [torch.randn(layers - 1, product, width) / 8, torch.randn(layers - 1, width)]
    weights += [torch.randn(3, width) / 8, torch.randn(3)]
    if form == "direct":
        weights += [
            torch.randn(width if mode == 1 else layers * width, taps) / 8,
            torch.randn(layers * width),
        ]
        weights += [torch.randn(taps, 3), torch.randn(taps)]
    return (
        Problem(form, mode, lr, (rows[0], columns[0]), size, window, None, None, 0),
        source,
        weights,
    )


@pytest.mark.parametrize(
    ("form", "mode"),
    [("content", 3), ("modulation", 1), ("direct", 1), ("direct", 2), ("direct", 3)],
)
def test_operator_equals_eager_and_needs_select_without_changing_bits(form, mode, isa):
    problem, source, weights = _operator_case(form, mode)
    out = cpu.forward(problem, source, weights)
    torch.testing.assert_close(out, eager.forward(problem, source, weights), rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(out)
    count = 1 + len(weights)
    everything = cpu.backward(problem, grad, source, weights, [True] * count)
    for a, b in zip(
        everything, eager.backward(problem, grad, source, weights, [True] * count), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * float(b.abs().max()))
    for chosen in range(count):
        for needs in ([n == chosen for n in range(count)], [n != chosen for n in range(count)]):
            for need, part, whole in zip(
                needs, cpu.backward(problem, grad, source, weights, needs), everything, strict=True
            ):
                assert torch.equal(part, whole) if need else part.numel() == 0


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_windows_threads_chunks_and_batches_do_not_change_a_bit(mode, init_q, isa, threads):
    decoder = make_decoder(mode, init_q, width=64, channels=5).requires_grad_(False)
    features = torch.randn(3, 5, 7, 8)
    height, width = (29, 37)
    threads(2)
    whole = decoder(features, (height, width), backend="cpu")
    windows = [
        (0, 3, 0, width),
        (height - 2, height, 0, width),
        (0, height, 0, 2),
        (0, height, width - 1, width),
    ]
    windows += [(11, 12, 17, 18), (5, 23, 9, 30)]
    for n in (1, 2, 3):
        threads(n)
        assert torch.equal(decoder(features, (height, width), n * 50, backend="cpu"), whole)
        for y0, y1, x0, x1 in windows:
            part = decoder(features, (height, width), window=(y0, y1, x0, x1), backend="cpu")
            assert torch.equal(part, whole[:, :, y0:y1, x0:x1])
    assert torch.equal(
        torch.cat([decoder(f[None], (height, width), backend="cpu") for f in features]), whole
    )


@pytest.mark.parametrize("init_q", [False, True])
@pytest.mark.parametrize("points", [False, True])
def test_gradients_do_not_depend_on_threads(init_q, points, isa, threads):
    decoder = make_decoder(3, init_q, width=64, channels=5)
    features = torch.randn(2, 5, 12, 11, requires_grad=True)
    yx = torch.stack([torch.randint(n, (2, 3000)) for n in (60, 70)], dim=-1)

    def gradients() -> list[torch.Tensor]:
        if points:
            out = decoder.sample_pixels(features, yx, (60, 70), backend="cpu")
        else:
            out = decoder(features, (60, 70), backend="cpu")
        return list(torch.autograd.grad(out.square().sum(), [features, *decoder.parameters()]))

    threads(1)
    first = gradients()
    for n in (1, 2, 3, 5):
        threads(n)
        for a, b in zip(gradients(), first, strict=True):
            # the operator's own gradients; the projection's are the framework's and follow its
            # thread count
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    for form in ("content", "modulation", "direct"):
        problem, source, weights = _operator_case(form, batch=4)
        needs = [True] * (1 + len(weights))
        grad = torch.randn(problem.output_shape(4, 3))
        threads(1)
        want = cpu.backward(problem, grad, source, weights, needs)
        for n in (1, 2, 3, 5):
            threads(n)
            for a, b in zip(cpu.backward(problem, grad, source, weights, needs), want, strict=True):
                assert torch.equal(a, b)


def test_far_corner_of_an_output_beyond_32_bits(isa):
    decoder = make_decoder(3, width=64, channels=5).requires_grad_(False)
    features = torch.randn(1, 5, 40, 41)
    size = (60_000, 60_001)
    for window in [(59_990, 60_000, 59_994, 60_001), (0, 3, 59_999, 60_001)]:
        got = decoder(features, size, window=window, backend="cpu")
        exact = oracle(decoder, features, size, window)
        plain = oracle(decoder, features, size, window, dtype=torch.float32) - exact
        assert rms(got - exact) <= 2 * rms(plain) + 1e-7


def test_sine_and_cosine_against_double_precision(isa):
    """Every 499th float32 up to 10,000 and the neighbourhood of the multiples of pi/2."""
    bound = 2e-7 if isa == "portable" else 1.4e-7
    bits = torch.arange(0, torch.tensor(1e4).view(torch.int32).item(), 499, dtype=torch.int32)
    near = (torch.arange(0, 6366, dtype=torch.float64) * (torch.pi / 2)).float()
    near = torch.cat(
        [near, torch.nextafter(near, torch.tensor(1e9)), torch.nextafter(near, torch.tensor(-1e9))]
    )
    for x in (bits.view(torch.float32), near.clamp(max=1e4)):
        for signed in (x, -x):
            s, c = _sine(isa, signed)
            assert (s - signed.double().sin()).abs().max() <= bound
            assert (c - signed.double().cos()).abs().max() <= bound
    beyond = torch.tensor([1.1e4, -3e6, 1e20, 3e38, 0.5])  # the C library's
    s, c = _sine(isa, beyond)
    torch.testing.assert_close(s.double(), beyond.double().sin(), rtol=0, atol=1e-7)
    torch.testing.assert_close(c.double(), beyond.double().cos(), rtol=0, atol=1e-7)
    s, c = _sine(isa, torch.tensor([float("nan"), float("inf"), -float("inf")]))
    assert s.isnan().all() and c.isnan().all()


def _sine(isa: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    s = torch.full_like(x, 7)
    c = torch.full_like(x, 7)
    cpu._kernels().sine(isa, x.data_ptr(), s.data_ptr(), c.data_ptr(), x.numel())
    return s, c


def test_large_arguments_and_nan_come_out_as_from_eager(isa):
    decoder = make_decoder(3, width=64, channels=5).requires_grad_(False)
    features = torch.randn(1, 5, 4, 5)
    decoder.Q[0][0].weight.mul_(3e5)  # arguments of the first sine beyond the vector sine's range
    got = decoder(features, (9, 10), backend="cpu")
    want = decoder(features, (9, 10), backend="eager")
    assert got.isfinite().all()
    assert rms(got - want) <= 0.05 * rms(want)  # arguments of 1e5 are themselves uncertain by 1e-2
    for bad in (float("nan"), float("inf")):
        features[0, 2, 1, 1] = bad
        got = decoder(features, (9, 10), backend="cpu")
        want = decoder(features, (9, 10), backend="eager")
        assert torch.equal(got.isnan(), want.isnan())


def test_several_python_threads_at_once(isa, threads):
    threads(2)
    decoder = make_decoder(3, width=64, channels=5)
    features = [torch.randn(1, 5, 6, 7, requires_grad=True) for _ in range(8)]

    def work(f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = decoder(f, (33, 40), backend="cpu")
        return out.detach(), torch.autograd.grad(out.sum(), f)[0]

    alone = [work(f) for f in features]
    with ThreadPoolExecutor(4) as pool:
        for (a, b), (want, want_grad) in zip(pool.map(work, features * 3), alone * 3, strict=True):
            assert torch.equal(a, want)
            torch.testing.assert_close(b, want_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_decodes(threads):
    threads(2)
    problem, source, weights = _operator_case("content")
    want = cpu.forward(problem, source, weights)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(cpu.forward(problem, source, weights), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("channels", [1, 5, 64])
def test_conv3x3_is_the_convolution_and_tiles_bitwise(channels, isa):
    padded = torch.randn(2, 9, 12, channels)
    weight = torch.randn(96, 9 * channels)
    bias = torch.randn(96)
    got = cpu.conv3x3(padded, weight, bias)
    kernel = weight.view(96, channels, 3, 3)
    exact = F.conv2d(padded.permute(0, 3, 1, 2).double(), kernel.double(), bias.double()).permute(
        0, 2, 3, 1
    )
    plain = F.conv2d(padded.permute(0, 3, 1, 2), kernel, bias).permute(0, 2, 3, 1)
    assert rms(got - exact) <= 2 * rms(plain - exact) + 1e-6
    for y, x in ((0, 0), (3, 5), (6, 9)):
        assert torch.equal(
            cpu.conv3x3(padded[1:, y : y + 3, x : x + 3], weight, bias)[0, 0, 0], got[1, y, x]
        )


def test_conv3x3_leaves_other_cases_to_the_framework():
    padded = torch.randn(1, 4, 4, 2)
    weight = torch.randn(32, 18)
    bias = torch.randn(32)
    assert cpu.conv3x3(padded, weight, bias) is not None
    assert cpu.conv3x3(padded.double(), weight.double(), bias.double()) is None
    assert cpu.conv3x3(padded, weight[:31], bias[:31]) is None
    assert cpu.conv3x3(padded, weight.requires_grad_(), bias) is None


@pytest.fixture
def bf16(monkeypatch) -> list:
    """The bfloat16 kernels; what they computed, outputs and lists of gradients, is listed."""
    if not cpu._kernels().has_bf16():
        pytest.skip("no AVX512_BF16")
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", "avx512")
    assert cpu._self_check("avx512_bf16") is None
    computed: list = []

    def listed(kernel):
        return lambda *a: computed.append(kernel(*a)) or computed[-1]

    for name in ("_forward_bf16", "_backward_bf16"):
        monkeypatch.setattr(cpu, name, listed(getattr(cpu, name)))
    return computed


def _bf16_case(form: str, **sizes: int):
    problem, source, weights = _operator_case(form, **sizes)
    return problem, source.bfloat16(), [w.bfloat16() for w in weights]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_bf16_values_are_within_twice_plain_pytorchs_bf16_error(mode, bf16, seed):
    decoder = make_decoder(mode, width=64, channels=5).bfloat16().requires_grad_(False)
    plain = []
    ours = []
    for n, (h, w, height, width) in enumerate(
        [*GEOMETRIES, *(random_geometry(seed, mode) for _ in range(8))]
    ):
        features = torch.randn(3 if n % 2 else 1, 5, h, w).bfloat16()
        exact = oracle(decoder, features, (height, width))
        before = len(bf16)
        got = decoder(features, (height, width), backend="cpu")
        assert got.dtype == torch.bfloat16 and got.isfinite().all(), "not every output was written"
        if len(bf16) > before:  # not the direct form
            ours.append((got - exact).flatten())
            plain.append((decoder(features, (height, width), backend="eager") - exact).flatten())
    assert len(ours) >= 5
    assert rms(torch.cat(ours)) <= 2 * rms(torch.cat(plain))
    assert torch.cat(ours).abs().max() <= 3 * torch.cat(plain).abs().max()


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("form", ["content", "modulation"])
@pytest.mark.parametrize(
    "sizes", [{"width": 256}, {"width": 32, "layers": 2}, {"layers": 1}, {"width": 96}]
)
def test_bf16_operator_on_a_tile_that_starts_elsewhere(form, sizes, bf16):
    problem, source, weights = _bf16_case(form, **sizes)
    weights[4] = torch.randn(5, sizes.get("width", 64)).bfloat16() / 8
    weights[5] = torch.randn(5).bfloat16()
    exact = eager.forward(problem, source.double(), [w.double() for w in weights])
    got = cpu.forward(problem, source, weights)
    plain = eager.forward(problem, source, weights)
    assert bf16 and got.isfinite().all()
    assert rms(got - exact) <= 1.1 * rms(plain - exact)  # RGB is not rounded before its sum


def test_bf16_rounds_the_hidden_weights_and_no_others(bf16):
    problem, source, weights = _operator_case("content")
    source = source.bfloat16()
    got = cpu.forward(problem, source, weights)
    rounded = [w.bfloat16() if n == 2 else w for n, w in enumerate(weights)]
    assert torch.equal(cpu.forward(problem, source, rounded), got)
    for n in (0, 1, 3, 4, 5):
        other = [w.bfloat16() if m == n else w for m, w in enumerate(weights)]
        assert not torch.equal(cpu.forward(problem, source, other), got)
    assert len(bf16) == 7


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_bf16_windows_threads_chunks_and_batches_do_not_change_a_bit(mode, bf16, threads):
    decoder = make_decoder(mode, width=64, channels=5).bfloat16().requires_grad_(False)
    features = torch.randn(3, 5, 7, 8).bfloat16()
    height, width = (29, 37)
    threads(2)
    whole = decoder(features, (height, width), backend="cpu")
    windows = [
        (0, 3, 0, width),
        (height - 2, height, 0, width),
        (0, height, 0, 2),
        (0, height, width - 1, width),
    ]
    windows += [(11, 12, 17, 18), (5, 23, 9, 30)]
    for n in (1, 2, 3):
        threads(n)
        assert torch.equal(decoder(features, (height, width), n * 50, backend="cpu"), whole)
        for y0, y1, x0, x1 in windows:
            part = decoder(features, (height, width), window=(y0, y1, x0, x1), backend="cpu")
            assert torch.equal(part, whole[:, :, y0:y1, x0:x1])
    assert torch.equal(
        torch.cat([decoder(f[None], (height, width), backend="cpu") for f in features]), whole
    )
    assert bf16


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_bf16_points_equal_pixels(form, bf16):
    problem, source, weights = _bf16_case(form)
    whole = cpu.forward(problem, source, weights)
    i, dy, j, dx = cpu._window_positions(problem, problem.window, *problem.grid(source))
    index = (i[:, None] * source.shape[2] + j).flatten().expand(2, -1)
    offset = (
        torch.stack(torch.meshgrid(dy, dx, indexing="ij"), dim=-1).flatten(0, 1).expand(2, -1, 2)
    )
    points = type(problem)(**{**vars(problem), "window": None, "index": index, "offset": offset})
    assert torch.equal(cpu.forward(points, source, weights), whole.flatten(2).transpose(1, 2))
    assert len(bf16) == 2


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_bf16_gradients_are_within_twice_plain_pytorchs_bf16_error(mode, bf16, seed):
    decoder = make_decoder(mode, width=64, channels=5).bfloat16()
    parameters = list(decoder.parameters())
    plain: dict[int, list[torch.Tensor]] = {}
    ours: dict[int, list[torch.Tensor]] = {}
    for h, w, height, width in [*GEOMETRIES, *(random_geometry(seed, mode) for _ in range(4))]:
        features = torch.randn(2, 5, h, w).bfloat16().requires_grad_()
        inputs = [features, *parameters]
        grad = torch.randn(2, 3, height, width).bfloat16()
        before = len(bf16)
        got = torch.autograd.grad(decoder(features, (height, width), backend="cpu"), inputs, grad)
        assert all(g.isfinite().all() and g.dtype == torch.bfloat16 for g in got), (
            "not every gradient was written"
        )
        if len(bf16) == before + 2:  # not the direct form
            kept = torch.autograd.grad(
                decoder(features, (height, width), backend="eager"), inputs, grad
            )
            exact = torch.autograd.grad(
                oracle(decoder, features, (height, width)), inputs, grad.double()
            )
            for n, (a, b, want) in enumerate(zip(got, kept, exact, strict=True)):
                ours.setdefault(n, []).append((a - want).flatten())
                plain.setdefault(n, []).append((b - want).flatten())
    assert len(ours[0]) >= 5
    for n in ours:
        assert rms(torch.cat(ours[n])) <= 2 * rms(torch.cat(plain[n])), f"input {n}"


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("form", ["content", "modulation"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 256},
        {"width": 32, "layers": 2, "batch": 5},
        {"layers": 1},
        {"width": 96, "layers": 5},
    ],
)
def test_bf16_gradients_of_the_operator(form, sizes, bf16):
    """Of a tile that starts elsewhere and of scattered points; each gradient alone or not has the
    same bits.
    """
    problem, source, weights = _bf16_case(form, **sizes)
    weights = [w if n in (2, 4) else w.float() for n, w in enumerate(weights)]  # as under autocast
    index = torch.randint(source.shape[1] * source.shape[2], (len(source), 401))
    points = type(problem)(
        **{
            **vars(problem),
            "window": None,
            "index": index,
            "offset": torch.rand(*index.shape, 2) * 2 - 1,
        }
    )
    for case in (problem, points):
        grad = torch.randn(case.output_shape(len(source), 3)).bfloat16()
        got = cpu.backward(case, grad, source, weights, [True] * 7)
        plain = eager.backward(case, grad, source, weights, [True] * 7)
        exact = eager.backward(
            case, grad.double(), source.double(), [w.double() for w in weights], [True] * 7
        )
        for n, (a, b, want) in enumerate(zip(got, plain, exact, strict=True)):
            if want.numel():  # one layer has no hidden weights
                assert a.dtype == b.dtype and rms(a - want) <= 2 * rms(b - want) + 1e-6 * rms(
                    want
                ), f"input {n}"
        for chosen in range(7):
            needs = [n == chosen for n in range(7)]
            for need, part, whole in zip(
                needs, cpu.backward(case, grad, source, weights, needs), got, strict=True
            ):
                assert torch.equal(part, whole) if need else part.numel() == 0
    assert len(bf16) == 16


@pytest.mark.parametrize("form", ["content", "modulation"])
def test_bf16_gradients_do_not_depend_on_threads_and_points_have_those_of_pixels(
    form, bf16, threads
):
    problem, source, weights = _bf16_case(form, batch=4)
    grad = torch.randn(problem.output_shape(4, 3)).bfloat16()
    needs = [True] * 7
    want = cpu.backward(problem, grad, source, weights, needs)
    for n in (1, 2, 3, 5):
        threads(n)
        for a, b in zip(cpu.backward(problem, grad, source, weights, needs), want, strict=True):
            assert torch.equal(a, b)
    # Column by column, the order in which the kernel takes a pixel's queries.
    i, dy, j, dx = cpu._window_positions(problem, problem.window, *problem.grid(source))
    index = (i * source.shape[2] + j[:, None]).flatten().expand(4, -1)
    offset = (
        torch.stack(torch.meshgrid(dy, dx, indexing="ij"), dim=-1)
        .transpose(0, 1)
        .flatten(0, 1)
        .expand(4, -1, 2)
    )
    points = type(problem)(**{**vars(problem), "window": None, "index": index, "offset": offset})
    listed = grad.transpose(2, 3).flatten(2).transpose(1, 2)
    for a, b in zip(cpu.backward(points, listed, source, weights, needs), want, strict=True):
        assert torch.equal(a, b)
    assert len(bf16) == 6


def test_bf16_gradients_of_pixels_without_queries_are_zero_and_nan_is_passed_on(bf16):
    problem, source, weights = _bf16_case("content")
    # one pixel over several tiles
    index = torch.tensor([[3] * 500, [7] * 500])
    offset = torch.zeros(2, 500, 2)
    points = type(problem)(**{**vars(problem), "window": None, "index": index, "offset": offset})
    grad = torch.randn(2, 500, 3).bfloat16()
    got = cpu.backward(points, grad, source, weights, [True] * 7)[0].flatten(1, 2)
    exact = eager.backward(
        points, grad.double(), source.double(), [w.double() for w in weights], [True] * 7
    )[0]
    exact = exact.flatten(1, 2)
    assert torch.equal(got.count_nonzero(dim=2) > 0, exact.count_nonzero(dim=2) > 0)
    assert rms(got - exact) <= 0.02 * rms(exact)
    grad[1, 444, 2] = float("nan")
    got = cpu.backward(points, grad, source, weights, [True] * 7)
    assert got[0][0].isfinite().all() and all(g.isnan().any() for g in got)
    assert len(bf16) == 2


@pytest.mark.parametrize("mode", [1, 3])
def test_training_under_autocast_takes_the_bf16_kernels_both_ways(mode, bf16):
    decoder = make_decoder(mode, width=64, channels=5)
    features = torch.randn(2, 5, 6, 7, requires_grad=True)
    yx = torch.stack([torch.randint(n, (2, 50)) for n in (18, 21)], dim=-1)
    for backend in ("auto", "eager"):
        with torch.autocast("cpu", torch.bfloat16):
            sampled = decoder.sample_pixels(features, yx, (18, 21), backend=backend)
            whole = decoder(features, (18, 21), backend=backend)
        (sampled.float().abs().mean() + whole.float().abs().mean()).backward()
        assert len(bf16) == 4
    assert all(parameter.grad.dtype == torch.float32 for parameter in decoder.parameters())


def test_bf16_large_arguments_and_nan_come_out_as_from_eager(bf16):
    problem, source, weights = _bf16_case("content")
    weights[0] *= 3e5  # arguments of the first sine beyond the vector sine's range
    source[0, 1, 2, 70] = float("nan")
    source[0, 2, 2, 3] = float("inf")
    source[1, 1, 1, 200] = -float("inf")
    got = cpu.forward(problem, source, weights)
    want = eager.forward(problem, source, weights)
    assert bf16 and want.isnan().any() and not want.isnan().all()
    assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_elsewhere_is_computed_in_float32(isa, bf16, monkeypatch):
    """The direct form, float16, and other instruction sets."""
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", isa)

    def is_float32s(dtype: torch.dtype, form: str) -> bool:
        problem, source, weights = _operator_case(form)
        source = source.to(dtype)
        weights = [w.to(dtype) for w in weights]
        grad = torch.randn(problem.output_shape(2, 3)).to(dtype)
        needs = [True] * (1 + len(weights))
        got = [
            cpu.forward(problem, source, weights),
            *cpu.backward(problem, grad, source, weights, needs),
        ]
        grad = grad.float()
        source = source.float()
        weights = [w.float() for w in weights]
        want = [
            cpu.forward(problem, source, weights),
            *cpu.backward(problem, grad, source, weights, needs),
        ]
        return all(torch.equal(a, b.to(dtype)) for a, b in zip(got, want, strict=True))

    assert is_float32s(torch.bfloat16, "direct") and is_float32s(torch.float16, "content")
    if isa != "avx512":
        assert is_float32s(torch.bfloat16, "content") and is_float32s(torch.bfloat16, "modulation")
    assert not bf16


@pytest.mark.parametrize("wrong", ["_forward_bf16", "_backward_bf16"])
def test_a_wrong_bf16_kernel_leaves_the_float32_kernels_in_use(wrong, bf16, monkeypatch, caplog):
    kernel = getattr(cpu, wrong)

    def off(*arguments):
        result = kernel(*arguments)
        return [g * 1.05 for g in result] if isinstance(result, list) else result * 1.05

    monkeypatch.setattr(cpu, wrong, off)
    monkeypatch.setattr(cpu, "_checked", {})
    problem, source, weights = _bf16_case("content")
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        got, again = (cpu.forward(problem, source, weights) for _ in range(2))
    assert [r.getMessage().count("for bfloat16 are not used") for r in caplog.records] == [1]
    assert cpu.unavailable() is None and len(bf16) == 2
    assert torch.equal(got, again)
    assert torch.equal(
        got, cpu.forward(problem, source.float(), [w.float() for w in weights]).bfloat16()
    )


def test_auto_takes_it_and_unsupported_cases_go_to_eager():
    problem, source, _ = _operator_case("content")
    assert backends.choose("auto", problem, source) is cpu
    assert backends.choose("auto", problem, source.double()) is eager
    with pytest.raises(BackendError, match="float32"):
        backends.choose("cpu", problem, source.double())
    narrow = make_decoder(3, width=48, channels=5).requires_grad_(False)
    features = torch.randn(1, 5, 4, 5)
    assert torch.equal(narrow(features, (9, 9)), narrow(features, (9, 9), backend="eager"))


def test_unknown_instruction_set_is_an_error_that_lists_them(monkeypatch):
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", "mmx")
    with pytest.raises(BackendError, match="portable"):
        use_backend("cpu")


def test_kernels_that_disagree_with_eager_are_refused_with_one_warning(monkeypatch, caplog):
    real = eager.forward
    monkeypatch.setattr(eager, "forward", lambda *a: real(*a) + 0.1)
    monkeypatch.setattr(cpu, "_checked", {})
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        assert "differs from plain PyTorch" in cpu.unavailable()
        assert cpu.unavailable()
    assert len(caplog.records) == 1


def test_without_the_compiled_module_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "diinn_fast._cpu", None)
    fresh = types.FunctionType(cpu._load.__wrapped__.__code__, vars(cpu))
    assert "compiler" in fresh()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_bounded(dtype, threads):
    """Peak resident memory of forward and backward beyond inputs and outputs, on two threads: at
    most 64 MiB.
    """
    if dtype == torch.bfloat16 and not cpu._kernels().has_bf16():
        pytest.skip("no AVX512_BF16")
    threads(2)
    decoder = make_decoder(3)
    lr = (96, 96)
    size = (300, 300)
    features = torch.randn(1, 64, *lr)
    from diinn_fast.geometry import Window
    from diinn_fast.packing import pack
    from diinn_fast.problem import Problem

    with torch.no_grad():
        weights = [w.to(dtype) for w in pack(decoder.layers(), 3, modulation=False)]
        source = decoder.project(F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()).to(
            dtype
        )
    problem = Problem("content", 3, lr, (0, 0), size, Window(0, size[0], 0, size[1]), None, None, 0)
    grad = torch.randn(1, 3, *size).to(dtype)
    outputs = {"forward": grad.nbytes, "backward": source.nbytes + sum(w.nbytes for w in weights)}
    runs = {
        "forward": lambda: cpu.forward(problem, source, weights),
        "backward": lambda: cpu.backward(problem, grad, source, weights, [True] * 7),
    }
    for name, run in runs.items():
        before = _resident("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM
        run()
        assert _resident("VmHWM") - before - outputs[name] <= 64 << 20, name


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


def test_the_self_check_holds_where_autocast_is_on(monkeypatch):
    """Training in bfloat16 decodes for the first time inside autocast, which would round the plain
    PyTorch twin.
    """
    monkeypatch.setattr(cpu, "_checked", {})
    decoder = make_decoder(3, width=32, layers=3)
    features = torch.rand(1, 64, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        decoder(features, (9, 9)).sum().backward()
    assert cpu._checked and not any(cpu._checked.values())
