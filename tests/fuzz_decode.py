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
from dataclasses import dataclass
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


@dataclass
class Drawn:
    """A random problem; ``yx`` has the pixels that are decoded if ``points``."""

    mode: int
    decoder: ImplicitDecoder
    features: Tensor
    size: tuple[int, int]
    window: tuple[int, int, int, int] | None
    points: bool
    yx: Tensor
    isa: str
    threads: int
    bf16: bool
    int8: bool
    gradients: bool

    def __str__(self) -> str:
        batch, channels, h, w = self.features.shape
        decoder = self.decoder
        return (
            f"mode {self.mode} init_q {decoder.init_q} width {decoder.width} "
            f"layers {len(decoder.K)} {channels}x{h}x{w} -> {self.size} batch {batch} "
            f"window {self.window} points {self.points} {self.isa} threads {self.threads} "
            f"bf16 {self.bf16} int8 {self.int8}"
        )

    @property
    def coarse(self) -> bool:
        """Whether it is judged by plain PyTorch's bfloat16."""
        return self.bf16 or self.int8

    def definition(self, dtype: torch.dtype) -> Tensor:
        if not self.points:
            return oracle(self.decoder, self.features, self.size, self.window, dtype)
        whole = oracle(self.decoder, self.features, self.size, dtype=dtype)
        return torch.stack([rgb[:, y, x].T for rgb, (y, x) in zip(whole, self.axes(), strict=True)])

    def decode(self, backend: str, decoder: ImplicitDecoder | None = None) -> Tensor:
        decoder = decoder or self.decoder
        source = self.features.to(decoder.last_layer.weight.dtype)
        if self.points:
            return decoder.sample_pixels(source, self.yx, self.size, backend=backend)
        result: Tensor = decoder(source, self.size, window=self.window, backend=backend)
        return result

    def plain(self) -> Tensor:
        """What the kernels may be as wrong as, a few times."""
        if self.int8:
            return self.decode("eager", copy.deepcopy(self.decoder).bfloat16())
        return self.decode("eager") if self.bf16 else self.definition(torch.float32)

    def smooth(self, kinks: Kinks) -> Tensor:
        """Where no relu is near its kink, of the shape of the output but for its channels."""
        mask = ~kinks.near(self.mode == 4)  # [B, rows, columns]
        if not self.points:
            return cut(mask, self.window, self.size, self.mode)[:, None]
        picked = [each[y, x] for each, (y, x) in zip(mask, self.axes(), strict=True)]
        return torch.stack(picked)[..., None]

    def axes(self) -> list[tuple[Tensor, Tensor]]:
        """(rows, columns) of each image's points."""
        return [(points[:, 0], points[:, 1]) for points in self.yx]


def draw(seed: int) -> Drawn:
    """One random problem, the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    mode = rng.randint(1, 4)
    init_q = rng.random() < 0.5
    channels = rng.choice([1, 2, 5, 8, 19])
    decoder = make_decoder(mode, init_q, rng.choice([32, 64, 96]), channels, rng.randint(2, 5))
    h, w, height, width = random_geometry(rng, mode)
    batch = rng.randint(1, 3)
    features = torch.randn(batch, channels, h, w)
    # Features of any strides are taken, as encoders in another memory format make them.
    if rng.random() < 0.3:
        features = features.transpose(2, 3).contiguous().transpose(2, 3)
    window = None
    if rng.random() < 0.5:
        y0 = rng.randrange(height)
        x0 = rng.randrange(width)
        window = (y0, rng.randint(y0 + 1, height), x0, rng.randint(x0 + 1, width))
    gradients = seed % 3 == 0
    points = mode != 4 and rng.random() < 0.3
    bf16 = rng.random() < 0.3
    int8 = not bf16 and not gradients and rng.random() < 0.4
    sets = list(cpu.int8_instruction_sets()) if int8 else cpu._kernels().instruction_sets()
    isa = rng.choice(sets)
    threads = rng.randint(1, 3)
    if bf16:
        if gradients:
            keep_off_kinks(decoder)
        decoder = decoder.bfloat16()
        features = features.bfloat16()
    count = rng.choice([1, 7, h * w + 1, 200])
    yx = torch.stack([torch.randint(n, (batch, count)) for n in (height, width)], dim=-1)
    features.requires_grad_(gradients)
    size = (height, width)
    return Drawn(
        mode, decoder, features, size, window, points, yx, isa, threads, bf16, int8, gradients
    )


def miss(seed: int) -> str | None:
    """One random problem: None if the kernels are as exact as they must be, else what was wrong."""
    problem = draw(seed)
    floor = BF16_FLOOR if problem.coarse else FLOOR
    kinks = Kinks(BF16_KINK if problem.coarse else KINK)
    torch.set_num_threads(1)
    with torch.set_grad_enabled(problem.gradients):
        plain = problem.plain()
        with kinks:
            exact = problem.definition(torch.float64)
        # Only the kernels under test see other threads and another instruction set.
        torch.set_num_threads(problem.threads)
        os.environ["DIINN_FAST_CPU_ISA"] = problem.isa
        got = problem.decode("int8" if problem.int8 else "cpu")
    if reason := wrong(got, plain, exact, floor):
        return f"values {reason}; {problem}"
    if problem.gradients and (reason := wrong_gradient(problem, got, plain, exact, floor, kinks)):
        return f"{reason}; {problem}"
    return None


def wrong_gradient(
    problem: Drawn, got: Tensor, plain: Tensor, exact: Tensor, floor: float, kinks: Kinks
) -> str | None:
    """Which gradient is not as exact as it must be, of queries where relu is smooth."""
    inputs = [problem.features, *problem.decoder.parameters()]
    grad = torch.randn_like(got) * problem.smooth(kinks)
    ours = torch.autograd.grad(got, inputs, grad)
    torch.set_num_threads(1)
    kept = torch.autograd.grad(plain, inputs, grad)
    want = torch.autograd.grad(exact, inputs, grad.double(), retain_graph=True)
    # A gradient may be a small rest of large terms: other signs show how large they are.
    signs = [grad.double() * (2 * torch.randint(2, grad.shape) - 1) for _ in range(3)]
    others = [torch.autograd.grad(exact, inputs, g, retain_graph=True) for g in signs]
    for n, (a, b, c) in enumerate(zip(ours, kept, want, strict=True)):
        scale = max(float(other[n].abs().max()) for other in others)
        if reason := wrong(a, b, c, floor, scale):
            return f"gradient {n} {reason}"
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
