"""The decoder against the literal definition: values, gradients, windows, points, dtypes,
refusals.
"""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from helpers.problems import MODES, make_decoder, oracle, random_geometry

from diinn_fast import ImplicitDecoder, use_backend

EAGER = "eager"


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_float64_equals_the_definition(mode, init_q, seed):
    decoder = make_decoder(mode, init_q).double()
    fixed = [
        (1, 1, 7, 5),
        (1, 6, 3, 19),
        (5, 5, 20, 20),
        (9, 8, 4, 3),
    ]  # one pixel, anisotropic, integer, down-scaling
    for n, (h, w, height, width) in enumerate(
        fixed + [random_geometry(seed, mode) for _ in range(30)]
    ):
        features = torch.randn(3 if n % 4 == 0 else 1, 64, h, w, dtype=torch.float64)
        if n % 3 == 0:
            features = features.contiguous(memory_format=torch.channels_last)
        elif n % 3 == 1:
            features = features.transpose(2, 3).contiguous().transpose(2, 3)
        with torch.no_grad():
            error = (
                (decoder(features, (height, width)) - oracle(decoder, features, (height, width)))
                .abs()
                .max()
            )
        assert error <= 1e-10, (h, w, height, width)


def rms(error: torch.Tensor) -> float:
    return float(error.double().square().mean().sqrt())


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_float32_is_within_twice_plain_pytorchs_error(mode, init_q, seed):
    """In root mean square over all geometries; in one small output the ratio of errors is a matter
    of luck.
    """
    decoder = make_decoder(mode, init_q)
    errors: dict[str, list[torch.Tensor]] = {"plain": [], "auto": [], EAGER: []}
    for h, w, height, width in [(12, 13, 50, 47), *(random_geometry(seed, mode) for _ in range(5))]:
        features = torch.randn(2, 64, h, w)
        with torch.no_grad():
            exact = oracle(decoder, features, (height, width))
            errors["plain"].append(
                oracle(decoder, features, (height, width), dtype=torch.float32) - exact
            )
            for backend in ("auto", EAGER):
                errors[backend].append(decoder(features, (height, width), backend=backend) - exact)
    plain, *ours = (torch.cat([e.flatten() for e in v]) for v in errors.values())
    for error in ours:
        assert rms(error) <= 2 * rms(plain)
        assert error.abs().max() <= 3 * plain.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", [1, 3])
def test_16_bit_is_within_twice_plain_pytorchs_error(mode, dtype):
    decoder = make_decoder(mode)
    features = torch.randn(1, 64, 6, 7)
    with torch.no_grad():
        exact = oracle(decoder, features, (21, 30))
        plain = oracle(decoder, features, (21, 30), dtype=dtype).double()
        got = decoder.to(dtype)(features.to(dtype), (21, 30))
    assert got.dtype == dtype
    assert rms(got - exact) <= 2 * rms(plain - exact)


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_gradients_equal_those_of_the_definition(mode, init_q, seed):
    decoder = make_decoder(mode, init_q).double()
    for h, w, height, width in [(3, 4, 10, 9), (6, 5, 4, 3), random_geometry(seed, mode)]:
        features = torch.randn(2, 64, h, w, dtype=torch.float64, requires_grad=True)
        inputs = [features, *decoder.parameters()]
        want = oracle(decoder, features, (height, width))
        grad = torch.randn_like(want)
        expected = torch.autograd.grad(want, inputs, grad)
        for backward_chunk in (None, 17):
            got = torch.autograd.grad(
                decoder(features, (height, width), backward_chunk), inputs, grad
            )
            assert max(relative(g, e) for g, e in zip(got, expected, strict=True)) < 1e-11


def gradcheck(decoder, size, channels, fast):
    features = torch.randn(2, channels, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in decoder.named_parameters()]

    def run(features, *parameters):
        return torch.func.functional_call(
            decoder, dict(zip(names, parameters, strict=True)), (features, size)
        )

    parameters = [p.detach().requires_grad_() for p in decoder.parameters()]
    return torch.autograd.gradcheck(run, (features, *parameters), fast_mode=fast)


@pytest.fixture
def one_thread():
    """Thousands of tiny products: a second thread only makes them wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_gradcheck(mode, init_q, one_thread):
    assert gradcheck(
        make_decoder(mode, init_q, width=8, channels=1).double(), (5, 4), 1, fast=False
    )
    assert gradcheck(make_decoder(mode, init_q).double(), (5, 4), 64, fast=True)
    assert gradcheck(
        make_decoder(mode, init_q, width=8, channels=1).double(), (2, 2), 1, fast=False
    )  # down-scaling


def test_frozen_parts_get_no_gradient():
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 4, 4)
    decoder(features, (9, 9)).sum().backward()  # frozen encoder
    assert all(p.grad is not None for p in decoder.parameters())
    decoder.requires_grad_(False).zero_grad()
    features.requires_grad_()
    decoder(features, (9, 9)).sum().backward()  # frozen decoder
    assert features.grad is not None and all(p.grad is None for p in decoder.parameters())


@pytest.mark.parametrize(("mode", "init_q"), MODES)
@pytest.mark.parametrize("backend", ["auto", EAGER])
def test_windows_reassemble_to_the_bitwise_same_image(mode, init_q, backend, seed):
    decoder = make_decoder(mode, init_q)
    for h, w, height, width in [(5, 7, 23, 30), (9, 9, 5, 4), random_geometry(seed, mode)]:
        features = torch.randn(2, 64, h, w)
        with torch.no_grad(), use_backend(backend):
            whole = decoder(features, (height, width))
            rows = sorted({0, height, *(seed.randint(0, height) for _ in range(2))})
            columns = sorted({0, width, *(seed.randint(0, width) for _ in range(2))})
            parts = [
                torch.cat(
                    [
                        decoder(features, (height, width), window=(y0, y1, x0, x1))
                        for x0, x1 in pairwise(columns)
                    ],
                    dim=3,
                )
                for y0, y1 in pairwise(rows)
            ]
            assert torch.equal(torch.cat(parts, dim=2), whole)
            y = seed.randrange(height)
            x = seed.randrange(width)
            pixel = decoder(features, (height, width), window=(y, y + 1, x, x + 1))
            assert torch.equal(pixel[:, :, 0, 0], whole[:, :, y, x])
            for bsize in (1, 19, 10**6):
                assert torch.equal(decoder(features, (height, width), bsize), whole)
            assert torch.equal(decoder(features[1:], (height, width)), whole[1:])


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_bands_of_rows_are_bitwise_the_whole(mode, monkeypatch):
    decoder = make_decoder(mode)
    features = torch.randn(2, 64, 9, 6)
    with torch.no_grad():
        whole = decoder(features, (31, 20))
        monkeypatch.setattr("diinn_fast.fused.BAND_BYTES", 60_000)
        assert torch.equal(decoder(features, (31, 20)), whole)


@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_windows_from_a_tile_of_the_features_are_bitwise_the_whole(mode, init_q, seed):
    """The tile holds no more than the rows and columns that `lr_window` names; all else is as good
    as lost.
    """
    decoder = make_decoder(mode, init_q, width=64)
    for h, w, height, width in [
        (7, 9, 23, 31),
        (9, 8, 4, 3),
        *(random_geometry(seed, mode) for _ in range(4)),
    ]:
        features = torch.randn(2, 64, h, w)
        with torch.no_grad():
            whole = decoder(features, (height, width))
            rows = sorted({0, height, *(seed.randint(0, height) for _ in range(2))})
            columns = sorted({0, width, *(seed.randint(0, width) for _ in range(2))})
            for y0, y1 in pairwise(rows):
                for x0, x1 in pairwise(columns):
                    i0, i1, j0, j1 = decoder.lr_window((y0, y1, x0, x1), (h, w), (height, width))
                    tile = features[:, :, i0:i1, j0:j1].clone()
                    part = decoder(
                        tile, (height, width), window=(y0, y1, x0, x1), tile=((h, w), (i0, j0))
                    )
                    assert torch.equal(part, whole[:, :, y0:y1, x0:x1])


def test_a_tile_that_lacks_a_border_is_refused():
    decoder = make_decoder(3, width=64)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="needs features of LR rows 1 to 5 and columns 0 to 4"),
    ):
        decoder(torch.randn(1, 64, 3, 9), (20, 18), window=(4, 8, 0, 6), tile=((10, 9), (1, 0)))


def test_window_gradients_add_up():
    decoder = make_decoder(3).double()
    features = torch.randn(1, 64, 4, 5, dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(decoder(features, (12, 13)).sum(), features)
    halves = [(0, 7, 0, 13), (7, 12, 0, 13)]
    parts = [
        torch.autograd.grad(decoder(features, (12, 13), window=v).sum(), features)[0]
        for v in halves
    ]
    assert relative(sum(parts), whole) < 1e-12


@pytest.mark.parametrize(("mode", "init_q"), [m for m in MODES if m[0] != 4])
def test_sampled_pixels_are_those_of_the_whole(mode, init_q):
    decoder = make_decoder(mode, init_q)
    features = torch.randn(2, 64, 5, 6)
    y = torch.randint(0, 22, (2, 70))
    x = torch.randint(0, 25, (2, 70))
    with torch.no_grad():
        whole = decoder(features, (22, 25))
        points = decoder.sample_pixels(features, torch.stack([y, x], dim=-1), (22, 25))
    assert torch.equal(points, torch.stack([whole[b, :, y[b], x[b]].T for b in range(2)]))


@pytest.mark.parametrize(
    "points", [9, 60]
)  # fewer and more than LR pixels: direct and projected form
def test_sample_at_pixel_centres_equals_decode(points):
    decoder = make_decoder(3).double()
    features = torch.randn(2, 64, 5, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 22, (2, points))
    x = torch.randint(0, 25, (2, points))
    coords = torch.stack([(2 * y + 1) / 22 - 1, (2 * x + 1) / 25 - 1], dim=-1).double()
    got = decoder.sample(features, coords, (22, 25))
    whole = decoder(features, (22, 25))
    want = torch.stack([whole[b, :, y[b], x[b]].T for b in range(2)])
    assert (got - want).abs().max() < 1e-6  # coords above were rounded to float32
    grad = torch.randn_like(want)
    inputs = [features, *decoder.parameters()]
    pairs = zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True
    )
    assert max(relative(g, e) for g, e in pairs) < 1e-5


def test_sample_clamps_to_the_border_pixels():
    decoder = make_decoder(3).double()
    features = torch.randn(1, 64, 3, 3, dtype=torch.float64)
    out = decoder.sample(features, torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]]).double(), (6, 6))
    assert out.shape == (1, 2, 3) and out.isfinite().all()


def test_far_corner_of_an_output_of_more_than_2_to_the_32_elements():
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 40, 50)
    size = (70_000, 80_000)
    window = (69_990, 70_000, 79_985, 80_000)
    with torch.no_grad():
        exact = oracle(decoder, features, size, window)
        plain = (oracle(decoder, features, size, window, torch.float32) - exact).abs().max()
        assert (decoder(features, size, window=window) - exact).abs().max() <= 2 * plain + 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 4, 5, requires_grad=True)
    want = decoder(features, (12, 13))
    with torch.autocast("cpu", dtype):
        got = decoder(features, (12, 13))
    assert got.dtype == dtype and relative(got.float(), want) < 0.1
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in decoder.parameters())


def test_bsize_bounds_memory_and_ends():
    decoder = make_decoder(3)
    with torch.no_grad():
        assert decoder(torch.randn(1, 64, 4, 4), (64, 64), bsize=1000).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="bsize must be at least 1"):
        decoder(torch.randn(1, 64, 4, 4), (64, 64), bsize=0)


def test_every_element_of_the_output_is_written(monkeypatch):
    real = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: real(self, *a, **k).fill_(float("nan"))
    )
    for mode in (1, 3, 4):
        with torch.no_grad():
            assert (
                make_decoder(mode)(torch.randn(2, 64, 3, 4), (7, 9), backend=EAGER).isfinite().all()
            )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d(torch.randn(1, 3, 4, 4), (8, 8)), "features must be"),
        (lambda d: d(torch.randn(1, 64, 4, 4).double(), (8, 8)), "use autocast"),
        (lambda d: d(torch.ones(1, 64, 4, 4, dtype=torch.int64), (8, 8)), "floating point"),
        (lambda d: d(torch.randn(1, 64, 4, 4), (8,)), "size must be"),
        (lambda d: d(torch.randn(1, 64, 4, 4), (0, 8)), "HR height"),
        (lambda d: d(torch.randn(1, 64, 4, 4), (8, 8), window=(0, 9, 0, 8)), "window"),
        (
            lambda d: d.sample(torch.randn(1, 64, 4, 4), torch.zeros(2, 5, 2), (8, 8)),
            "points must be",
        ),
        (
            lambda d: d.sample_pixels(torch.randn(1, 64, 4, 4), torch.zeros(1, 5, 2), (8, 8)),
            "int64",
        ),
    ],
)
def test_refusals_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_decoder(3))


def test_mode_4_refuses_points_and_single_pixels():
    decoder = make_decoder(4)
    with pytest.raises(ValueError, match="mode 4 cannot be sampled"):
        decoder.sample(torch.randn(1, 64, 4, 4), torch.zeros(1, 5, 2), (8, 8))
    with pytest.raises(ValueError, match="at least 2x2"):
        decoder(torch.randn(1, 64, 4, 4), (1, 8))


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="mode must be"):
        ImplicitDecoder(mode=5)
    with pytest.raises(ValueError, match="equal widths"):
        ImplicitDecoder(hidden_dims=[256, 128])


PEAK = """
import sys, torch
from diinn_fast import ImplicitDecoder

def status(key):
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

decoder, features = ImplicitDecoder(mode=3).eval(), torch.randn(1, 64, 48, 48)
with torch.inference_mode():
    decoder(features, (96, 96), backend=sys.argv[1])
    open("/proc/self/clear_refs", "w").write("5")  # reset the peak
    before = status("VmRSS")
    out = decoder(features, (1024, 1024), backend=sys.argv[1])
print(status("VmHWM") - before - out.nbytes - 48 * 48 * 4096)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to reset a process's peak"
)
@pytest.mark.parametrize("backend", ["auto", EAGER])
def test_decode_needs_only_a_constant_beyond_output_and_content(backend):
    """Peak resident memory of a megapixel decode, whose 576-channel input alone would be 2.4 GB at
    HR size.
    """
    run = subprocess.run(
        [sys.executable, "-c", PEAK, backend], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 256 << 20
