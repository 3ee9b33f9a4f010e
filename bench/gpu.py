"""Everything that needs a GPU, in one command of eight minutes: ``python -m bench.gpu`` (or
``make gpu``).

It checks the kernels on the device, tunes their tiles, and measures them against all peers. Every
step is a process of its own with a time limit; a step that fails or hangs stops no other. Results
are written as they come: tables, plots and a summary in bench/results/<device>/ (or --out), logs in
its folder run/. The exit code is 1 if a check failed.

Needs a CUDA build of torch, triton, pytest, and what diinn_fast imports; not that the package is
installed. Uses matplotlib, compute-sanitizer and ncu where they are.

    python -m bench.gpu --full                # also the long steps: more sizes, sanitizers,
    profiles python -m bench.gpu --only checks tune    # steps whose names begin so
    python -m bench.gpu --device cpu --dry    # try this program without a GPU: tiny sizes, Triton's
    interpreter
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import gpu_promises, machine

ROOT = machine.ROOT
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
TOOLS = "/usr/local/cuda/bin", "/opt/nvidia/nsight-compute"


@dataclass(frozen=True)
class Step:
    """A command with a time limit (seconds). ``check``: if it fails, so does the run."""

    name: str
    command: tuple[str, ...]
    limit: float
    check: bool = False


@dataclass
class Outcome:
    step: Step
    state: str  # ok, failed, stopped (at its limit), not run
    seconds: float = 0.0
    last: str = ""  # the last line that it printed


def plan(options: argparse.Namespace, out: Path) -> list[list[Step]]:
    """Stages, one after the other; the steps of a stage run side by side, so only the first ones
    may be many.
    """
    python = sys.executable
    dry = options.dry
    measure = [python, "-m", "bench.gpu_steps"]
    common = [
        "--out",
        str(out),
        "--device",
        options.device,
        "--run",
        options.run,
        *(["--dry"] if dry else []),
    ]
    pytest = [
        python,
        "-m",
        "pytest",
        "tests/contract/test_on_device.py",
        "-o",
        "addopts=-q",
        "-p",
        "no:cacheprovider",
    ]
    pytest += ["-o", "python_functions=check_*", "-rfs", "--durations=5"]
    tune = [python, "-m", "diinn_fast.kernels.tune", "--device", options.device]
    small = ["--lr", "3", "--forms", "content", "--dtypes", "float16"] if dry else []

    def check(name: str, selected: str) -> Step:
        return Step(f"checks-{name}", (*pytest, "-k", selected), 200, check=True)

    def measured(name: str, limit: float, check: bool = False, *more: str) -> Step:
        return Step(name, (*measure, name, *common, *more), limit, check)

    # The dtypes' ids end in their names, and bfloat16 contains float16: hence the dash.
    modes = [3] if dry else [1, 2, 3, 4]
    precisions = ["float16"] if dry else PRECISIONS
    # What takes longest starts first. A kernel compiles for seconds on one core: those that the
    # next stages time are compiled here, side by side with the checks.
    compiled = ("float16", "float32") if dry else ("float16", "bfloat16", "float32")
    first = [
        check("compiled", "surroundings and (compile or graphed)")
    ]  # by torch.compile: a minute of many cores
    first.append(check("surroundings", "surroundings and not compile and not graphed"))
    first += [
        Step(f"compile-{p}", (*tune, "--rounds", "0", "--dtypes", p, *small), 150) for p in compiled
    ]
    first += [check(f"mode{m}-{p}", f"mode{m} and -{p}") for p in precisions for m in modes]
    stages = [[measured("prepare", 90)], first]
    timed = [
        "--rounds",
        "2" if dry else "15",
        "--seconds",
        "45",
        "--json",
        str(out / "run/tune.json"),
    ]
    stages.append([Step("tune", (*tune, *small, *timed), 75)])
    photos = ["--photos", *options.photos] if options.photos else []
    stages += [
        [measured("large", 75)],
        [measured("training", 60)],
        [measured("memory", 60)],
        [measured("photo", 60, True, *photos)],
        [measured("model", 75)],
        [measured("small", 45)],
        [measured("compiled", 1200 if options.full else 300)],
    ]
    if options.full:
        stages += [
            [measured("more", 600)],
            *([step] for step in tools(python, [*measure, "profile", *common], out, pytest)),
        ]
    if dry:  # the interpreter takes its time
        stages = [[replace(s, limit=10 * s.limit) for s in stage] for stage in stages]
    chosen = [
        [s for s in stage if not options.only or s.name.startswith(tuple(options.only))]
        for stage in stages
    ]
    return [stage for stage in chosen if stage]


def tools(python: str, profile: Sequence[str], out: Path, pytest: Sequence[str]) -> list[Step]:
    """NVIDIA's sanitizers on a few checks, and a profile of every kernel, where the programs are
    installed.
    """
    steps = []
    some = ["-k", "mode3-float16 and not bits"]
    if sanitizer := program("compute-sanitizer"):
        for tool in ("memcheck", "racecheck", "initcheck"):
            command = [
                sanitizer,
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                "--kernel-name-exclude",
                "kns=at::",
                *pytest,
                *some,
            ]
            steps.append(Step(f"sanitizer-{tool}", tuple(command), 900, check=tool != "initcheck"))
    if ncu := program("ncu"):
        kernels = "regex:projected|direct|split|sum_queries|decode"
        command = [
            ncu,
            "--set",
            "full",
            "--clock-control",  # the GPU's clocks are left as they are
            "none",
            "--kernel-name",
            kernels,
            "--launch-count",
            "12",
            "-f",
            "-o",
            str(out / "run/ncu"),
        ]
        steps.append(Step("profile", (*command, *profile), 600))
    return steps


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(TOOLS))


# -- running ---------------------------------------------------------------------------------------


def run_stage(
    steps: Sequence[Step],
    logs: Path,
    environment: dict[str, str],
    workers: int,
    end: float,
    least: float = 5.0,
) -> Iterable[Outcome]:
    """Run steps side by side, ``workers`` at a time, none beyond its limit or ``end``; yield them
    as they finish.

    A step that would have less than ``least`` seconds is not run.
    """
    waiting = list(steps)
    running: dict[subprocess.Popen[bytes], tuple[Step, float, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            step = waiting.pop(0)
            limit = min(step.limit, end - time.monotonic())
            if limit < least:
                yield Outcome(step, "not run", last="no time was left")
                continue
            log = (logs / f"{step.name}.log").open("w")
            # A session of its own, so that children of the step can be stopped with it.
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            log.close()
            running[process] = step, time.monotonic(), limit
        for process, (step, begin, limit) in list(running.items()):
            spent = time.monotonic() - begin
            if process.poll() is None and spent < limit:
                continue
            state = "failed" if process.returncode else "ok"
            if process.returncode is None:
                state = "stopped"
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            del running[process]
            yield Outcome(step, state, spent, last_line(logs / f"{step.name}.log"))
        time.sleep(0.1)


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:100]


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), environment.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    environment.pop("TRITON_INTERPRET", None)
    if options.device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def summarise(outcomes: Sequence[Outcome], out: Path, about: dict[str, Any]) -> str:
    """The summary as text; it is also stored, with what was promised."""
    promises = gpu_promises.judge(out, about["run"])
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
    (out / "run" / "summary.json").write_text(
        json.dumps({**about, "steps": steps, "promises": promises}, indent=1) + "\n"
    )
    lines = [
        f"{s['state']:8} {s['step']:24} {s['seconds']:7.1f} s  {s['last']}"
        for s in steps
        if s["state"] != "ok"
    ]
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry", action="store_true", help="tiny sizes, a few checks")
    parser.add_argument(
        "--full", action="store_true", help="long steps too, and no limit on the whole"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STEP", help="steps whose names begin so"
    )
    parser.add_argument("--out", help="folder of the results (default: bench/results/<device>)")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit on the whole; 0: none")
    parser.add_argument(
        "--photos", nargs="+", default=[], help="photographs for the comparison in 8 bit"
    )
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    options.run = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "no CUDA device; --device cpu --dry tries the program without one", file=sys.stderr
            )
            return 2
    name = machine.slug(options.device)
    out = Path(
        options.out or ROOT / ("build/gpu-dry" if options.dry else f"bench/results/{name}")
    ).resolve()
    (out / "run").mkdir(parents=True, exist_ok=True)
    logs = out / "run" / "logs"
    logs.mkdir(exist_ok=True)
    end = begin + 60 * options.minutes if options.minutes and not options.full else float("inf")
    workers = max(1, (os.cpu_count() or 2) - 1)
    outcomes = []
    print(f"{name}: results in {out}", flush=True)
    for stage in plan(options, out):
        # A little time is kept for the summary.
        for outcome in run_stage(stage, logs, environment_of(options), workers, end - 5):
            outcomes.append(outcome)
            said = outcome.last if outcome.step.check or outcome.state != "ok" else ""
            print(
                f"{outcome.state:8} {outcome.step.name:24} {outcome.seconds:7.1f} s  {said}",
                flush=True,
            )
    about = {"run": options.run, "device": machine.device_name(options.device), "dry": options.dry}
    print("\n" + summarise(outcomes, out, about))
    print(draw(out))
    print(f"{time.monotonic() - begin:.0f} s; logs in {logs}")
    return int(any(o.step.check and o.state != "ok" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
