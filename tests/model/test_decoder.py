"""The decoder around the operator: derivatives, sampling, memory, refusals.

Its values and gradients are tested for every backend in tests/contract.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from diinn_fast import ImplicitDecoder
from tests.helpers.measure import relative
from tests.helpers.problems import MODES, make_decoder
from tests.helpers.threads import one_thread


def gradcheck(decoder: ImplicitDecoder, size: tuple[int, int], channels: int, fast: bool) -> bool:
    features = torch.randn(1, channels, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in decoder.named_parameters()]

    def run(features: Any, *parameters: Any) -> Any:
        return torch.func.functional_call(
            decoder, dict(zip(names, parameters, strict=True)), (features, size)
        )

    parameters = [p.detach().requires_grad_() for p in decoder.parameters()]
    return torch.autograd.gradcheck(run, (features, *parameters), fast_mode=fast)


@pytest.fixture
def threads() -> Iterator[None]:
    """Thousands of tiny products."""
    with one_thread():
        yield


@pytest.mark.long
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("mode", "init_q"), MODES)
def test_gradcheck(mode: int, init_q: bool) -> None:
    """By every input of a tiny decoder, and along one direction of the published one."""
    tiny = make_decoder(mode, init_q, width=3, channels=1, layers=3).double()
    assert gradcheck(tiny, (5, 3), 1, fast=False)
    # Down-scaling takes the direct form, as init_q does anyway.
    assert gradcheck(tiny, (2, 2), 1, fast=init_q)
    assert gradcheck(make_decoder(mode, init_q).double(), (5, 4), 64, fast=True)


def test_frozen_parts_get_no_gradient() -> None:
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 4, 4)
    decoder(features, (9, 9)).sum().backward()  # frozen encoder
    assert all(p.grad is not None for p in decoder.parameters())
    decoder.requires_grad_(False).zero_grad()
    features.requires_grad_()
    decoder(features, (9, 9)).sum().backward()  # frozen decoder
    assert features.grad is not None and all(p.grad is None for p in decoder.parameters())


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_bands_of_rows_are_bitwise_the_whole(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make_decoder(mode)
    features = torch.randn(2, 64, 9, 6)
    with torch.no_grad():
        whole = decoder(features, (31, 20))
        monkeypatch.setattr("diinn_fast.fused.STRIP_BYTES", 60_000)
        assert torch.equal(decoder(features, (31, 20)), whole)


def test_a_tile_that_lacks_a_border_is_refused() -> None:
    decoder = make_decoder(3, width=64)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="needs features of LR rows 1 to 5 and columns 0 to 4"),
    ):
        decoder(torch.randn(1, 64, 3, 9), (20, 18), window=(4, 8, 0, 6), tile=((10, 9), (1, 0)))


@pytest.mark.parametrize(
    "points", [9, 60]
)  # fewer and more than LR pixels: direct and projected form
def test_sample_at_pixel_centres_equals_decode(points: int) -> None:
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


def test_sample_clamps_to_the_border_pixels() -> None:
    decoder = make_decoder(3).double()
    features = torch.randn(1, 64, 3, 3, dtype=torch.float64)
    out = decoder.sample(features, torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]]).double(), (6, 6))
    assert out.shape == (1, 2, 3) and out.isfinite().all()


def test_bsize_bounds_memory_and_ends() -> None:
    decoder = make_decoder(3)
    with torch.no_grad():
        assert decoder(torch.randn(1, 64, 4, 4), (64, 64), bsize=1000).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="bsize must be at least 1"):
        decoder(torch.randn(1, 64, 4, 4), (64, 64), bsize=0)


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
def test_refusals_name_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_decoder(3))


def test_mode_4_refuses_points_and_single_pixels() -> None:
    decoder = make_decoder(4)
    with pytest.raises(ValueError, match="mode 4 cannot be sampled"):
        decoder.sample(torch.randn(1, 64, 4, 4), torch.zeros(1, 5, 2), (8, 8))
    with pytest.raises(ValueError, match="at least 2x2"):
        decoder(torch.randn(1, 64, 4, 4), (1, 8))


def test_bad_configurations_are_refused() -> None:
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
    out = decoder(features, (640, 640), backend=sys.argv[1])
print(status("VmHWM") - before - out.nbytes - 48 * 48 * 4096)
"""


@pytest.mark.long
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to reset a process's peak"
)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_decode_needs_only_a_constant_beyond_output_and_content(backend: str) -> None:
    """Peak resident memory of a decode whose 576-channel input alone would be 0.9 GB at HR size."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, backend], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 256 << 20
