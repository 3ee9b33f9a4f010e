"""What a run on a GPU does, in which order, and how long each step may take.

A part is a command of its own, of at most eight minutes. Each starts with ``prepare``: one process
per backend that compiles it, compares every form with the definition, and looks at its bits. A
backend that fails there, hangs or dies is left out of everything later.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.gpu_run import Step
from diinn_fast import backends

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
TOOLS = "/usr/local/cuda/bin", "/opt/nvidia/nsight-compute"
INTERPRETED = 10
"""How much longer the steps may take in a dry run, where kernels are interpreted."""

LIMITS = {
    "prepare": 90.0,
    "quick": 60.0,
    "checks": 220.0,
    "compile": 150.0,
    "tune": 75.0,
    "large": 45.0,
    "training": 40.0,
    "memory": 40.0,
    "photo": 40.0,
    "model": 45.0,
    "small": 40.0,
    "compiled": 240.0,
    "more": 240.0,
    "sanitizer": 240.0,
    "profile": 240.0,
}
"""Seconds that a step may take, by the word that its name begins with."""


@dataclass(frozen=True)
class Variant:
    """A backend with settings of its own: the same kernels compiled otherwise, or other ones."""

    backend: str
    environment: dict[str, str] = field(default_factory=dict)
    tuning: bool = False  # of interest only where the backend itself runs
    checked: bool = True  # by all tests of the device, not only by ``prepare``


def variants(out: Path) -> dict[str, Variant]:
    """What ``quick`` compares, by name; the backends themselves first."""
    found = {name: Variant(name) for name in fused()}
    if "cuda" in found:
        flags = {"ahead": "-DDIINN_AHEAD=1 -DDIINN_STAGES=13"}
        flags |= {"cluster1": "-DDIINN_CLUSTER=1", "cluster4": "-DDIINN_CLUSTER=4"}
        found["cuda-portable"] = Variant("cuda", {"DIINN_FAST_CUDA_KERNEL": "portable"})
        for name, value in flags.items():
            environment = {"DIINN_FAST_NVCC_FLAGS": value}
            found[f"cuda-{name}"] = Variant("cuda", environment, tuning=True, checked=False)
    if "triton" in found and (ptxas := program("ptxas")):
        # Triton brings an assembler of its own; the toolkit's is another version.
        cache = str(out / "run" / "triton-ptxas")
        found["triton-ptxas"] = Variant(
            "triton", {"TRITON_PTXAS_PATH": ptxas, "TRITON_CACHE_DIR": cache}, checked=False
        )
    return found


def fused() -> list[str]:
    """Our backends with kernels for GPUs, whether or not they run here: ``prepare`` finds out."""
    return [name for name in backends.NAMES if "cuda" in backends.load(name).DEVICES[:1]]


def precisions_of(backend: str) -> list[str]:
    """Those that a backend is checked in: TF32 is a way to multiply float32, not integers."""
    module = backends.load(backend)
    dtypes = module.DTYPES.split(", ") + ["tf32"] * ("float32" in module.DTYPES)
    return [p for p in PRECISIONS if p in dtypes and not (p == "tf32" and module.INTEGERS)]


def device_checks(device: str, selected: str) -> tuple[str, ...]:
    """The contract of the kernels on a device, as a command: the one place that knows how to call
    it. Without a GPU, Triton's interpreter stands in for one. A killed one has printed the name of
    the test and the place where it was.
    """
    machine = "device" if device == "cuda" else "interpreted"
    return (
        sys.executable,
        *("-m", "pytest", "tests/contract", "-o", "addopts=", "-p", "no:cacheprovider"),
        *("-v", "--tb=short", "-rfs", "--durations=5", "-o", "faulthandler_timeout=60"),
        *("-k", f"{machine} and {selected}"),
    )


@dataclass(frozen=True)
class Planner:
    """Makes the steps of one run."""

    options: argparse.Namespace
    out: Path

    def step(self, kind: str, name: str, *more: str, **settings: object) -> Step:
        """A step of ``gpu_steps``."""
        options = self.options
        command = [sys.executable, "-m", "bench.gpu_steps", kind, "--out", str(self.out)]
        command += ["--device", options.device, "--run", options.run, *["--dry"] * options.dry]
        return self.command(name, (*command, *more), **settings)

    def command(self, name: str, command: Sequence[str], **settings: object) -> Step:
        """A step that runs a command."""
        limit = LIMITS[name.partition("-")[0]] * (INTERPRETED if self.options.dry else 1)
        return replace(Step(name, tuple(command), limit), **settings)  # type: ignore[arg-type]

    def of_backends(self, kind: str, *more: str, check: bool = False) -> list[list[Step]]:
        """One process for each of our backends, one after the other: they are timed."""
        return [
            [self.step(kind, f"{kind}-{name}", "--backend", name, *more, subject=name, check=check)]
            for name in fused()
            if not (kind == "training" and backends.load(name).INTEGERS)
        ]

    def measured(self, kind: str) -> list[list[Step]]:
        """Of plain PyTorch, then of each of our backends."""
        return [[self.step(kind, f"{kind}-plain")], *self.of_backends(kind)]

    # -- parts -------------------------------------------------------------------------------------

    def prepare(self) -> list[list[Step]]:
        """Steps that compile what later ones measure."""
        steps = []
        for name, variant in variants(self.out).items():
            if not variant.tuning:
                settings = {"environment": variant.environment, "subject": name}
                steps.append(
                    self.step(
                        "prepare",
                        f"prepare-{name}",
                        *("--backend", variant.backend),
                        check=True,
                        decides=True,
                        **settings,
                    )
                )
        return [steps]

    def first(self) -> list[list[Step]]:
        """Correctness of every kernel, and quick timings."""
        quick = []
        for name, variant in variants(self.out).items():
            step = self.step(
                "quick",
                f"quick-{name}",
                *("--backend", variant.backend, "--variant", name),
                subject=name,
                needs=(variant.backend,) if variant.tuning else (),
                environment=variant.environment,
            )
            quick.append([step])
        # What takes longest starts first. What the next part times is compiled here, side by side
        # with the checks.
        return [*self.prepare(), *quick, [*self.compile(), *self.checks()]]

    def checks(self) -> list[Step]:
        """The tests of the kernels, a process for each variant, mode and precision."""
        dry = self.options.dry
        found = []
        for name, variant in variants(self.out).items():
            settings = {"subject": name, "environment": variant.environment, "check": True}
            # The dtypes' ids end in their names, and bfloat16 contains float16: hence the dash.
            selected = {
                f"mode{mode}-{precision}": f"mode{mode} and -{precision}"
                for precision in (("float16",) if dry else precisions_of(variant.backend))
                for mode in ((3,) if dry else (1, 2, 3, 4))
            }
            if name == variant.backend:
                selected["surroundings"] = "not mode and not compile and not graphed"
            if dry:  # the interpreter takes its time
                few = {"surroundings": "autocast"}
                selected = {k: f"{v} and {few.get(k, 'definition')}" for k, v in selected.items()}
            for what, tests in selected.items() if variant.checked else ():
                command = device_checks(self.options.device, f"{variant.backend}- and {tests}")
                found.append(self.command(f"checks-{name}-{what}", command, **settings))
        return found

    def compile(self) -> list[Step]:
        """Triton's kernels into its cache on disk; each takes seconds on one core."""
        dtypes = ("float16",) if self.options.dry else ("float16", "bfloat16", "float32", "int8")
        command = self.tune_command("--rounds", "0", "--dtypes")
        return [
            self.command(f"compile-{dtype}", (*command, dtype), subject="triton")
            for dtype in dtypes
            if "triton" in fused()
        ]

    def tune_command(self, *more: str) -> tuple[str, ...]:
        """The command that tunes tiles."""
        small = ("--lr", "3", "--forms", "content") if self.options.dry else ()
        device = ("--device", self.options.device)
        return (sys.executable, "-m", "diinn_fast.kernels.tune", *device, *small, *more)

    def second(self) -> list[list[Step]]:
        """Tiles, then speed and memory beside plain PyTorch, and a photograph."""
        rounds = ("--dtypes", "float16", "--rounds", "2") if self.options.dry else ()
        command = self.tune_command(
            *rounds, "--seconds", "45", "--json", str(self.out / "run" / "tune.json")
        )
        tune = [[self.command("tune", command, subject="triton")]] if "triton" in fused() else []
        stages = [*self.prepare(), *tune]
        for kind in ("large", "training", "memory"):
            stages += self.measured(kind)
        photos = ("--photos", *self.options.photos) if self.options.photos else ()
        stages += self.of_backends("photo", *photos, check=True)
        for kind in ("model", "small"):
            stages += self.measured(kind)
        return stages

    def compiled(self) -> list[list[Step]]:
        """Peers compiled by torch.compile, which takes minutes; and its checks."""
        checks = [
            self.command(
                f"checks-{name}-compiled",
                device_checks(
                    self.options.device, f"{name}- and not mode and (compile or graphed)"
                ),
                subject=name,
                check=True,
            )
            for name in fused()
        ]
        return [*self.prepare(), *self.measured("compiled"), checks]

    def more(self) -> list[list[Step]]:
        """More sizes."""
        return [*self.prepare(), *self.measured("more")]

    def tools(self) -> list[list[Step]]:
        """NVIDIA's sanitizer on every kernel and a profile of each, where they are installed."""
        stages = self.prepare()
        if sanitizer := program("compute-sanitizer"):
            for tool in ("memcheck", "racecheck"):
                stages += self.sanitized(sanitizer, tool)
        if ncu := program("ncu"):
            kernels = "regex:projected|direct|split|step_back|sum_queries|decode|gradient"
            profiler = (ncu, "--set", "full", "--clock-control", "none", "--kernel-name", kernels)
            for name in fused():
                step = self.step("profile", f"profile-{name}", "--backend", name, subject=name)
                report = ("--launch-count", "8", "-f", "-o", str(self.out / "run" / f"ncu-{name}"))
                stages.append([replace(step, command=(*profiler, *report, *step.command))])
        return stages

    def sanitized(self, sanitizer: str, tool: str) -> list[list[Step]]:
        """One small decode and training step of every form, in a process for each variant."""
        command = (sanitizer, "--tool", tool, "--error-exitcode", "9")
        ours = ("--kernel-name-exclude", "kns=at::")  # PyTorch's own kernels are not the question
        stages = []
        for name, variant in variants(self.out).items():
            if variant.tuning:
                continue
            step = self.step(
                "prepare",
                f"sanitizer-{tool}-{name}",
                *("--backend", variant.backend),
                subject=name,
                environment=variant.environment,
                check=True,
            )
            stages.append([replace(step, command=(*command, *ours, *step.command))])
        return stages


PARTS: dict[str, Callable[[Planner], list[list[Step]]]] = {
    "first": Planner.first,
    "second": Planner.second,
    "compiled": Planner.compiled,
    "tools": Planner.tools,
    "more": Planner.more,
}


def plan(options: argparse.Namespace, part: str, out: Path) -> list[list[Step]]:
    """The stages of a part, one after the other; the steps of a stage run side by side, so only
    stages that time nothing have many.
    """
    stages = PARTS[part](Planner(options, out))
    only = tuple(options.only)
    chosen = [[s for s in stage if not only or s.name.startswith(only)] for stage in stages]
    return [stage for stage in chosen if stage]


def program(name: str) -> str | None:
    """Path of one of NVIDIA's tools, None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(TOOLS))
