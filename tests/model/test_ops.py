"""The operator as PyTorch sees it: schema, fake, autograd, compilation, and the choice of
backend.
"""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import diinn_fast
from diinn_fast import BackendError, backends, ops, use_backend
from diinn_fast.problem import Weights
from tests.helpers.problems import MODES, make_decoder


def operator_arguments(mode: int, init_q: bool, points: bool) -> Any:
    """Arguments of ``diinn_fast::decode`` as the decoder passes them."""
    decoder = make_decoder(mode, init_q, width=16, channels=4)
    seen = []
    patched = pytest.MonkeyPatch()
    patched.setattr(
        torch.ops.diinn_fast, "decode", lambda *args: seen.append(args) or torch.zeros(1, 3, 1, 1)
    )
    features = torch.randn(2, 4, 3, 4, requires_grad=True)
    if points:
        decoder.sample_pixels(features, torch.randint(0, 6, (2, 20, 2)), (6, 6))
    elif mode == 4:
        decoder._decode_window(features, (6, 7), diinn_fast.geometry.Window(0, 6, 0, 7), 0, None)
    else:
        decoder(features, (6, 7))
    patched.undo()
    arguments = list(seen[0])
    arguments[0] = arguments[0].detach().requires_grad_()
    arguments[1] = [w.detach().requires_grad_() for w in arguments[1]]
    return tuple(arguments)


@pytest.mark.parametrize(
    ("mode", "init_q", "points"),
    [(*m, False) for m in MODES[:6]] + [(3, False, True), (1, True, True)],
)
def test_opcheck(mode: int, init_q: bool, points: Any) -> None:
    torch.library.opcheck(
        torch.ops.diinn_fast.decode.default, operator_arguments(mode, init_q, points)
    )


@pytest.mark.parametrize("name", ["position_bias", "hidden", "hidden_bias", "last", "last_bias"])
def test_weights_that_do_not_fit_together_are_refused(name: str) -> None:
    arguments = list(operator_arguments(3, False, False))
    weights = Weights(*arguments[1])
    for cut in (getattr(weights, name)[:1], getattr(weights, name)[..., :1]):
        arguments[1] = list(weights._replace(**{name: cut}))
        with pytest.raises((ValueError, RuntimeError), match=r"weights\.\w+ must be \["):
            torch.ops.diinn_fast.decode(*arguments)


@pytest.mark.parametrize("name", ["position", "hidden", "last"])
def test_weights_of_another_number_of_dimensions_are_refused(name: str) -> None:
    arguments = list(operator_arguments(3, False, False))
    weights = Weights(*arguments[1])
    for wrong in (getattr(weights, name).flatten(), torch.zeros(())):
        arguments[1] = list(weights._replace(**{name: wrong}))
        with pytest.raises((ValueError, RuntimeError), match=rf"weights\.{name} must have"):
            torch.ops.diinn_fast.decode(*arguments)


@pytest.mark.parametrize(("mode", "init_q"), [(1, False), (3, False), (3, True), (4, False)])
def test_compile_fullgraph(mode: int, init_q: bool) -> None:
    decoder = make_decoder(mode, init_q, width=32, channels=8)
    features = torch.randn(1, 8, 4, 5, requires_grad=True)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    got = compiled(features, (9, 11))
    want = decoder(features, (9, 11))
    torch.testing.assert_close(got, want)
    inputs = [features, *decoder.parameters()]
    grads = zip(
        torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True
    )
    for a, b in grads:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(features, (9, 11)), want)


def test_opcheck_conv3x3() -> None:
    arguments = (torch.randn(2, 5, 6, 4), torch.randn(32, 36), torch.randn(32), "auto")
    torch.library.opcheck(torch.ops.diinn_fast.conv3x3.default, arguments)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_conv3x3_is_a_convolution_however_it_is_cut(backend: str) -> None:
    padded = torch.randn(2, 9, 12, 64)
    weight = torch.randn(96, 576)
    bias = torch.randn(96)
    with torch.no_grad():
        whole = ops.conv3x3(padded, weight, bias, backend)
        want = torch.nn.functional.conv2d(
            padded.permute(0, 3, 1, 2), weight.view(96, 64, 3, 3), bias
        )
        torch.testing.assert_close(whole, want.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
        part = ops.conv3x3(padded[1:, 3:7, 4:9], weight, bias, backend)
    assert torch.equal(part, whole[1:, 3:5, 4:7])


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_autocast_does_not_reach_into_the_operators(backend: str) -> None:
    """Positions and sine arguments stay float32: the same inputs give the same bits with and
    without autocast.
    """
    h = 32
    matrices = (torch.randn(2, 2 * h, h), torch.randn(3, h))
    vectors = (torch.randn(h, 3), torch.randn(h))
    source = torch.randn(1, 3, 4, 3 * h).bfloat16().requires_grad_()
    weights = [
        *vectors,
        matrices[0].bfloat16(),
        torch.randn(2, h),
        matrices[1].bfloat16(),
        torch.randn(3),
    ]
    window = diinn_fast.geometry.Window(0, 7, 0, 9)

    def run() -> Any:
        settings = {
            "form": "content",
            "mode": 3,
            "lr": (3, 4),
            "size": (7, 9),
            "window": window,
            "backend": backend,
        }
        out = ops.decode(source, weights, **settings)
        return out, *torch.autograd.grad(out.float().square().sum(), source)

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        cast = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_two_backwards_are_bitwise_equal() -> None:
    decoder = make_decoder(3)
    features = torch.randn(2, 64, 6, 7, requires_grad=True)

    def grads() -> Any:
        return torch.autograd.grad(
            decoder(features, (25, 25)).square().sum(), [features, *decoder.parameters()]
        )

    assert all(torch.equal(a, b) for a, b in zip(grads(), grads(), strict=True))


def test_backward_keeps_only_the_inputs() -> None:
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 8, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = decoder(features, (64, 64))
    # Content, weights: nothing of HR size.
    assert max(t.numel() for t in saved) <= max(8 * 8 * 1024, 1024 * 576)
    out.sum().backward()


def test_use_backend_sets_and_restores() -> None:
    before = backends.requested()
    with use_backend("eager"):
        assert backends.requested() == "eager"
        with pytest.raises(ZeroDivisionError), use_backend("auto"):
            raise ZeroDivisionError
        assert backends.requested() == "eager"
    assert backends.requested() == before
    use_backend("eager")
    assert backends.requested() == "eager"


def test_use_backend_holds_in_its_own_thread() -> None:
    seen = []
    with use_backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(backends.requested()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("call", ["decode", "conv3x3"])
def test_tensors_on_two_devices_are_refused_before_a_kernel_sees_an_address(call: str) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    decoder.K[1][0].weight = torch.nn.Parameter(decoder.K[1][0].weight.to("meta"))
    grad = call == "decode"
    with torch.set_grad_enabled(grad), pytest.raises((ValueError, RuntimeError), match="meta"):
        decoder(torch.randn(1, 8, 4, 4), (8, 8))


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(BackendError, match="choose one of auto"):
        use_backend("abacus")
    with pytest.raises(BackendError, match="choose one of auto"):
        make_decoder(3)(torch.randn(1, 64, 2, 2), (4, 4), backend="abacus")


def fake_backend(unavailable: Any = None, unsupported: Any = None) -> Any:
    return SimpleNamespace(
        unavailable=lambda: unavailable,
        unsupported=lambda problem, source: unsupported,
        DEVICES=("cpu",),
    )


def test_auto_falls_back_with_one_log_line_and_a_named_backend_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager = backends.load("eager")
    broken = fake_backend(unavailable="it was not compiled: install a C++ compiler")
    monkeypatch.setattr(backends, "load", lambda name: eager if name == "eager" else broken)
    monkeypatch.setattr(backends, "_warned", set())
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 2, 2)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        decoder(features, (4, 4), backend="auto")
        decoder(features, (4, 4), backend="auto")
        with pytest.raises(BackendError, match="install a C\\+\\+ compiler"):
            decoder(features, (4, 4), backend="cpu")
    assert [r.getMessage().count("install a C++ compiler") for r in caplog.records] == [1]


def test_auto_falls_back_silently_where_a_backend_does_not_apply(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager = backends.load("eager")
    limited = fake_backend(unsupported="float64 is not supported")
    monkeypatch.setattr(backends, "load", lambda name: eager if name == "eager" else limited)
    decoder = make_decoder(3)
    features = torch.randn(1, 64, 2, 2)
    with torch.no_grad():
        # auto's projection is still the CPU's, which sums in another order
        torch.testing.assert_close(
            decoder(features, (4, 4), backend="auto"), decoder(features, (4, 4), backend="eager")
        )
        with pytest.raises(BackendError, match="float64"):
            decoder(features, (4, 4), backend="cpu")
    assert not caplog.records


def test_backend_table_names_every_backend() -> None:
    rows = {row["backend"]: row for row in backends.table()}
    assert list(rows) == list(backends.NAMES)
    assert rows["eager"]["available"] == "yes"


def test_auto_considers_only_measured_backends() -> None:
    # Triton and CUDA have not yet run on hardware, int8 not on the CPUs that it is fastest on.
    by_name = {"triton", "triton_int8", "cuda", "cuda_int8", "int8"}
    assert set(backends.ORDER) == set(backends.NAMES) - by_name
    for name in ("triton_int8", "cuda_int8"):
        assert "not yet run on hardware" in backends.load(name).NOTE
    assert backends.load("triton").unavailable()  # in this process: no CUDA device, no interpreter
    with pytest.raises(BackendError, match=r"CUDA device|not installed"):
        use_backend("triton")
