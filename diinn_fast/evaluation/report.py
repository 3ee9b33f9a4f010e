"""Markdown tables of mean scores: a row per set and scale, a column per model, the best in bold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from diinn_fast.evaluation.results import Mean, Row, means
from diinn_fast.metrics import METRICS, PROTOCOLS


def markdown(rows: Iterable[Row]) -> str:
    """All tables of some rows, by protocol and metric."""
    found = means(rows)
    parts = ["# Evaluation"]
    for protocol in dict.fromkeys(m.protocol for m in found):
        chosen = [m for m in found if m.protocol == protocol]
        parts += [f"## {protocol}", PROTOCOLS[protocol].describe() if protocol in PROTOCOLS else ""]
        for metric in METRICS:
            if any(metric in m.scores for m in chosen):
                parts += [f"### {METRICS[metric].title}", metric_table(chosen, metric)]
    return "\n\n".join(p for p in parts if p) + "\n"


def metric_table(found: Sequence[Mean], metric: str) -> str:
    """One metric of one protocol. A mean over fewer images than the row's other models is
    marked.
    """
    models = list(dict.fromkeys(m.model for m in found))
    by_place: dict[tuple[str, str], dict[str, Mean]] = {}
    for mean in found:
        by_place.setdefault((mean.set, mean.scale), {})[mean.model] = mean
    # Sets in the order in which they were measured, scales in their own.
    sets = list(dict.fromkeys(m.set for m in found))
    body = []
    for name, scale in sorted(by_place, key=lambda place: (sets.index(place[0]), float(place[1]))):
        line = by_place[name, scale]
        # A mean over fewer images is no rival of the others.
        images = max(m.images for m in line.values())
        values = [line[m].scores.get(metric) if m in line else None for m in models]
        body.append([f"{name} ({images})", f"x{scale}", *cells(values, metric)])
        for n, model in enumerate(models):
            if model in line and line[model].images < images:
                body[-1][n + 2] += f" ({line[model].images} images)"
    return table(["set (images)", "scale", *models], body)


def cells(values: Sequence[float | None], metric: str) -> list[str]:
    """Values as text, the best (as shown) in bold where there are two or more."""
    digits = METRICS[metric].digits
    shown = [None if v is None or math.isnan(v) else f"{v:.{digits}f}" for v in values]
    defined = [float(v) for v in shown if v is not None]
    best = METRICS[metric].best(defined) if len(defined) > 1 else None
    return ["-" if v is None else f"**{v}**" if float(v) == best else v for v in shown]


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text too; numbers to the right."""
    lines = [list(header), *(list(line) for line in body)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(line[1:], widths[1:], strict=True))]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in aligned)
