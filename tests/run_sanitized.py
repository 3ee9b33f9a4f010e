"""The kernel tests and a short fuzz on a build with the address and undefined-behaviour sanitizers
(GCC or Clang).

    python tests/run_sanitized.py [fuzz seconds, default 30]

Builds into build/sanitize (the installed kernels stay as they are), starts itself again with the
sanitizer's run-time library in front, puts the sanitized module in the kernels' place, and exits
with 0 only if nothing was found.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build() -> Path:
    environment = {**os.environ, "DIINN_FAST_SANITIZE": "1"}
    environment.pop("MAKEFLAGS", None)  # of a make whose job server does not reach this far
    folder = ROOT / "build" / "sanitize"
    for old in folder.glob("_cpu*.so"):
        old.unlink()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    built = next(folder.glob("_cpu*.so"), None)
    if built is None:
        raise SystemExit("the sanitized kernels were not compiled: see the message above")
    return built


def runtime_libraries() -> str:
    """The sanitizer's library, and the C++ one, whose exceptions it must see loaded."""
    compiler = os.environ.get("CXX", "g++")
    names = ("libasan.so", "libstdc++.so")
    found = (
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in names
    )
    return " ".join(str(Path(path).resolve()) for path in found)


def test(module: str, seconds: str) -> int:
    spec = importlib.util.spec_from_file_location("diinn_fast._cpu", module)
    assert spec and spec.loader
    sys.path.insert(0, str(ROOT))
    sys.modules["diinn_fast._cpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["diinn_fast._cpu"])

    import pytest

    from tests import fuzz_decode

    # Sanitizers keep freed memory: its bound is tested without them. float16 takes the kernels of
    # float32. The GPU's kernels, interpreted or emulated, are no part of this build.
    tests = ROOT / "tests"
    places = [tests / "contract", tests / "kernels" / "test_int8.py"]
    unsuited = "not extra_memory and not emulated and not runs_here and not cpu-float16"
    unsuited += " and not triton and not cuda"
    failed = pytest.main(["-x", *map(str, places), "-k", f"(cpu or int8) and {unsuited}"])
    sys.argv = ["fuzz_decode", "--seconds", seconds]
    return int(failed) or fuzz_decode.main()


def main() -> int:
    if module := os.environ.get("DIINN_FAST_SANITIZED_MODULE"):
        return test(module, sys.argv[1])
    seconds = sys.argv[1] if len(sys.argv) > 1 else "30"
    environment = {
        **os.environ,
        "DIINN_FAST_SANITIZED_MODULE": str(build()),
        "LD_PRELOAD": runtime_libraries(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # leaks of the interpreter
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, __file__, seconds], env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
