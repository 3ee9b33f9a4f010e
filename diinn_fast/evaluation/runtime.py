"""The paper's runtime table: a 48x48 image to RGB by every method with the same encoder, at several
scales.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diinn_fast import reference
from diinn_fast.baselines import LIIF, MetaSR, bicubic
from diinn_fast.encoders import make_encoder
from diinn_fast.geometry import size_for_scale
from diinn_fast.graphed import Graphed
from diinn_fast.model import DIINN

LR_SIZE = (48, 48)
BUDGET = 4.0
LEAST = 3
MOST = 30
"""Seconds for each method at each scale, and how many rounds that is at least and at most."""

Timings = dict[tuple[str, float], list[float]]
"""Seconds of every round, by method and scale."""


def methods(
    encoder_name: str, device: torch.device
) -> dict[str, Callable[[Tensor, tuple[int, int]], Tensor]]:
    """Every method by its title; all share one encoder with random weights, which do not matter for
    the time.
    """
    torch.manual_seed(0)
    encoder = make_encoder(encoder_name).to(device).eval()
    model = DIINN(encoder=encoder).to(device).eval()
    liif = LIIF(encoder).to(device).eval()
    metasr = MetaSR(encoder).to(device).eval()
    assert isinstance(model, DIINN)
    weights = {k: v for k, v in model.decoder.state_dict().items()}
    # The encoder alone tells how much of each time is the decoder's.
    found: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
        "bicubic": bicubic,
        f"{encoder_name} alone": lambda x, size: encoder(x),
        "Meta-SR": lambda x, size: metasr(x, size),
        "LIIF": lambda x, size: liif(x, size),
        "DIINN, official formulation": lambda x, size: reference.decode(
            weights, encoder(x), size, 3
        ),
        "DIINN, diinn_fast": lambda x, size: model(x, size),
    }
    if device.type == "cuda":
        found["DIINN, diinn_fast, Graphed (float16)"] = Graphed(model)
    return found


@torch.inference_mode()
def measure(
    encoder: str, scales: Sequence[float], device: torch.device, quiet: bool = False
) -> Timings:
    """Time all methods round by round, so that whatever slows the machine down hits all alike."""
    calls = methods(encoder, device)
    x = torch.rand(1, 3, *LR_SIZE, device=device) * 2 - 1
    timings: Timings = {}
    for scale in tqdm(scales, unit="scale", disable=True if quiet else None):
        size = size_for_scale(LR_SIZE, scale)
        first = {name: _seconds(call, x, size, device) for name, call in calls.items()}
        rounds = {name: max(LEAST, min(MOST, int(BUDGET / t))) for name, t in first.items()}
        for n in range(max(rounds.values())):
            for name, call in calls.items():
                if n < rounds[name]:
                    timings.setdefault((name, scale), []).append(_seconds(call, x, size, device))
    return timings


def _seconds(
    call: Callable[..., Any], x: Tensor, size: tuple[int, int], device: torch.device
) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call(x, size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def markdown(encoder: str, timings: Timings, device: torch.device) -> str:
    """The table, with what was measured and where above it."""
    from diinn_fast.evaluation.report import table

    scales = list(dict.fromkeys(scale for _, scale in timings))
    names = list(dict.fromkeys(name for name, _ in timings))
    # A row per method, a column per scale.
    body = []
    for name in names:
        line = [name]
        for scale in scales:
            q1, median, q3 = quartiles(timings[name, scale])
            line.append(f"{_ms(median)} ({_ms(q1)} .. {_ms(q3)})")
        body.append(line)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    h, w = LR_SIZE
    return (
        f"# Runtime: {h}x{w} LR image to RGB, encoder {encoder}\n\n"
        f"Milliseconds, median (quartiles), float32 unless said, {where}, torch "
        f"{torch.__version__}. "
        "Methods share the encoder and take turns.\n\n"
        + table(["", *(f"x{s:g}" for s in scales)], body)
        + "\n"
    )


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile)."""
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return q1, median, q3


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def write_csv(timings: Timings, path: Path) -> None:
    """A line per method, scale and round."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "scale", "round", "seconds"])
        for (name, scale), samples in timings.items():
            writer.writerows([name, f"{scale:g}", n, f"{s:.6f}"] for n, s in enumerate(samples))
