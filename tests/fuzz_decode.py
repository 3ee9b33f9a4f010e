"""Random small decodes on the CPU kernels against the definition in float64, for some seconds or a
number of problems.

    python -m tests.fuzz_decode --seconds 60
    python -m tests.fuzz_decode --problems 10000 --seed 7

Draws mode, init_q, widths, layers, channels, sizes, batch, window or points, instruction set and
threads; judges values, and in every third problem the gradients (of queries where relu is smooth),
by plain PyTorch's own float32 error; some are in bfloat16 or int8, judged by plain PyTorch's
bfloat16.
Prints the seed; a failure prints the problem's own seed, which repeats it alone
(``--problems 1 --seed S``). Exit code 1 on a miss.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diinn_fast import ImplicitDecoder
from diinn_fast.backends import cpu
from tests.helpers.problems import make_decoder, oracle, random_geometry

SLACK = 4.0
FLOOR = 4e-6
"""A small output's error may be this many times plain PyTorch's (it is a matter of luck), or FLOOR
of its largest.
"""
BF16_FLOOR = 2e-2
KINK = 1e-5
BF16_KINK = 0.05
"""Part of their root mean square below which relu's arguments count as near zero."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="stop after this time (default 60)"
    )
    parser.add_argument("--problems", type=int, help="do this many problems instead")
    parser.add_argument("--seed", type=int, help="of the first problem (default: from the clock)")
    arguments = parser.parse_args()
    if reason := cpu.unavailable():
        print(f"the CPU kernels cannot be tested: {reason}", file=sys.stderr)
        return 1
    seed = int(time.time() * 1000) % 2**31 if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    start = time.monotonic()
    done = 0
    misses = 0
    while (
        done < arguments.problems
        if arguments.problems
        else time.monotonic() - start < arguments.seconds
    ):
        if problem := miss(seed + done):
            misses += 1
            print(f"MISS with seed {seed + done}: {problem}", flush=True)
        done += 1
    print(f"{done} problems, {misses} misses, {time.monotonic() - start:.0f} s")
    return 1 if misses else 0


def miss(seed: int) -> str | None:
    """One random problem: None if the kernels are as exact as they must be, else what was wrong."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    mode = rng.randint(1, 4)
    init_q = rng.random() < 0.5
    channels = rng.choice([1, 2, 5, 8, 19])
    decoder = make_decoder(mode, init_q, rng.choice([32, 64, 96]), channels, rng.randint(2, 5))
    h, w, height, width = random_geometry(rng, mode)
    size = (height, width)
    batch = rng.randint(1, 3)
    gradients = seed % 3 == 0
    features = torch.randn(batch, channels, h, w, requires_grad=gradients)
    if rng.random() < 0.3:
        features = (
            features.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(gradients)
        )
    window = None
    if rng.random() < 0.5:
        y0 = rng.randrange(height)
        x0 = rng.randrange(width)
        window = (y0, rng.randint(y0 + 1, height), x0, rng.randint(x0 + 1, width))
    points = mode != 4 and rng.random() < 0.3
    isa = rng.choice(cpu._kernels().instruction_sets())
    threads = rng.randint(1, 3)
    bf16 = rng.random() < 0.3
    if bf16:
        if gradients:
            keep_off_kinks(decoder)
        decoder = decoder.bfloat16()
        features = features.detach().bfloat16().requires_grad_(gradients)
    int8 = not bf16 and not gradients and rng.random() < 0.4
    if int8:
        isa = rng.choice(list(cpu.int8_instruction_sets()))
    text = (
        f"mode {mode} init_q {init_q} width {decoder.width} layers {len(decoder.K)} "
        f"{channels}x{h}x{w} -> {size}"
    )
    text += f" batch {batch} window {window} points {points} {isa} threads {threads}"
    text += f" bf16 {bf16} int8 {int8}"

    count = rng.choice([1, 7, h * w + 1, 200])
    yx = torch.stack([torch.randint(n, (batch, count)) for n in size], dim=-1)
    inputs = [features, *decoder.parameters()]

    def definition(dtype: torch.dtype) -> Tensor:
        if not points:
            return oracle(decoder, features, size, window, dtype)
        whole = oracle(decoder, features, size, dtype=dtype)
        return torch.stack([whole[b][:, yx[b, :, 0], yx[b, :, 1]].T for b in range(batch)])

    def decode(backend: str, decoder: ImplicitDecoder = decoder) -> Tensor:
        source = features.to(decoder.last_layer.weight.dtype)
        if points:
            return decoder.sample_pixels(source, yx, size, backend=backend)
        result: Tensor = decoder(source, size, window=window, backend=backend)
        return result

    torch.set_num_threads(1)
    coarse = bf16 or int8
    floor, kinks = (BF16_FLOOR, Kinks(BF16_KINK)) if coarse else (FLOOR, Kinks(KINK))
    with torch.set_grad_enabled(gradients):
        if coarse:
            plain = decode("eager", copy.deepcopy(decoder).bfloat16() if int8 else decoder)
        else:
            plain = definition(torch.float32)
        with kinks:
            exact = definition(torch.float64)
    torch.set_num_threads(threads)
    os.environ["DIINN_FAST_CPU_ISA"] = isa
    with torch.set_grad_enabled(gradients):
        got = decode("int8" if int8 else "cpu")
    if reason := wrong(got, plain, exact, floor):
        return f"values {reason}; {text}"
    if gradients:
        smooth = ~kinks.near(mode == 4)  # [B, rows, columns]
        if points:
            smooth = torch.stack([smooth[b][yx[b, :, 0], yx[b, :, 1]] for b in range(batch)])[
                ..., None
            ]
        else:
            smooth = cut(smooth, window, size, mode)[:, None]
        grad = torch.randn_like(got) * smooth
        ours = torch.autograd.grad(got, inputs, grad)
        torch.set_num_threads(1)
        kept = torch.autograd.grad(plain, inputs, grad)
        want = torch.autograd.grad(exact, inputs, grad.double(), retain_graph=True)
        # A gradient may be a small rest of large terms: other signs show how large they are.
        signs = [grad.double() * (2 * torch.randint(2, grad.shape) - 1) for _ in range(3)]
        others = [torch.autograd.grad(exact, inputs, g, retain_graph=True) for g in signs]
        for n, (a, b, c) in enumerate(zip(ours, kept, want, strict=True)):
            if reason := wrong(
                a, b, c, floor, max(float(other[n].abs().max()) for other in others)
            ):
                return f"gradient {n} {reason}; {text}"
    return None


def keep_off_kinks(decoder: ImplicitDecoder) -> None:
    """Biases K so that its units are either on or off: bfloat16's rounding would decide too many
    others.
    """
    with torch.no_grad():
        for pair in decoder.K.children():
            layer = pair[0]
            layer.weight.mul_(0.25)
            layer.bias.copy_(2 * (2 * torch.randint(2, layer.bias.shape) - 1))


class Kinks(TorchFunctionMode):
    """Inside, notes the queries of which some relu's argument is so near zero that rounding decides
    its gradient.
    """

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part
        self.mask: Tensor | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.relu:
            x = args[0].detach()
            near = (x.abs() < self.part * x.square().mean().sqrt()).any(dim=1)
            self.mask = near if self.mask is None else self.mask | near
        return function(*args, **(kwargs or {}))

    def near(self, neighbours: bool) -> Tensor:
        """[B, rows, columns]; ``neighbours``: also queries beside one (mode 4's last layer)."""
        assert self.mask is not None
        if not neighbours:
            return self.mask
        return F.max_pool2d(self.mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def cut(
    mask: Tensor, window: tuple[int, int, int, int] | None, size: tuple[int, int], mode: int
) -> Tensor:
    """The window's part of a mask of all queries that the definition evaluates: mode 4 takes one
    more around.
    """
    if window is None or mode != 4:
        return mask
    y0, y1, x0, x1 = window
    top = min(y0, 1)
    left = min(x0, 1)
    return mask[:, top : top + y1 - y0, left : left + x1 - x0]


def wrong(
    got: Tensor, plain: Tensor, exact: Tensor, floor: float, scale: float = 0.0
) -> str | None:
    if got.shape != exact.shape:
        return f"shape {list(got.shape)} instead of {list(exact.shape)}"
    error = (got - exact).abs().max().item()
    limit = SLACK * (plain - exact).abs().max().item()
    limit += floor * max(scale, exact.abs().max().item())
    return None if error <= limit else f"error {error:.1e} exceeds {limit:.1e}"


if __name__ == "__main__":
    sys.exit(main())
