"""Compiles csrc/cuda with nvcc, one shared library per GPU architecture, and keeps it by the hash
of its sources.

Needs no torch and no GPU; setup.py uses it too. A library is looked for beside the package's copy
of the sources (built by ``DIINN_FAST_CUDA=80,90a pip install .``), then in the cache,
``$XDG_CACHE_HOME/diinn_fast`` or ``~/.cache/diinn_fast``; else it is compiled into the cache.
``DIINN_FAST_NVCC_FLAGS`` adds flags: for tuning, such as ``-DDIINN_CLUSTER=4``
(csrc/cuda/hopper.h).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ARCHITECTURES = ("80", "86", "89", "90a", "120")
"""What is compiled and checked without a GPU; others from 8.0 up are compiled on demand."""

FLAGS = ("-std=c++17", "-O3", "-lineinfo", "--shared", "-Xcompiler", "-fPIC", "-cudart", "static")
TUNING = "DIINN_FAST_NVCC_FLAGS"
PACKAGED = Path(__file__).parents[1] / "_cuda"
REPOSITORY = Path(__file__).parents[2] / "csrc" / "cuda"


class CompileError(RuntimeError):
    """nvcc is missing or failed."""


def architecture(major: int, minor: int) -> str:
    """nvcc's name of a compute capability; Hopper's wgmma exists under "90a" only."""
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def sources() -> Path:
    """The folder of the sources: the repository's, or the copy in an installed package."""
    return REPOSITORY if (REPOSITORY / "launch.cu").exists() else PACKAGED


def nvcc() -> str | None:
    """nvcc's path: $CUDA_HOME, $PATH, /usr/local/cuda."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places += [
        None if (found := shutil.which("nvcc")) is None else str(Path(found).parents[1]),
        "/usr/local/cuda",
    ]
    for place in filter(None, places):
        if os.access(path := Path(place) / "bin" / "nvcc", os.X_OK):
            return str(path)
    return None


def flags() -> list[str]:
    """Options of nvcc, with those of the variable for tuning."""
    return [*FLAGS, *os.environ.get(TUNING, "").split()]


def name(arch: str) -> str:
    """File name of the library for these sources and this architecture."""
    # Other flags or sources make another library, so that none is ever stale.
    digest = hashlib.sha256(" ".join(flags()).encode())
    for path in sorted(sources().glob("*")):
        if path.suffix in (".h", ".cu"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"decoder-sm_{arch}-{digest.hexdigest()[:16]}.so"


def built(arch: str) -> Path | None:
    """The compiled library, if there is one."""
    # Imported here: setup.py loads this file where the package cannot be imported.
    from diinn_fast.files import cache_folder

    for folder in (PACKAGED, cache_folder()):
        if (path := folder / name(arch)).exists():
            return path
    return None


def command(arch: str) -> list[str]:
    """The compiler's call, without the output."""
    compiler = nvcc()
    if compiler is None:
        raise CompileError("nvcc was not found (install the CUDA toolkit, or set CUDA_HOME)")
    target = [
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        *(["-DDIINN_HOPPER"] if arch == "90a" else []),
    ]
    return [compiler, *flags(), *target, str(sources() / "launch.cu")]


def compile_library(arch: str, folder: Path) -> Path:
    """Compile for an architecture into ``folder``; several processes may do so at once. Raises
    CompileError.
    """
    path = folder / name(arch)
    try:
        # Moved into place when it is complete: another process may look for it now.
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            partial = Path(scratch) / path.name
            run = subprocess.run(
                [*command(arch), "-o", str(partial)], capture_output=True, text=True, check=False
            )
            if run.returncode:
                # The first line that names an error says more than the last, which counts them.
                lines = (run.stderr or run.stdout).strip().splitlines() or ["no message"]
                raise CompileError(
                    f"nvcc failed: {next((line for line in lines if 'error' in line), lines[-1])}"
                )
            partial.replace(path)
    except OSError as error:
        raise CompileError(
            f"the CUDA kernels could not be compiled into {folder}: {error}"
        ) from error
    return path
