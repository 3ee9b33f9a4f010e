"""Peak memory of one peer on one case, in a process of its own:
``python -m bench.memory '{"case": .., "peer": ..}'``.

Counted is what the process holds at most beyond its inputs and outputs: on Linux by the kernel's
own high-water mark of resident memory, reset just before; elsewhere by polling; on a GPU by the
allocator's statistics.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, from_description
from bench.machine import ROOT
from bench.peers import build


def measure_in_child(case: Case, peer: str) -> dict[str, int]:
    """``{"extra": bytes, "output": bytes}`` of a case; raises RuntimeError with the child's last
    words.
    """
    argument = json.dumps({"case": case.describe(), "peer": peer})
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{peer} on {case.name} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}"
        )
    result: dict[str, int] = json.loads(done.stdout)
    return result


def measure(case: Case, peer: str) -> dict[str, int]:
    """The same in this process."""
    build(
        replace(case, lr=(8, 8), scale=2.0, batch=1), peer
    )()  # what libraries load at first use is not the peer's
    call = build(case, peer)
    peak, result = (cuda_peak if case.device == "cuda" else resident_peak)(call)
    output = sum(v.numel() * v.element_size() for v in _tensors(result))
    return {"extra": max(0, peak - output), "output": output}


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def cuda_peak(call: Callable[[], object]) -> tuple[int, object]:
    """(most bytes allocated by a call, its result)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def resident_peak(call: Callable[[], object]) -> tuple[int, object]:
    """Bytes by which resident memory rises at most during a call, and the call's result."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # high-water mark := what is resident now
        before = status_bytes("VmHWM")
        result = call()
        return status_bytes("VmHWM") - before, result
    except OSError:
        return _polled_peak(call)


def _polled_peak(call: Callable[[], object]) -> tuple[int, object]:
    before = peak = status_bytes("VmRSS")
    done = threading.Event()

    def poll() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, status_bytes("VmRSS"))

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        result = call()
        peak = max(peak, status_bytes("VmRSS"))
    finally:
        done.set()
        poller.join()
    return peak - before, result


def status_bytes(field: str) -> int:
    """A size from /proc/self/status (``VmRSS``, ``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(measure(from_description(request["case"]), request["peer"])))
