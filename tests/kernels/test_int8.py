"""The int8 kernels: values against a float64 model of the quantised formula, the same bits however
the work is cut and on every instruction set, refusals.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast import BackendError, ImplicitDecoder, backends, use_backend
from diinn_fast.backends import cpu, int8
from diinn_fast.geometry import Window, local_offset, nearest_index
from diinn_fast.loading import load_weights
from diinn_fast.problem import Problem, Weights, query_weights
from tests import run_int8_bits
from tests.helpers.measure import rms
from tests.helpers.problems import make_decoder, oracle

if os.environ.get("DIINN_FAST_NO_KERNELS") == "1" or isinstance(cpu._load(), str):
    pytest.skip(f"no CPU kernels: {cpu._load()}", allow_module_level=True)

SETS = list(cpu.int8_instruction_sets())
LARGEST = 127
LEAST = 2.0**-100
DIGIT = 128


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", request.param)
    assert int8.unavailable() is None
    assert int8.instruction_set() == request.param
    return str(request.param)


@pytest.fixture(autouse=True)
def some_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without the instructions, the portable kernels."""
    if int8.instruction_set() is None:
        monkeypatch.setenv("DIINN_FAST_CPU_ISA", int8.SLOW)


@pytest.fixture(autouse=True)
def threads() -> Any:
    """Sets the thread count: one unless a test says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


# -- the model: the formula with quantised factors, in float64 -----------------------------------


def quantised(x: Tensor) -> Tensor:
    """Rows of x, rounded to whole multiples of a 127th of their largest magnitude."""
    unit = x.abs().amax(-1, keepdim=True) / LARGEST
    return (x / unit).round() * unit


def model(problem: Problem, source: Tensor, weights: list[Tensor]) -> Tensor:
    """The decode [B, N, channels] as the kernels define it, of a window's queries or of points."""
    index, offset = queries(problem, source)
    names = query_weights([v.double() for v in weights])
    width = names.width
    content = source.double().flatten(1, 2)
    content = torch.stack([c[i] for c, i in zip(content, index, strict=True)])
    position = F.pad(offset.double(), (0, 1), value=problem.ratio)
    k = content[..., :width]
    q = first_layer(k if problem.form == "modulation" else k.relu(), position, names)
    for n, (hidden, bias) in enumerate(zip(names.hidden, names.hidden_bias, strict=True), start=1):
        own = content[..., n * width : (n + 1) * width]
        sums = quantised(q) @ quantised(hidden).T
        if problem.form == "content":
            own = (own + sums[..., :width]).relu()
        q = own * torch.sin(sums[..., -width:] + bias)
    return q @ names.last.T + names.last_bias


def first_layer(k: Tensor, position: Tensor, names: Weights) -> Tensor:
    return k * torch.sin(position @ names.position.T + names.position_bias)


def queries(problem: Problem, source: Tensor) -> tuple[Tensor, Tensor]:
    """LR pixel [B, N] and (dy, dx) [B, N, 2] of every query."""
    if problem.window is None:
        assert problem.index is not None and problem.offset is not None
        return problem.index, problem.offset
    y0, y1, x0, x1 = problem.window
    (h, w), (height, width) = problem.lr, problem.size
    i = nearest_index(y0, y1, h, height)
    j = nearest_index(x0, x1, w, width)
    dy = local_offset(y0, y1, i, h, height, torch.float32)
    dx = local_offset(x0, x1, j, w, width, torch.float32)
    index = (i[:, None] * w + j).flatten()
    offset = torch.stack(torch.meshgrid(dy, dx, indexing="ij"), -1).flatten(0, 1)
    batch = len(source)
    return index.expand(batch, -1), offset.expand(batch, -1, -1)


def case(
    form: str, width: int = 64, layers: int = 4, channels: int = 3, points: int = 0
) -> tuple[Problem, Tensor, list[Tensor]]:
    """A decode of two images of 5x6 pixels, every unit of which matters."""
    rows = 2 * width if form == "content" else width
    source = torch.randn(2, 5, 6, layers * width)
    if form == "modulation":
        source = source.relu()
    hidden = torch.randn(layers - 1, rows, width) * (2 / width**0.5)
    weights = [
        torch.randn(width, 3),
        torch.randn(width),
        hidden,
        torch.randn(layers - 1, width),
        torch.randn(channels, width) / width**0.5,
        torch.randn(channels),
    ]
    window = None if points else Window(2, 15, 1, 17)
    index = torch.randint(30, (2, points)) if points else None
    offset = torch.rand(2, points, 2) * 2 - 1 if points else None
    mode = 3 if form == "content" else 2
    return Problem(form, mode, (5, 6), (0, 0), (17, 19), window, index, offset, 0), source, weights


def flat(problem: Problem, out: Tensor) -> Tensor:
    return out if problem.window is None else out.flatten(2).transpose(1, 2)


def digits(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """High and low digits (in float64) and units (float32) of rows, as the kernels make them."""
    largest = rows.abs().amax(-1, keepdim=True)
    some = largest.isfinite() & (largest >= LEAST)
    finest = torch.full_like(largest, LARGEST * DIGIT)
    inverse = torch.where(some, finest / largest, 0)
    unit = torch.where(largest.isfinite(), largest * some / finest, float("nan"))
    # A product of two float32 numbers is exact in float64; halves go to the even integer.
    whole = (torch.where(some, rows, 0).double() * inverse.double()).round()
    high = ((whole + DIGIT // 2) / DIGIT).floor()
    return high, whole - high * DIGIT, unit[..., 0]


def projected(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The projection ``[B, h, w, out]`` to the bit: exact integer sums, then float32."""
    taps = padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)  # [B, h, w, C*9]
    x_high, x_low, own = digits(taps)
    w_high, w_low, unit = digits(weight)
    total = DIGIT * (x_high @ w_high.T) + x_low @ w_high.T + x_high @ w_low.T
    scaled = total.float() * unit
    # Fused: rounded once, or by way of 64 bits, which is the same but for one sum in 2^40.
    exact = np.multiply(scaled.numpy(), DIGIT * own[..., None].numpy(), dtype=np.longdouble)
    return torch.from_numpy((exact + bias.numpy()).astype(np.float32))


CASES = [
    ("content", 32, 2, 3, 0),
    ("content", 64, 4, 3, 77),
    ("content", 96, 3, 27, 0),
    ("modulation", 64, 5, 3, 0),
    ("modulation", 32, 3, 27, 131),
    ("content", 256, 4, 3, 0),
]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_values_are_those_of_the_quantised_formula(
    shape: tuple[str, int, int, int, int], isa: str
) -> None:
    problem, source, weights = case(*shape)
    got = flat(problem, int8._decode(isa, problem, source, weights))
    want = model(problem, source, weights)
    assert got.isfinite().all(), "not every output was written"
    # In few queries float32 rounds a number near a half to the other integer, and those after it.
    quantisation = rms(flat(problem, cpu.forward(problem, source, weights)) - want)
    assert (got - want).abs().median() <= 1e-3 * quantisation
    assert rms(got - want) <= 0.1 * quantisation


def errors(decoder: ImplicitDecoder, features: Tensor, size: tuple[int, int]) -> list[float]:
    """Of int8, and of plain PyTorch in bfloat16."""
    exact = oracle(decoder, features, size)
    got = decoder(features, size, backend="int8")
    bf16 = copy.deepcopy(decoder).bfloat16()(features.bfloat16(), size, backend="eager")
    return [rms(got - exact), rms(bf16.double() - exact)]


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_error_with_random_weights_is_at_most_twice_bfloat16s(mode: int) -> None:
    decoder = make_decoder(mode, width=128, channels=8).requires_grad_(False)
    ours, bf16 = errors(decoder, torch.randn(1, 8, 9, 10), (31, 43))
    assert ours <= 2 * bf16


@pytest.mark.parametrize("size", [(24, 26), (31, 37)], ids=str)
def test_pixels_that_alternate_between_black_and_white_are_those_of_float32(
    size: tuple[int, int],
) -> None:
    y, x = torch.meshgrid(torch.arange(12), torch.arange(13), indexing="ij")
    board = ((x + y) % 2).float() * 2 - 1
    model = load_weights(None).requires_grad_(False)
    features = model.encoder(board.expand(1, 3, 12, 13))
    got, exact = (model.decoder(features, size, backend=name) for name in ("int8", "cpu"))
    assert (got - exact).abs().max() < 3 / 127.5


@pytest.mark.parametrize("size", [(40, 44), (67, 71)], ids=str)
def test_error_of_the_bundled_model_on_a_picture_is_at_most_one_and_a_half_times_bfloat16s(
    size: tuple[int, int],
) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 22), indexing="ij")
    edge = (x > y).float() * 1.6 - 0.8
    picture = torch.stack([torch.sin(9 * x + 5 * y), torch.cos(7 * x * y), edge])
    model = load_weights(None).requires_grad_(False)
    ours, bf16 = errors(model.decoder, model.encoder(picture[None]), size)
    assert ours <= 1.5 * bf16


@pytest.mark.parametrize("shape", CASES[:5], ids=str)
def test_every_instruction_set_gives_the_same_bits(shape: Any, isa: str) -> None:
    problem, source, weights = case(*shape)
    got, coarse = int8._marked(isa, problem, source, weights)
    portable, also = int8._marked("portable", problem, source, weights)
    assert torch.equal(got, portable) and torch.equal(coarse, also)


@pytest.mark.parametrize("shape", CASES[:5], ids=str)
def test_queries_that_integers_are_too_coarse_for_have_float32s_bits(
    shape: Any, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "AGAIN", 7)
    problem, source, weights = case(*shape)
    source *= torch.linspace(0, 1, len(source[0].flatten(0, 1))).view(5, 6, 1)  # small to large
    _, coarse = int8._marked(isa, problem, source, weights)
    assert 0 < coarse.sum() < coarse.numel()
    assert (coarse == too_coarse(problem, source, weights)).float().mean() > 0.98
    got = flat(problem, int8.forward(problem, source, weights))
    exact = flat(problem, cpu.forward(problem, source, weights))
    integers = flat(problem, int8._decode(isa, problem, source, weights))
    assert torch.equal(got, torch.where(coarse[..., None], exact, integers))


def too_coarse(problem: Problem, source: Tensor, weights: list[Tensor]) -> Tensor:
    """Of each query [B, N]: rounding q moves some sum of a hidden layer by more than COARSE."""
    found = []
    names = query_weights(weights)
    for n in range(1, names.layers):
        # The network up to that layer, of which the last layer gives q as it is.
        eye = torch.eye(names.width)
        part = [*weights[:2], names.hidden[: n - 1], names.hidden_bias[: n - 1], eye, eye[0] * 0]
        q = model(problem, source, part)
        rounding = q.abs().amax(-1) / LARGEST / 12**0.5
        found.append(rounding * names.hidden[n - 1].double().norm(dim=1).max() > int8.COARSE)
    return torch.stack(found).any(0)


@pytest.mark.parametrize("size", [(29, 41), (15, 17)], ids=str)
@pytest.mark.parametrize("mode", [2, 3, 4])
def test_windows_batches_and_threads_give_the_same_bits(
    mode: int, size: tuple[int, int], threads: Any
) -> None:
    decoder = make_decoder(mode, width=64, channels=5).requires_grad_(False)
    features = torch.randn(3, 5, 7, 8)
    height, width = size
    whole = decoder(features, size, backend="int8")
    last = (height - 1, height, width - 1, width)
    for window in [(0, height, 0, width), (3, 4, 0, width), (11, height, 8, width - 4), last]:
        y0, y1, x0, x1 = window
        got = decoder(features, size, window=window, backend="int8")
        assert torch.equal(got, whole[:, :, y0:y1, x0:x1]), window
    for count in (2, 3, 7):
        threads(count)
        assert torch.equal(decoder(features, size, backend="int8"), whole), count
    for b in range(3):
        assert torch.equal(decoder(features[b : b + 1], size, backend="int8"), whole[b : b + 1])


@pytest.mark.parametrize("size", [(25, 31), (13, 15)], ids=str)
def test_points_are_the_pixels_of_the_whole(size: tuple[int, int]) -> None:
    decoder = make_decoder(3, width=64, channels=5).requires_grad_(False)
    features = torch.randn(2, 5, 6, 7)
    whole = decoder(features, size, backend="int8")
    yx = torch.stack([torch.randint(n, (2, 200)) for n in size], dim=-1)
    got = decoder.sample_pixels(features, yx, size, backend="int8")
    want = torch.stack([whole[b][:, yx[b, :, 0], yx[b, :, 1]].T for b in range(2)])
    assert torch.equal(got, want)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_at_width_1024_are_exact(sign: int, isa: str) -> None:
    """All integers 127 or -127: sums of 127 * 127 * 1024, with the offset of VNNI twice that."""
    problem, source, weights = case("content", 1024, 2, 3, points=5)
    names = query_weights(weights)
    source[..., :1024] = 1.0
    names.position.zero_()
    names.position_bias.fill_(torch.pi / 2)
    names.hidden.fill_(sign * 0.003)
    names.hidden_bias.zero_()
    got = int8._decode(isa, problem, source, weights)
    want = model(problem, source, weights)
    assert rms(got - want) <= 3e-5 * rms(want)


def test_rows_of_zeros_and_tiny_numbers(isa: str) -> None:
    problem, source, weights = case("content", points=50)
    source[:, 0] = 0.0
    source[:, 1] *= 1e-35
    query_weights(weights).hidden[0, :32] = 0.0
    got = int8._decode(isa, problem, source, weights)
    assert got.isfinite().all()
    assert torch.equal(got, int8._decode("portable", problem, source, weights))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("unit", [3, 70, 200])
def test_nan_and_infinity_come_out_where_they_do_from_eager(
    unit: int, bad: float, isa: str
) -> None:
    problem, source, weights = case("content")
    source[0, 1, 2, unit] = bad
    got = int8.forward(problem, source, weights)
    want = backends.load("eager").forward(problem, source, weights)
    assert torch.equal(got.isnan(), want.isnan())
    query_weights(weights).hidden[1, 5, 7] = float("nan")
    assert int8.forward(problem, source, weights).isnan().all()


def test_sine_is_within_its_stated_error(isa: str) -> None:
    """Every 499th float32 up to 10,000 and the neighbourhood of the multiples of pi/2."""
    bits = torch.arange(0, torch.tensor(1e4).view(torch.int32).item(), 499, dtype=torch.int32)
    near = (torch.arange(0, 6366, dtype=torch.float64) * (torch.pi / 2)).float().clamp(max=1e4)
    for x in (bits.view(torch.float32), near, torch.nextafter(near, torch.tensor(-1.0))):
        for signed in (x, -x):
            assert (sine(isa, signed) - signed.double().sin()).abs().max() <= 1.1e-6
    beyond = torch.tensor([1.1e4, -3e6, 1e20, 3e38, 0.5])
    assert (sine(isa, beyond) - beyond.double().sin()).abs().max() <= 1.1e-6
    assert sine(isa, torch.tensor([float("nan"), float("inf"), -float("inf")])).isnan().all()


def sine(isa: str, x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.full_like(x, 7)
    cpu._kernels().int8_sine(isa, x.data_ptr(), out.data_ptr(), x.numel())
    return out


# -- the projection ------------------------------------------------------------------------------


def projection(channels: int, outputs: int = 96, lr: tuple[int, int] = (5, 6)) -> list[Tensor]:
    """Padded features of two images, weight and bias."""
    padded = torch.randn(2, lr[0] + 2, lr[1] + 2, channels)
    weight = torch.randn(outputs, 9 * channels) / channels**0.5
    return [padded, weight, torch.randn(outputs)]


def convolve(isa: str, *operands: Tensor) -> Tensor:
    """All pixels by integers."""
    return int8._convolve(isa, *operands)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("channels", [1, 3, 5, 64, 97])
def test_a_projection_has_the_bits_of_its_definition(channels: int, isa: str) -> None:
    operands = projection(channels)
    assert torch.equal(convolve(isa, *operands), projected(*operands))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_the_most_channels_are_exact(sign: int, isa: str) -> None:
    """All high digits 127 or -127, as many terms as there may be."""
    channels = int8.MOST_TAPS // 9
    padded = torch.ones(1, 3, 3, channels)
    weight = torch.full((32, 9 * channels), sign * 0.003)
    bias = torch.zeros(32)
    assert torch.equal(convolve(isa, padded, weight, bias), projected(padded, weight, bias))
    more = torch.ones(1, 3, 3, channels + 1)
    assert int8.conv3x3(more, torch.ones(32, 9 * (channels + 1)), bias) is None


def test_a_pixel_is_projected_from_its_neighbourhood_alone(isa: str, threads: Any) -> None:
    """However the image is cut, whatever lies elsewhere in it, by any number of threads."""
    padded, weight, bias = projection(8, lr=(13, 17))
    whole = convolve(isa, padded, weight, bias)
    for y, x, height, width in ((0, 0, 13, 17), (4, 0, 1, 17), (3, 5, 6, 7), (12, 16, 1, 1)):
        part = padded[1:, y : y + height + 2, x : x + width + 2]
        got = convolve(isa, part, weight, bias)
        assert torch.equal(got, whole[1:, y : y + height, x : x + width])
    for count in (2, 3, 7):
        threads(count)
        assert torch.equal(convolve(isa, padded, weight, bias), whole)
    padded[:, 4, 4] = 1e6
    far = torch.ones(13, 17, dtype=torch.bool)
    far[2:5, 2:5] = False
    assert torch.equal(convolve(isa, padded, weight, bias)[:, far], whole[:, far])


def test_projections_of_zeros_tiny_and_infinite_features(isa: str) -> None:
    """The bias; all of a neighbourhood with NaN or infinity is NaN."""
    padded, weight, bias = projection(6)
    padded[0] = 0.0
    padded[1, :3] *= 1e-35
    padded[1, 6, 7, 2] = float("inf")
    padded[1, 0, 7, 5] = float("nan")
    weight[7] = 0.0
    got = convolve(isa, padded, weight, bias)
    assert torch.equal(got[0], bias.expand_as(got[0]))
    assert torch.equal(got[1, 0, :5], bias.expand_as(got[1, 0, :5]))
    lost = torch.zeros(5, 6, dtype=torch.bool)
    lost[4, 5] = lost[0, 5] = True
    assert torch.equal(got[1].isnan(), lost[..., None].expand_as(got[1]))
    want = projected(padded, weight, bias)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("largest", [1.0, 100.0])
def test_a_projection_rounds_to_digits_of_fifteen_bits(largest: float, isa: str) -> None:
    """Of what its largest feature alone would give, against float64."""
    padded, weight, bias = projection(64)
    padded[..., 5] *= largest
    exact = projection_of(padded, weight, bias)
    error = rms(convolve(isa, padded, weight, bias).double() - exact)
    assert 1e-6 < error / (rms(exact) * largest**0.5) < 2e-4


def projection_of(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The projection in float64."""
    taps = padded.double().unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
    return taps @ weight.double().T + bias.double()


@pytest.mark.parametrize("mode", [1, 3])
def test_a_decoder_projects_so(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every scale, with and without gradients being recorded: there are none either way."""
    decoder = make_decoder(mode, width=64, channels=5)
    features = torch.randn(2, 5, 6, 7)
    seen = []
    convolve = int8._convolve
    monkeypatch.setattr(int8, "_convolve", lambda *given: seen.append(given[0]) or convolve(*given))
    for size in ((12, 14), (48, 63)):
        recorded = decoder(features, size, backend="int8")
        with torch.no_grad():
            assert torch.equal(decoder(features, size, backend="int8"), recorded)
    assert seen == [int8.instruction_set()] * 4


def test_a_projection_that_it_does_not_take_is_float32s() -> None:
    operands = projection(6)
    for other in (torch.bfloat16, torch.float16, torch.float64):
        assert int8.conv3x3(*(v.to(other) for v in operands)) is None
    padded, weight, bias = operands
    assert int8.conv3x3(padded, weight[:48], bias[:48]) is None
    # Layers whose hidden products are float32's.
    with torch.no_grad():
        decoder = make_decoder(3, width=48, channels=6)
        content = [decoder.project(padded, backend) for backend in ("int8", "cpu")]
    assert torch.equal(*content)


# -- where it is not int8, and refusals ----------------------------------------------------------


@pytest.mark.parametrize("init_q", [False, True])
def test_the_direct_form_is_float32(init_q: bool) -> None:
    decoder = make_decoder(3, init_q, width=64, channels=5).requires_grad_(False)
    features = torch.randn(1, 5, 9, 8)
    size = (20, 17) if init_q else (4, 5)
    got = decoder(features, size, backend="int8")
    assert torch.equal(got, decoder(features, size, backend="cpu"))


def test_sixteen_bits_are_taken_by_way_of_float32() -> None:
    problem, source, weights = case("content")
    half = [v.half() for v in weights]
    got = int8.forward(problem, source.half(), half)
    want = int8.forward(problem, source.half().float(), [v.float() for v in half])
    assert torch.equal(got, want.half())


def test_gradients_are_refused_in_a_sentence() -> None:
    decoder = make_decoder(3, width=64, channels=5)
    out = decoder(torch.randn(1, 5, 4, 4), (9, 9), backend="int8")
    with pytest.raises(BackendError, match="has no gradients: train with the backend auto"):
        out.sum().backward()


def test_auto_does_not_take_it() -> None:
    assert "int8" not in backends.ORDER
    assert any(row["backend"] == "int8" for row in backends.table())


def test_a_cpu_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIINN_FAST_CPU_ISA", raising=False)
    monkeypatch.setattr(cpu, "int8_instruction_sets", lambda: {"portable": "portable"})
    with pytest.raises(BackendError, match="needs AVX2, AVX-VNNI, AVX512_VNNI, AMX or AArch64"):
        use_backend("int8")


def test_a_name_of_the_float32_kernels_stands_for_the_same_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = {"amx": "avx512", "avx512_vnni": "avx512", "avx_vnni": "avx2", "avx2": "avx2"}
    monkeypatch.setattr(cpu, "int8_instruction_sets", lambda: sets)
    expected = {"avx512": "amx", "avx2": "avx2", "avx_vnni": "avx_vnni", "": "amx"}
    for asked, name in expected.items():
        monkeypatch.setenv("DIINN_FAST_CPU_ISA", asked)
        assert int8.instruction_set() == name
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", "avx_vnni")
    assert cpu.instruction_set() == "avx2"
    monkeypatch.setattr(cpu, "_bf16_sets", lambda: ["avx512_bf16"])
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", "avx512_bf16")
    assert int8.instruction_set() == "amx"


def test_kernels_built_before_there_was_int8_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace(int8_instruction_sets=lambda: [("avx2", "avx2")])
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(cpu, "_kernels", lambda: older)
    with pytest.raises(BackendError, match="older than the package: reinstall"):
        use_backend("int8")


@pytest.mark.parametrize("function", ["_decode", "_convolve"])
def test_kernels_that_give_other_bits_are_refused(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_checked", {})
    right = getattr(int8, function)
    wrong = lambda name, *rest: right(name, *rest) + (name != "portable") * 1e-6  # noqa: E731
    monkeypatch.setattr(int8, function, wrong)
    if int8.instruction_set() is not None:
        assert "other bits" in (int8.unavailable() or "")


# -- the templates of instruction sets that this CPU has not -------------------------------------


@pytest.fixture(scope="module")
def portable_bits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_int8_bits.native()[0].output(tmp_path_factory.mktemp("portable"))


@pytest.mark.parametrize("variant", run_int8_bits.native()[1:], ids=lambda v: v.name)
def test_templates_with_emulated_products_give_the_same_bits(
    variant: Any, portable_bits: str, tmp_path: Path
) -> None:
    assert run_int8_bits.first_difference(portable_bits, variant.output(tmp_path)) is None
