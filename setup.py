"""Builds the CPU kernels (csrc/cpu) into ``diinn_fast/_cpu``, if the machine can, and adds the
sources of the CUDA kernels (csrc/cuda), which are compiled at first use; everything else is in
pyproject.toml.

A machine without a C++ compiler, or one where compiling fails, still gets a working package: plain
PyTorch serves, and ``diinn-fast info`` says why. Environment: CXX (compiler),
DIINN_FAST_NO_KERNELS=1 (do not compile), DIINN_FAST_SANITIZE=1 (address and undefined-behaviour
sanitizers, into build/sanitize instead of the package; see csrc/cpu/README.md),
DIINN_FAST_CUDA=80,90a (compile the CUDA kernels for these architectures now; "all": for those of
``diinn_fast/backends/_nvcc.py``).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("csrc/cpu")
CUDA = Path("csrc/cuda")
COMMON = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
]
PORTABLE = ["kernels_portable.cpp", "kernels_int8_portable.cpp"]
X86 = {
    "kernels_avx512.cpp": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx2",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
    "kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "kernels_int8_avx2.cpp": ["-mavx2", "-mfma"],
}
"""Sources compiled for one instruction set; which of them runs is decided at run time."""
AVX512 = X86["kernels_avx512.cpp"]
AMX = ["-DDIINN_AMX", "-mamx-tile", "-mamx-int8", "-mamx-bf16", "-mavx512bf16", *AVX512]
AVX2 = X86["kernels_avx2.cpp"]
OPTIONAL_X86 = {
    "kernels_amx_bf16.cpp": ["-mamx-bf16", *AMX],
    "kernels_avx512_bf16.cpp": ["-mavx512bf16", *AVX512],
    "kernels_int8_amx.cpp": ["-mamx-int8", *AMX],
    "kernels_int8_avx512_vnni.cpp": ["-mavx512vnni", *AVX512],
    "kernels_int8_avx_vnni.cpp": ["-mavxvnni", *AVX2],
}
OPTIONAL_ARM = {"kernels_int8_dotprod.cpp": ["-march=armv8.2-a+dotprod"]}
"""Left out if the compiler does not know the first flag; else the runtime is told by a definition,
DIINN_AVX512_BF16 of kernels_avx512_bf16.cpp.
"""
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
]


class BuildKernels(build_ext):
    """Compiles the kernels, or says in one line why not: never fails the installation."""

    def run(self) -> None:
        """Compile for the CPU; copy the CUDA sources, and compile them too if there is an nvcc."""
        super().run()
        folder = Path(self.get_ext_fullpath("diinn_fast._cpu")).parent / "_cuda"
        if not self.inplace:  # an editable installation reads them in csrc/cuda
            folder.mkdir(parents=True, exist_ok=True)
            for path in (*CUDA.glob("*.h"), *CUDA.glob("*.cu")):
                shutil.copy2(path, folder)
        try:
            compile_cuda(folder)
        except RuntimeError as error:
            print(
                f"diinn_fast: the CUDA kernels were not compiled, first use will try: {error}",
                file=sys.stderr,
            )

    def build_extension(self, extension: Extension) -> None:
        """Write a file for ninja and run it."""
        sanitize = os.environ.get("DIINN_FAST_SANITIZE") == "1"
        target = Path(self.get_ext_fullpath(extension.name))
        if sanitize:
            target = Path("build/sanitize") / target.name
        try:
            self._compile(target, sanitize)
        except (OSError, RuntimeError) as error:
            print(
                "diinn_fast: the CPU kernels were not compiled, plain PyTorch will be used: "
                f"{error}",
                file=sys.stderr,
            )

    def _compile(self, target: Path, sanitize: bool) -> None:
        if os.environ.get("DIINN_FAST_NO_KERNELS") == "1":
            raise RuntimeError("DIINN_FAST_NO_KERNELS=1 is set")
        if sys.platform == "win32":
            raise RuntimeError(
                "they need GCC or Clang, which this build does not look for on Windows"
            )
        compiler = find_compiler()
        flags = [
            *COMMON,
            *(SANITIZE if sanitize else []),
            *(f"-I{folder}" for folder in include_folders()),
        ]
        variants, definitions = instruction_sets(compiler)
        flags += definitions
        sources = ["binding.cpp", "runtime.cpp", *PORTABLE, *variants]
        objects = target.parent.resolve() if sanitize else Path(self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        jobs = []
        for source in sources:
            built = objects / f"{Path(source).stem}.o"
            jobs.append(
                (
                    built,
                    [
                        *compiler,
                        *flags,
                        *variants.get(source, []),
                        "-c",
                        str((FOLDER / source).resolve()),
                    ],
                )
            )
        run_jobs(jobs, objects)
        shared = (
            ["-bundle", "-undefined", "dynamic_lookup"]
            if sys.platform == "darwin"
            else ["-shared", "-pthread"]
        )
        link = [
            *compiler,
            *shared,
            *(SANITIZE if sanitize else []),
            *(str(built) for built, _ in jobs),
        ]
        partial = target.with_suffix(".partial")
        run([*link, "-o", str(partial)])
        partial.replace(target)


def compile_cuda(folder: Path) -> None:
    """Compile the CUDA kernels for the architectures that DIINN_FAST_CUDA lists, if any."""
    asked = os.environ.get("DIINN_FAST_CUDA", "")
    nvcc = load_nvcc()
    for arch in (
        nvcc.ARCHITECTURES if asked == "all" else filter(None, asked.replace(" ", "").split(","))
    ):
        print(f"diinn_fast: compiling the CUDA kernels for sm_{arch}")
        nvcc.compile_library(arch, folder)


def load_nvcc() -> ModuleType:
    """``diinn_fast.backends._nvcc`` without importing the package, which needs torch."""
    spec = importlib.util.spec_from_file_location(
        "_nvcc", Path("diinn_fast/backends/_nvcc.py").resolve()
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_compiler() -> list[str]:
    """The command of a C++ compiler; RuntimeError if there is none."""
    configured = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    for command in filter(None, configured):
        if shutil.which(command.split()[0]):
            return command.split()
    raise RuntimeError("no C++ compiler found (install g++ or clang++, or set CXX, and reinstall)")


def instruction_sets(compiler: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The sources of this machine's instruction sets with their flags, and the definitions that
    tell ``runtime.cpp`` which there are.
    """
    variants: dict[str, list[str]] = {}
    definitions = []
    machine = platform.machine().lower()
    optional = OPTIONAL_ARM if machine in ("aarch64", "arm64") else {}
    if machine in ("x86_64", "amd64"):
        variants.update(X86)
        definitions.append("-DDIINN_X86_VARIANTS")
        optional = OPTIONAL_X86
    for source, options in optional.items():
        if accepts(compiler, options[0]):
            variants[source] = options
            name = Path(source).stem.removeprefix("kernels_").upper()
            definitions.append(f"-DDIINN_{name}")
    return variants, definitions


def accepts(compiler: list[str], flag: str) -> bool:
    """Whether the compiler knows the flag."""
    command = [*compiler, flag, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def include_folders() -> list[str]:
    """Folders of Python's and pybind11's headers; RuntimeError if they are missing."""
    try:
        import pybind11
    except ImportError as error:
        raise RuntimeError("pybind11 is not installed") from error
    headers = sysconfig.get_paths()["include"]
    if not (Path(headers) / "Python.h").exists():
        raise RuntimeError(f"Python.h is not in {headers} (install the Python development package)")
    return [headers, pybind11.get_include()]


def run_jobs(jobs: list[tuple[Path, list[str]]], folder: Path) -> None:
    """Compile with ninja where there is one (in parallel, and only what changed), else one after
    the other.
    """
    ninja = shutil.which(
        "ninja",
        path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    )
    if ninja is None:
        for built, command in jobs:
            run([*command, "-o", str(built)])
        return
    lines = [
        "rule cxx",
        "  command = $compile -MD -MF $out.d -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    for built, command in jobs:
        text = " ".join("'" + word.replace("$", "$$") + "'" for word in command)
        lines += [f"build {escape(str(built))}: cxx {escape(command[-1])}", f"  compile = {text}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    run([ninja, "-C", str(folder), *(["-v"] if os.environ.get("VERBOSE") else [])])


def escape(path: str) -> str:
    """The path as a file for ninja spells it."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def run(command: list[str]) -> None:
    """Run a command; RuntimeError with its first error, if it fails."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        lines = result.stdout.strip().splitlines()
        reason = next(
            (line for line in lines if "error" in line), lines[-1] if lines else "no message"
        )
        print(result.stdout, file=sys.stderr)
        raise RuntimeError(f"{Path(command[0]).name} failed: {reason.strip()}")
    if "warning" in result.stdout:
        print(result.stdout, file=sys.stderr)


FILES = (*FOLDER.glob("*"), *CUDA.glob("**/*"))
SOURCES = sorted(str(path) for path in FILES if path.suffix in (".cpp", ".h", ".cu"))
setup(
    ext_modules=[Extension("diinn_fast._cpu", sources=[], depends=SOURCES, optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
