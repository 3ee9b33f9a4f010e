"""The machine: what it is called, how much memory is free, how fast its own matrix products are,
and a clock.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import diinn_fast
from diinn_fast import backends

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "DIINN_FAST_COMMIT"
"""Environment variable that names the commit where the files lie without their history."""


def device_name(device: str) -> str:
    """Name of the CPU or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def slug(device: str) -> str:
    """Folder of this machine's results: ``amd-epyc-2-threads``, ``nvidia-h100-80gb-hbm3``."""
    name = device_name(device) + (f" {torch.get_num_threads()} threads" if device == "cpu" else "")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def facts(device: str) -> dict[str, Any]:
    """All that a reader needs to judge a number: commit, date, versions, threads, instruction
    set.
    """
    found: dict[str, Any] = {
        "device": device_name(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get(COMMIT) or _git("rev-parse", "--short=12", "HEAD"),
        "modified": bool(modified()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    found["versions"]["diinn_fast"] = diinn_fast.__version__
    if device == "cpu":
        found["cpu"] = {key: _cpuinfo(key) for key in ("vendor_id", "cpu family", "model")}
        if not (cpu := backends.load("cpu")).unavailable():
            found["kernel_isa"] = cpu.instruction_set()
            found["bf16_isa"] = cpu.bf16_instruction_set()
            found["int8_isa"] = backends.load("int8").instruction_set()
    else:
        found["versions"]["cuda"] = torch.version.cuda
        found["capability"] = list(torch.cuda.get_device_capability())
    return found


def modified() -> list[str]:
    """Tracked files that differ from the commit; results and the documents made of them aside."""
    aside = (":(exclude)bench/results", ":(exclude)docs")
    found = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *aside)
    return [line.split(maxsplit=1)[1] for line in found.splitlines()]


def cpu_flags() -> list[str]:
    """Instruction sets of the CPU, as Linux spells them; empty where they are not known."""
    return _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def free_bytes(device: str) -> int:
    """Free memory of the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.findall(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * 4096 // 2 or 4 << 30


def seconds(call: Callable[[], object], device: str) -> float:
    """How long one call takes, the device's work included."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end) / 1e3)
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def rates(device: str) -> dict[str, tuple[Callable[[], object], float]]:
    """The machine's own products, by name: a call and its FLOPs. They are timed in the same rounds
    as the peers.

    On the CPU also as a 1x1 convolution in channels_last: the matrix library is slow on some CPUs.
    """
    if device == "cuda":
        a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        return {"torch.mm": (lambda: torch.mm(a, a), 2.0 * 8192**3)}
    rows = 2048
    depth = 256
    columns = 512
    repeats = 4
    x = torch.randn(rows, depth)
    weight = torch.randn(depth, columns)
    image = x[None, None].permute(0, 3, 1, 2)
    kernel = weight.t().contiguous()[:, :, None, None]
    flops = 2.0 * rows * depth * columns * repeats

    def products() -> None:
        for _ in range(repeats):
            torch.mm(x, weight)

    def convolutions() -> None:
        with torch.inference_mode():
            for _ in range(repeats):
                F.conv2d(image, kernel)

    return {"torch.mm": (products, flops), "conv1x1": (convolutions, flops)}


def quiet() -> list[str]:
    """What stood in front of the command, where it was given the cores before all other work."""
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_RR:
        return ["chrt", "-r", str(os.sched_getparam(0).sched_priority)]
    return []


def command() -> str:
    """The command that made a record."""
    return " ".join(["pytest", *sys.argv[1:]])
