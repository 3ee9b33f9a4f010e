"""The command's work: from its options to files. ``TABLES`` are the tables of the DIINN paper."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from diinn_fast.encoders import ENCODERS, encoder_names
from diinn_fast.errors import DataError, UpscaleError
from diinn_fast.evaluation import plots, report
from diinn_fast.evaluation.candidates import (
    Candidate,
    describe,
    load_candidate,
    self_ensemble,
    unique,
)
from diinn_fast.evaluation.inputs import parse_inputs
from diinn_fast.evaluation.results import Results, Row, means, write_summary_csv
from diinn_fast.evaluation.run import DataSet, evaluate, open_set
from diinn_fast.evaluation.sheets import write_sheets
from diinn_fast.files import atomic_file
from diinn_fast.inference.devices import pick_device
from diinn_fast.metrics import PROTOCOLS, Protocol, missing_for


class Table(NamedTuple):
    """Scales of a table of the paper, and its protocol where that is not the data set's usual
    one.
    """

    scales: tuple[float, ...]
    protocol: str | None = None


TABLES = {
    "in-scale": Table((2, 3, 4)),
    "between": Table((2.5, 3.5)),
    "beyond": Table((6, 8, 10, 15), "diinn-test"),
    "runtime": Table((2, 3, 4, 6, 8)),
    "ablation": Table((2, 3, 4)),
}


def quality(options: argparse.Namespace) -> int:
    """Evaluate, then write ``summary.md``, ``summary.csv``, plots and crop sheets into
    ``options.out``.
    """
    if not options.data:
        raise UpscaleError("no data: give folders of HR images, as in --data Set5 Set14")
    preset = TABLES[options.table or "in-scale"]
    scales = _checked_scales(options.scales or preset.scales)
    device = pick_device(options.device)
    sets = _open_sets(options, preset)
    candidates = unique(_candidates(options, device))
    options.out.mkdir(parents=True, exist_ok=True)
    if problem := plots.missing():
        print(f"diinn-fast: {problem}", file=sys.stderr)
    results = Results(options.out)
    try:
        evaluate(candidates, sets, scales, results, device, options.quiet)
    finally:
        # An interrupted run has its tables too.
        rows = results.current({c.label: c.weights for c in candidates})
        text, written = _write_summary(candidates, rows, options)
    if not options.quiet:
        print(text)
    if not plots.missing():
        written += plots.plot_scales(rows, options.out)
    # Crops are most telling at the scale that most papers show.
    at = options.sheet_scale or (4.0 if 4.0 in scales else max(scales))
    for data in sets:
        written += write_sheets(candidates, data, at, options.sheets, results, options.out, device)
    if not options.quiet:
        print("\n".join(f"wrote {path}" for path in written))
    return 0


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    for scale in scales:
        if not (math.isfinite(scale) and scale >= 1):
            raise UpscaleError(
                f"scale {scale:g} cannot be measured: HR images are reduced, by factors of 1 and "
                "more"
            )
    return tuple(scales)


def _write_summary(
    candidates: list[Candidate], rows: list[Row], options: argparse.Namespace
) -> tuple[str, list[Path]]:
    """The tables as text, and the files that hold them."""
    text = report.markdown(rows)
    if options.table == "ablation":
        text += "\n" + ablation_table(candidates, rows)
    written = [options.out / "summary.md", options.out / "summary.csv"]
    with atomic_file(written[0], overwrite=True) as file:
        file.write(text.encode())
    write_summary_csv(rows, written[1])
    return text, written


def _candidates(options: argparse.Namespace, device: torch.device) -> list[Candidate]:
    """Those that were asked for; each model, if wanted, once more with its self-ensemble."""
    found = []
    for spec in _specs(options):
        candidate = load_candidate(spec, device)
        found.append(candidate)
        if options.self_ensemble and candidate.model is not None:
            found.append(self_ensemble(candidate))
    return found


def _open_sets(options: argparse.Namespace, preset: Table) -> list[DataSet]:
    sets = []
    for folder in options.data:
        usual = (
            "liif-div2k" if folder.resolve().name.upper().startswith("DIV2K") else "liif-benchmark"
        )
        protocol: Protocol = PROTOCOLS[options.protocol or preset.protocol or usual]
        metrics = tuple(options.metrics or protocol.metrics)
        # Missing packages are named before hours of measuring.
        if problem := missing_for(metrics):
            raise UpscaleError(problem)
        sets.append(open_set(folder, protocol, metrics))
    # Names of sets are keys of the results.
    names = [data.name for data in sets]
    if twice := [n for n in names if names.count(n) > 1]:
        raise DataError(f"two folders are called {twice[0]!r}: rename one of them")
    inputs = [parse_inputs(text) for text in dict.fromkeys(options.inputs)]
    return [data.suffering(each) for data in sets for each in inputs]


def _specs(options: argparse.Namespace) -> list[str]:
    if options.table != "ablation":
        models: list[str] = options.models
        return models
    if options.runs is None:
        raise UpscaleError(
            "no runs: give the folder that holds the ablation's runs, as in --runs ablation"
        )
    return [f"{label}={path}" for label, path in find_runs(options.runs)]


def find_runs(folder: Path) -> list[tuple[str, Path]]:
    """Name and model of every run in a folder: its ``last.ckpt``, or a model folder."""
    found = []
    for run in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        if (run / "last.ckpt").is_file():
            found.append((run.name, run / "last.ckpt"))
        elif (run / "config.json").is_file():
            found.append((run.name, run))
    if not found:
        raise UpscaleError(f"no runs in {folder}: expected folders with last.ckpt or config.json")
    return found


def ablation_table(candidates: list[Candidate], rows: list[Row]) -> str:
    """A row per run: its mode, its size, and its PSNR on every set and scale; the best in bold."""
    scores = {(m.set, m.scale, m.model): m.scores.get("psnr") for m in means(rows)}
    places = list(dict.fromkeys((s, scale) for s, scale, _ in scores))
    # Column by column, since the best of each is bold.
    columns = [
        report.cells([scores.get((*place, c.label)) for c in candidates], "psnr")
        for place in places
    ]
    body = []
    for n, c in enumerate(candidates):
        assert c.model is not None
        size = f"{sum(p.numel() for p in c.model.parameters()):,}"
        body.append([c.label, describe(c.model), size, *(column[n] for column in columns)])
    header = ["run", "network", "parameters", *(f"{name} x{scale}" for name, scale in places)]
    return "## Ablation: PSNR, dB\n\n" + report.table(header, body) + "\n"


def runtime(options: argparse.Namespace) -> int:
    """Write ``runtime-<encoder>.md`` and ``.csv``."""
    from diinn_fast.evaluation import runtime as measure

    device = pick_device(options.device)
    scales = tuple(options.scales or TABLES["runtime"].scales)
    if options.encoder not in ENCODERS:
        raise UpscaleError(
            f"encoder {options.encoder!r} is unknown: choose one of {encoder_names()}"
        )
    timings = measure.measure(options.encoder, scales, device, quiet=options.quiet)
    text = measure.markdown(options.encoder, timings, device)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"runtime-{options.encoder}"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    measure.write_csv(timings, stem.with_suffix(".csv"))
    if not options.quiet:
        print(text)
        print(f"wrote {stem}.md\nwrote {stem}.csv")
    return 0
