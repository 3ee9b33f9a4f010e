"""The kernels of one backend by themselves: are they right, are their bits always the same, how
fast are they, and what does a launch cost the CPU.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import machine
from bench.cases import Case
from bench.gpu_book import Book
from bench.gpu_peers import Peer, build, refused, supports
from bench.timing import summary
from diinn_fast import ImplicitDecoder, backends

FORMS = {"content": (3, (13, 18)), "modulation": (1, (13, 18)), "direct": (3, (2, 3))}
"""A mode and a size in HR pixels of 4x5 LR pixels that a decoder does in this form."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

VALUES = 3.0
GRADIENTS = 10.0
"""How many times plain PyTorch's error ours may have: gradients differ by whole terms where
rounding takes relu's argument across zero. Here only what is plainly wrong has to show: the checks
of the device are stricter."""


class Wrong(RuntimeError):
    """A backend's kernels are not to be used."""


# -- right or wrong --------------------------------------------------------------------------------


def prepare(book: Book, backend: str) -> int:
    """Compile what a backend has and compare it with the definition: every form and dtype, forward,
    and the gradients.
    """
    if reason := backends.load(backend).unavailable():
        raise Wrong(f"backend {backend!r} cannot run: {reason}")
    # float32 means float32 here, of both libraries.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    draw = torch.Generator().manual_seed(0)
    for form, (mode, size) in FORMS.items():
        decoder = ImplicitDecoder(64, mode=mode).to(book.device)
        features = (torch.rand(1, 64, 4, 5, generator=draw) * 2 - 1).to(book.device)
        for dtype in DTYPES[: 1 if book.dry else None]:
            if supports(backend, dtype, book.device, form):
                inputs = decoder.to(dtype), features.to(dtype)
                compare(backend, form, *inputs, size)
                decoder.float()
    print(f"backend {backend} agrees with the definition", flush=True)
    return 0


def compare(
    backend: str, form: str, decoder: ImplicitDecoder, features: Tensor, size: tuple[int, int]
) -> None:
    """Raise Wrong if a backend's values or gradients, if it has any, are much further from
    float64's than plain PyTorch's of the same dtype, or if a second run has other bits.
    """
    integers = backends.load(backend).INTEGERS
    values = partial(values_of, size=size, gradients=not integers)
    ours = values(decoder, features, backend=backend)
    again = values(decoder, features, backend=backend)
    dtype = features.dtype
    if reason := refused(backend, dtype):
        raise Wrong(f"plain PyTorch ran instead: {reason}")
    # Integers are as coarse as bfloat16.
    judge = torch.bfloat16 if integers else dtype
    plain = values(copy.deepcopy(decoder).to(judge), features.to(judge), backend="eager")
    exact = values(copy.deepcopy(decoder).double(), features.double(), backend="eager")
    # The first tensor is RGB, the others are gradients.
    factor = VALUES
    for a, b, c, d in zip(ours, again, plain, exact, strict=True):
        what = f"{form}, {dtype}, {list(a.shape)}"
        error = float((a - d).norm() / d.norm())
        allowed = factor * (float((c - d).norm() / d.norm()) + torch.finfo(judge).eps)
        factor = GRADIENTS
        print(f"{what}: error {error:.2e}, allowed {allowed:.2e}", flush=True)
        if not error <= allowed:
            raise Wrong(f"{what}: error {error:.2e} is above {allowed:.2e}")
        if not torch.equal(a, b):
            raise Wrong(f"{what}: two runs differ")


def values_of(
    decoder: ImplicitDecoder,
    features: Tensor,
    *,
    size: tuple[int, int],
    backend: str,
    gradients: bool,
) -> list[Tensor]:
    """RGB and all gradients, in float64."""
    if not gradients:
        with torch.no_grad():
            return [decoder(features, size, backend=backend).double()]
    features = features.detach().requires_grad_()
    inputs = [features, *decoder.parameters()]
    out = decoder(features, size, backend=backend)
    grad = torch.linspace(-1, 1, out.numel()).view_as(out).to(out)
    return [v.detach().double() for v in (out, *torch.autograd.grad(out, inputs, grad))]


# -- quick timings ---------------------------------------------------------------------------------


def quick(book: Book, backend: str, variant: str) -> int:
    """Bits of many runs, the kernel alone beside the device's matrix product, the CPU's time for a
    launch and for a training step; to FOLDER/run/quick.json at once.
    """
    runs = 2 if book.dry else 100
    found: dict[str, Any] = {}

    def say(name: str, value: Any) -> None:
        found[name] = value
        book.add_values("quick", {variant: found})
        print(f"{variant}: {name} {value}", flush=True)

    (case,) = book.cases([Case("decode", (512, 512), 4)])
    peer = Peer(backend, "float16")
    kernel = kernel_of(case, peer)
    # Bits first: the time of wrong numbers says nothing.
    first = kernel()
    say("runs with the same bits", sum(torch.equal(kernel(), first) for _ in range(runs)))
    say("runs", runs)
    # The kernel alone, beside the device's own product in the same minute.
    rates = machine.rates(case.device)
    samples = [machine.seconds(kernel, case.device) for _ in range(min(runs, 30))]
    say("kernel alone", summary(samples))
    product, flops = rates["torch.mm"]
    rate = flops / summary([machine.seconds(product, case.device) for _ in range(runs)])["median"]
    useful = 2 * 393_216 * case.queries  # products per query, in operations
    say("of torch.mm", useful / summary(samples)["median"] / rate)
    # What the CPU has to do, of which small decodes and training steps consist.
    (small,) = book.cases([Case("decode", (48, 48), 2)])
    calls = {"a decode": build(small, peer), "a launch": kernel_of(small, peer)}
    (step,) = book.cases([Case("training", (48, 48), 4, batch=16)])
    if not backends.load(backend).INTEGERS:
        calls["a training step"] = build(step, peer)
    for name, call in calls.items():
        call()
        say(f"CPU seconds of {name}", host_seconds(call, case.device, 2 if book.dry else 20))
    return 0


def kernel_of(case: Case, peer: Peer) -> Callable[[], Tensor]:
    """A backend's forward alone, with the arguments of a decode."""
    arguments = seen_by_eager(build(case, Peer("eager", peer.precision)))
    forward = backends.load(peer.form).forward

    def call() -> Tensor:
        with torch.no_grad():
            result: Tensor = forward(*arguments)
            return result

    return call


class _Seen(Exception):
    """Carries the arguments of a forward."""


def seen_by_eager(call: Callable[[], object]) -> Sequence[Any]:
    """The arguments with which a call reaches the backend ``eager``, which is not run."""

    def stop(*arguments: Any) -> Tensor:
        raise _Seen(arguments)

    with mock.patch.object(backends.load("eager"), "forward", stop):
        try:
            call()
        except _Seen as seen:
            (arguments,) = seen.args
            return tuple(arguments)
    raise AssertionError("the call did not reach the backend")


def host_seconds(call: Callable[[], object], device: str, runs: int) -> float:
    """The CPU's time for a call, while the device's is hidden or small."""
    synchronize(device)
    samples = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
        synchronize(device)
    return float(summary(samples)["median"])


def synchronize(device: str) -> None:
    """Wait for the device, if it works on its own."""
    if device == "cuda":
        torch.cuda.synchronize()


def profile(book: Book, backend: str) -> int:
    """A few calls for a profiler to look at."""
    cases = [Case("decode", (512, 512), 4), Case("training", (48, 48), 4, batch=16)]
    for case in book.cases(cases[: 1 if backends.load(backend).INTEGERS else None]):
        call = build(case, Peer(backend, "float16"))
        for _ in range(2):
            call()
        synchronize(book.device)
    return 0
