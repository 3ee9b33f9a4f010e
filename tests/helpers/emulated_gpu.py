"""The CUDA kernels without a GPU: csrc/cuda compiled for the CPU, on an emulated machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from diinn_fast.backends import cuda, cuda_int8

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda"
COMPILER = (
    os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
)
ARCHITECTURES = {"portable": "86", "hopper": "90a"}
"""The forward kernels, and an architecture that takes each; the backward has one for all."""


def unavailable() -> str | None:
    if COMPILER is None or os.name == "nt":
        return "no C++ compiler (GCC or Clang)"
    return None


@cache
def library() -> ctypes.CDLL:
    """launch.cu's interface on the emulated machine, built once."""
    return build(Path(_folder().name))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="diinn_fast-emulated-")


def build(folder: Path, *macros: str) -> ctypes.CDLL:
    """Compile into ``folder`` with the ``macros`` that tune a kernel."""
    assert COMPILER is not None
    built = folder / "emulation.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", *macros]
    command = [*COMPILER.split(), *flags, str(FOLDER / "emulation/library.cpp"), "-o", str(built)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = cuda.interface(built)
    loaded.diinn_emulate_locate.restype = ctypes.c_int64
    return loaded


def install(patch: pytest.MonkeyPatch, kernel: str, emulation: ctypes.CDLL | None = None) -> None:
    """Backends ``cuda`` and ``cuda_int8`` as if this were a GPU that takes the kernel."""
    emulation = emulation or library()
    patch.setattr(cuda, "unavailable", lambda: None)
    patch.setattr(cuda, "unsupported", cuda._unsuited)
    patch.setattr(cuda, "_library", lambda arch: emulation)
    patch.setattr(cuda, "_architecture", lambda source: ARCHITECTURES[kernel])
    for backend in (cuda, cuda_int8):
        patch.setattr(backend, "_checked", {})
    schedule(2, 0, emulation)


def schedule(blocks: int, seed: int, emulation: ctypes.CDLL | None = None) -> None:
    """How many blocks run at a time, and the order in which threads take their turns."""
    (emulation or library()).diinn_emulate_on(blocks, ctypes.c_uint64(seed))
