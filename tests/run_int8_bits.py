"""The int8 kernels give the same bits on every instruction set, also those that this CPU has not.

    python tests/run_int8_bits.py

Compiles tests/kernels/int8_bits.cpp once per instruction set and compares what the programs print:
the portable kernels; AVX2 on x86-64; the templates of AMX, AVX512_VNNI and AVX-VNNI with their
products emulated (in tiles; in vectors of 512 and 256 bits, weights stored with an offset); and
AArch64's under qemu where the cross compiler and qemu-user are installed (on Debian:
g++-aarch64-linux-gnu, qemu-user).
Exit code 1 if one differs; what could not run is named.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "kernels" / "int8_bits.cpp"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wno-psabi"]
FUSED = "-DDIINN_EXACT_FMA"
CROSS = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"


@dataclass(frozen=True)
class Variant:
    name: str
    flags: tuple[str, ...]
    cross: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if not self.cross:
            return None
        absent = [tool for tool in (CROSS, QEMU) if shutil.which(tool) is None]
        return f"{' and '.join(absent)} not installed" if absent else None

    def output(self, folder: Path) -> str:
        """What the program prints, compiled for this variant."""
        binary = folder / self.name
        compiler = [CROSS, "-static"] if self.cross else os.environ.get("CXX", "c++").split()
        command = [*compiler, *FLAGS, *self.flags, str(PROGRAM), "-o", str(binary)]
        subprocess.run(command, check=True)
        start = [QEMU] if self.cross else []
        return subprocess.run(
            [*start, str(binary)], check=True, capture_output=True, text=True
        ).stdout


def native() -> list[Variant]:
    """Variants that need a compiler alone; the others are compared with the first."""
    emulated = (FUSED, "-DDIINN_EMULATED_VNNI")
    variants = [
        Variant("portable", (FUSED,)),
        Variant("emulated-amx", (FUSED, "-DDIINN_EMULATED_AMX", "-DDIINN_LANES=16")),
        Variant("emulated-vnni-512", (*emulated, "-DDIINN_LANES=16")),
        Variant("emulated-vnni-256", (*emulated, "-DDIINN_LANES=8")),
    ]
    if platform.machine().lower() in ("x86_64", "amd64"):
        variants.append(Variant("avx2", ("-mavx2", "-mfma")))
    return variants


def crossed() -> list[Variant]:
    """AArch64, emulated."""
    return [
        Variant("aarch64-dotprod", ("-march=armv8.2-a+dotprod",), cross=True),
        Variant("aarch64-portable", (FUSED,), cross=True),
    ]


def first_difference(expected: str, got: str) -> str | None:
    """The first line in which two outputs differ, or None."""
    if expected == got:
        return None
    pairs = zip(expected.splitlines(), got.splitlines(), strict=False)
    return next((f"{b!r} instead of {a!r}" for a, b in pairs if a != b), "fewer or more lines")


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        reference, *others = native()
        expected = reference.output(Path(folder))
        print(f"{reference.name}: {len(expected.splitlines())} checksums")
        for variant in [*others, *crossed()]:
            if reason := variant.missing():
                print(f"{variant.name}: NOT RUN, {reason}")
                continue
            difference = first_difference(expected, variant.output(Path(folder)))
            failed |= difference is not None
            print(f"{variant.name}: {difference or 'the same bits'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
