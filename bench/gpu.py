"""Everything that needs a GPU, in two commands of at most eight minutes each:

    python -m bench.gpu --first     # is every kernel right, and how fast is it alone
    python -m bench.gpu --second    # tiles; speed and memory beside plain PyTorch; a photograph

and, where there is more time, ``--compiled`` (peers of torch.compile), ``--tools`` (sanitizer and
profiler) and ``--more`` (more sizes). Without one of them the first two run, one after the other.

Every step is a process of its own, of one backend, with a time limit. A backend that is wrong,
hangs or dies is left out of everything later, also by the next command into the same folder, until
``--first`` looks at it anew. Results are written after every peer and merged with what is there:
tables, plots and a summary in bench/results/<device>/ (or --out), logs in its folder run/, and all
of it in results.tar after every stage. The exit code is 1 if a check failed.

Needs a CUDA build of torch, triton, pytest, and what diinn_fast imports; not that the package is
installed. Uses matplotlib, compute-sanitizer and ncu where they are. Where the files lie without
their history, the variable DIINN_FAST_COMMIT names the commit.

    python -m bench.gpu --first --only prepare quick    # steps whose names begin so
    python -m bench.gpu --device cpu --dry    # try this program without a GPU: tiny sizes, Triton's
    interpreter
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import gpu_promises, machine
from bench.gpu_plan import PARTS, plan
from bench.gpu_run import LeftOut, Outcome, ending_with_parent, pack, run_stage, tail

MINUTES = 8.0
"""Limit on a part."""
KEPT = 5.0
"""Seconds of it that are kept for the summary."""


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(arguments)
    options.run = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "no CUDA device; --device cpu --dry tries the program without one", file=sys.stderr
            )
            return 2
    name = machine.slug(options.device)
    folder = "build/gpu-dry" if options.dry else f"bench/results/{name}"
    out = Path(options.out or machine.ROOT / folder).resolve()
    (out / "run" / "logs").mkdir(parents=True, exist_ok=True)
    print(f"{name}: results in {out}", flush=True)
    parts = [part for part in PARTS if getattr(options, part)] or ["first", "second"]
    with ending_with_parent():
        outcomes = [outcome for part in parts for outcome in run_part(part, options, out)]
    print("\n" + summarise(outcomes, out, options))
    print(draw(out))
    print(f"all of it in {pack(out)}")
    return int(any(o.step.check and o.state != "ok" for o in outcomes))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with what follows from them."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for part, steps in PARTS.items():
        parser.add_argument(f"--{part}", action="store_true", help=steps.__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry", action="store_true", help="tiny sizes, a few checks")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STEP", help="steps whose names begin so"
    )
    parser.add_argument("--out", help="folder of the results (default: bench/results/<device>)")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="limit on each part; 0: none"
    )
    parser.add_argument(
        "--photos", nargs="+", default=[], help="photographs for the comparison in 8 bit"
    )
    return parser.parse_args(arguments)


def run_part(part: str, options: argparse.Namespace, out: Path) -> list[Outcome]:
    """Run a part, saying what becomes of each step as it ends, and why if it is not well."""
    left_out = LeftOut(out / "run")
    if part == "first":
        left_out.clear()
    end = time.monotonic() + 60 * options.minutes - KEPT if options.minutes else float("inf")
    workers = max(1, (os.cpu_count() or 2) - 1)
    outcomes = []
    for stage in plan(options, part, out):
        logs = out / "run" / "logs"
        for outcome in run_stage(stage, logs, left_out, environment_of(options), workers, end):
            outcomes.append(outcome)
            print(describe(outcome), flush=True)
        pack(out)
    return outcomes


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    """Environment of the steps: this checkout and a cache of their own."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(machine.ROOT), environment.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    environment |= {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if options.device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def describe(outcome: Outcome) -> str:
    """One line; of a step that is not well also the end of its log."""
    line = f"{outcome.state:8} {outcome.step.name:28} {outcome.seconds:6.1f} s  {outcome.last}"
    unwell = outcome.state in ("failed", "died", "stopped") and outcome.log is not None
    return f"{line}\n{tail(outcome.log)}" if unwell and outcome.log else line


def summarise(outcomes: Sequence[Outcome], out: Path, options: argparse.Namespace) -> str:
    """The summary as text; it is also stored, with what was promised."""
    promises = gpu_promises.judge(out)
    left_out = LeftOut(out / "run").all()
    steps = [
        {
            "step": o.step.name,
            "state": o.state,
            "seconds": round(o.seconds, 1),
            "last": o.last,
            "check": o.step.check,
        }
        for o in outcomes
    ]
    about: dict[str, Any] = {"run": options.run, "device": machine.device_name(options.device)}
    about |= {"dry": options.dry, "left out": left_out, "steps": steps, "promises": promises}
    name = f"summary-{options.run.replace(':', '')}.json"
    (out / "run" / name).write_text(json.dumps(about, indent=1) + "\n")
    lines = [
        f"{s['state']:8} {s['step']:28} {s['seconds']:6.1f} s  {s['last']}"
        for s in steps
        if s["state"] not in ("ok", "left out")
    ]
    lines += [f"left out {subject:28} {why}" for subject, why in left_out.items()]
    lines += [f"{sum(o.state == 'ok' for o in outcomes)} of {len(outcomes)} steps passed", ""]
    lines += [gpu_promises.line(promise) for promise in promises]
    return "\n".join(lines)


def draw(out: Path) -> str:
    """Plots of what was measured, beside it."""
    try:
        from bench import report

        report.draw("gpu", report.load(out), out)
    except ImportError:
        return "no plots: matplotlib is not installed"
    except Exception as error:  # a plot is no reason to lose the exit code
        return f"no plots: {error}"
    return f"plots in {out}"


if __name__ == "__main__":
    sys.exit(main())
