"""PSNR against scale: a panel per set, and below it what each model gains over bicubic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diinn_fast.evaluation.results import Mean, Row, means

COLOURS = ("#0b5fa5", "#d1495b", "#2f9e6e", "#8a5cc2", "#e08e0b", "#5b6770")
MARKERS = "osD^vP"
BICUBIC = "#8f8f8f"


def missing() -> str | None:
    """What has to be installed for plots, or None."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "plots need matplotlib, and are left out: pip install matplotlib"
    return None


def plot_scales(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``psnr-<protocol>.png`` for every protocol with two scales or more; returns what was
    written.
    """
    found = means(rows)
    written = []
    for protocol in dict.fromkeys(m.protocol for m in found):
        chosen = [
            m
            for m in found
            if m.protocol == protocol and math.isfinite(m.scores.get("psnr", math.nan))
        ]
        # One scale makes no curve.
        if len({m.scale for m in chosen}) > 1:
            path = folder / f"psnr-{protocol}.png"
            _plot(chosen, protocol, path)
            written.append(path)
    return written


def _plot(found: Sequence[Mean], protocol: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(m.set for m in found))
    models = list(dict.fromkeys(m.model for m in found))
    gains = "bicubic" in models and len(models) > 1
    figure = Figure(
        figsize=(max(5.0, 3.9 * len(sets)) + 0.4, 6.2 if gains else 4.0),
        dpi=150,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    # Widths follow the number of sets, so that panels keep their shape.
    ratios = [1.5, 1] if gains else [1]
    axes: Any = figure.subplots(
        len(ratios), len(sets), sharex="col", squeeze=False, height_ratios=ratios
    )
    for column, name in enumerate(sets):
        curves = {model: _curve(found, name, model) for model in models}
        _scores(axes[0][column], curves, models)
        axes[0][column].set_title(name, fontsize=11, fontweight="bold")
        # Differences between models are small beside those between scales: a second row.
        if gains:
            _gains(axes[1][column], curves, models)
        _style(axes[-1][column], sorted({s for curve in curves.values() for s in curve}))
    for axis in axes.flat:
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors="#444444")
    axes[0][0].set_ylabel("PSNR, dB")
    if gains:
        axes[1][0].set_ylabel("gain over bicubic, dB")
    axes[0][-1].legend(frameon=False, fontsize=9)
    figure.suptitle(f"Protocol {protocol}", fontsize=9, color="#666666", x=0.995, ha="right")
    figure.savefig(path)


Curves = dict[str, dict[float, float]]
"""Of each model, its PSNR by scale."""


def _scores(axis: Any, curves: Curves, models: Sequence[str]) -> None:
    for model, curve in curves.items():
        _line(axis, curve, model, models)


def _gains(axis: Any, curves: Curves, models: Sequence[str]) -> None:
    base = curves.get("bicubic", {})
    for model, curve in curves.items():
        if model != "bicubic":
            gain = {scale: v - base[scale] for scale, v in curve.items() if scale in base}
            _line(axis, gain, model, models)
    axis.axhline(0, color=BICUBIC, linewidth=1.2, linestyle="--")


def _curve(found: Sequence[Mean], name: str, model: str) -> dict[float, float]:
    values = {
        float(m.scale): m.scores["psnr"]
        for m in found
        if m.set == name and m.model == model and "psnr" in m.scores
    }
    return dict(sorted(values.items()))


def _line(axis: Any, curve: dict[float, float], model: str, models: Sequence[str]) -> None:
    learned = [m for m in models if m != "bicubic"]
    n = learned.index(model) if model in learned else 0
    style = (
        {"color": BICUBIC, "linestyle": "--", "marker": "x"}
        if model == "bicubic"
        else {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)]}
    )
    axis.plot(
        list(curve), list(curve.values()), label=model, linewidth=1.7, markersize=4.5, **style
    )


def _style(axis: Any, scales: Sequence[float]) -> None:
    """Scales on a logarithmic axis, so that x2 to x4 and x4 to x8 have the same room, with their
    own ticks.
    """
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(scales), [f"x{s:g}" for s in scales], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("scale")
