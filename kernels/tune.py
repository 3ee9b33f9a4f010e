"""Measure which tile is fastest here, and store it for ``tuned``:
``python -m diinn_fast.kernels.tune`` (a minute).

Only tiles of the same summation order are tried, and one whose results differ in a single bit from
the default's is left out: tuning never changes a picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diinn_fast.formulation import FORMS
from diinn_fast.geometry import Window
from diinn_fast.problem import Problem, query_weights

from . import tiles, tuned
from .launch import Network
from .launch_quantised import QuantisedNetwork

DTYPES = (torch.float16, torch.bfloat16, torch.int8, torch.float32)
NAMES = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)
GAIN = 1.02
"""How much faster than the default a tile must be to replace it: less is noise."""

Result = dict[str, Any]


def work(
    form: str, dtype: torch.dtype, device: torch.device, lr: int, scale: int
) -> tuple[Problem, Tensor, list[Tensor]]:
    """A decode of the published size (64 features, 4 layers of 256) with random numbers; of int8
    the content is float16.
    """
    dtype = torch.float16 if dtype == torch.int8 else dtype
    draw = torch.Generator().manual_seed(0)
    width = 256
    layers = 4
    mode = {"modulation": 1}.get(form, 3)
    size = lr * scale

    def random(*shape: int, to: torch.dtype = torch.float32) -> Tensor:
        bound = (3 / shape[-1]) ** 0.5 if len(shape) > 1 else 0.1
        return ((torch.rand(shape, generator=draw) * 2 - 1) * bound).to(device, to)

    # Values of such a size that every branch of the network matters.
    rows = width if form == "modulation" else 2 * width
    weights = [
        random(width, 3),
        random(width),
        random(layers - 1, rows, width, to=dtype),
        random(layers - 1, width),
    ]
    weights += [random(3, width, to=dtype), random(3)]
    if form == "direct":
        source = (torch.rand(1, lr + 2, lr + 2, 64, generator=draw) * 2 - 1).to(device, dtype)
        weights += [random(layers * width, 576, to=dtype), random(layers * width)]
    else:
        source = (torch.rand(1, lr, lr, layers * width, generator=draw) * 2 - 1).to(device, dtype)
    window = Window(0, size, 0, size)
    return (
        Problem(form, mode, (lr, lr), (0, 0), (size, size), window, None, None, 0),
        source,
        weights,
    )


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time of one call, on a GPU measured by its own clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    # The device's own clock: the CPU is ahead of it.
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def compare(
    form: str,
    dtype: torch.dtype,
    keep: bool,
    device: torch.device,
    lr: int,
    scale: int,
    rounds: int,
) -> Result:
    """The best tile, the default, and what was tried:
    ``{tile: milliseconds, or why it is out}``.
    """
    problem, source, weights = work(form, dtype, device, lr, scale)
    width = query_weights(weights).width
    choices = tiles.candidates(form, tuned.architecture(device), dtype, width, keep)
    calls: dict[tiles.Tile, Callable[[], Any]] = {}
    kind = QuantisedNetwork if dtype == torch.int8 else Network
    for tile in choices:
        network = kind(problem, source, weights, tile)

        def call(network: Network = network) -> tuple[Tensor, ...]:
            return network.recompute(problem, slice(0, 1)) if keep else (network.forward(problem),)

        calls[tile] = call
    # Only tiles that run here and change no bit are timed.
    outcome: dict[tiles.Tile, str | float] = dict(_faults(calls))
    right = {tile: call for tile, call in calls.items() if tile not in outcome}
    # In turn, so that all see the same clock and temperature.
    samples: dict[tiles.Tile, list[float]] = {tile: [] for tile in right}
    for _ in range(rounds):
        for tile, timed in right.items():
            samples[tile].append(seconds(timed, device))
    times = {tile: 1e3 * statistics.median(values) for tile, values in samples.items() if values}
    outcome |= times
    best = min(times, key=lambda tile: times[tile], default=choices[0])
    if choices[0] in times and times[choices[0]] < GAIN * times[best]:
        best = choices[0]
    return {"best": best, "default": choices[0], "tried": outcome}


def _faults(calls: dict[tiles.Tile, Callable[[], Any]]) -> dict[tiles.Tile, str]:
    """Why tiles are out: they do not run, or not with the bits of the first that does."""
    faults: dict[tiles.Tile, str] = {}
    reference: tuple[Tensor, ...] | None = None
    for tile, call in calls.items():
        try:
            result = call()
        # More shared memory than the device has, or a compiler's failure.
        except Exception as error:
            faults[tile] = (str(error).splitlines() or [type(error).__name__])[0][:100]
            continue
        if reference is None:
            reference = result
        if not all(torch.equal(a, b) for a, b in zip(result, reference, strict=True)):
            faults[tile] = "other results than the default"
    return faults


def tune(
    device: torch.device,
    forms: Sequence[str] = FORMS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    budget: float = 60.0,
    lr: int = 128,
    scale: int = 4,
    rounds: int = 15,
) -> dict[str, Result]:
    """Tune kernels, the most used first, until ``budget`` seconds are spent; each result is stored
    at once.

    With no ``rounds`` everything is compiled, into Triton's cache on disk, and nothing is measured
    or stored.
    """
    found: dict[str, Result] = {}
    begin = time.perf_counter()
    # Inference before training: it is used most, should the time run out.
    for keep in (False, True):
        for form in forms:
            for dtype in dtypes:
                # Integers have neither gradients nor a direct form.
                if dtype == torch.int8 and (keep or form == "direct"):
                    continue
                if time.perf_counter() - begin > budget:
                    return found
                result = compare(form, dtype, keep, device, lr, scale, rounds)
                label = tuned.name(form, dtype, 256, keep)
                found[label] = result
                if rounds:
                    tuned.write(device, {label: result["best"]})
                print(describe(label, result), flush=True)
    return found


def describe(label: str, result: Result) -> str:
    """One line: the kernel, the best tile, and what every other one took."""
    parts = [
        f"{tuple(tile)} {v if isinstance(v, str) else f'{v:.3f} ms'}"
        for tile, v in result["tried"].items()
    ]
    return f"{label}: {tuple(result['best'])}; " + ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m diinn_fast.kernels.tune", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1 (cpu: the interpreter, to try this program)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="stop starting kernels after this long"
    )
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--dtypes", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--lr", type=int, default=128, help="LR height and width")
    parser.add_argument(
        "--rounds", type=int, default=15, help="timings of each tile; 0: compile only"
    )
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: tuning measures on the GPU that it is for", file=sys.stderr)
        return 2
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        device = torch.device("cuda", index)
        # Triton launches, and events count, on the current one.
        torch.cuda.set_device(device)
    dtypes = [getattr(torch, name) for name in options.dtypes]
    with torch.inference_mode():
        found = tune(
            device, options.forms, dtypes, options.seconds, options.lr, rounds=options.rounds
        )
    # Tiles are tuples, which JSON has no keys for.
    if options.json:
        plain = {
            label: {
                "best": r["best"],
                "default": r["default"],
                "tried": [[t, v] for t, v in r["tried"].items()],
            }
            for label, r in found.items()
        }
        with open(options.json, "w") as file:
            json.dump(plain, file, indent=1)
    if options.rounds:
        print(f"stored in {tuned.path(device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
