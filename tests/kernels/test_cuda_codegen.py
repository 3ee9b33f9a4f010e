"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, matrix instructions,
sines, warnings.

python tests/kernels/test_cuda_codegen.py            # prints the figures as a table
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diinn_fast.backends import _cuda, _nvcc, cuda
from diinn_fast.files import cache_folder

pytestmark = pytest.mark.skipif(
    _nvcc.nvcc() is None, reason="nvcc is not installed (the emulation is tested anyway)"
)

# Kernels by a part of their mangled names: content (ELb0) and modulation (ELb1) form, then the
# backward's (ELb1).
FORWARD = [f"Portable{t}ELb{m}ELb0E" for t in ("INS_7Float16", "INS_8BFloat16") for m in (0, 1)]
KEEPING = [name.replace("ELb0EE", "ELb1EE") for name in FORWARD]
INTEGERS = [f"PortableInt8{t}ELb{m}E" for t in ("INS_7Float16", "INS_8BFloat16") for m in (0, 1)]
CHAINS = [f"Chain{t}ELb{m}E" for t in ("INS_7Float16", "INS_8BFloat16") for m in (0, 1)]
HOPPER = [f"HopperI{t}ELb{m}E" for t in ("NS_7Float16", "NS_8BFloat16") for m in (0, 1)]


def compile_for(arch: str, folder: Path) -> tuple[Path, dict[str, dict[str, int]], str]:
    """The library, figures by mangled kernel name, and all that the compiler said."""
    path = folder / _nvcc.name(arch)
    run = subprocess.run(
        [*_nvcc.command(arch), "-Xptxas", "-v", "-o", str(path)], capture_output=True, text=True
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    figures = {}
    for name, stack, stores, loads, registers in re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        said,
        re.S,
    ):
        spilled = int(stores) + int(loads)
        figures[name] = {"registers": int(registers), "stack": int(stack), "spilled": spilled}
    if (tools := disassembler()) is not None:
        environment = os.environ | {
            "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", "")])
        }
        sass = subprocess.run(
            [tools / "cuobjdump", "-sass", path],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for text in sass.split("Function : ")[1:]:
            figures[text.split(maxsplit=1)[0]] |= count_instructions(text)
    return path, figures, said


INSTRUCTIONS = {
    "HGMMA from registers": r"HGMMA\.64x128x16\.F32(?:\.BF16)? R\d+, R\d+, gdesc",
    "HGMMA": r"\bHGMMA",
    "HMMA": r"\bHMMA\.16816\.F32",
    "IMMA": r"\bIMMA\.16832\.S8\.S8",
    "MUFU.SIN": r"\bMUFU\.SIN",
    "MUFU.COS": r"\bMUFU\.COS",
    "LDGSTS": r"\bLDGSTS",
    "LDSM": r"\bLDSM",
    "local": r"\b(?:LDL|STL)\b",
    "multicast": r"\bUBLKCP\S*\.MULTICAST",
    "fences of the GPU": r"\bMEMBAR\.ALL\.GPU",
    "atomics": r"\s(?:ATOMG?|REDG?|ATOMS)\.",
}


def count_instructions(sass: str) -> dict[str, int]:
    return {name: len(re.findall(pattern, sass)) for name, pattern in INSTRUCTIONS.items()}


def disassembler() -> Path | None:
    """A folder with cuobjdump and nvdisasm: the toolkit's, else Triton's."""
    folders = [Path(_nvcc.nvcc() or ".").parent]
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    return next(
        (f for f in folders if all(shutil.which(t, path=f) for t in ("cuobjdump", "nvdisasm"))),
        None,
    )


@pytest.fixture(scope="module", params=_nvcc.ARCHITECTURES)
def code(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    known = subprocess.run(
        [_nvcc.nvcc() or "", "--list-gpu-code"], capture_output=True, text=True
    ).stdout
    if f"sm_{request.param.rstrip('a')}" not in known.split():
        pytest.skip(f"this nvcc does not know sm_{request.param}")
    return request.param, *compile_for(request.param, tmp_path_factory.mktemp("cuda"))


def named(figures: dict[str, dict[str, int]], part: str) -> dict[str, int]:
    (found,) = [name for name in figures if part in name]
    result: dict[str, int] = figures[found]
    return result


@pytest.mark.long
def test_no_spills_no_stack_no_warnings(code: Any) -> None:
    _, _, figures, said = code
    assert all(f["spilled"] == f["stack"] == 0 for f in figures.values()), figures
    # C7508: setmaxnreg ignored; C7510, C7514, C7519, C7520: wgmma serialised, or registers moved
    # around it.
    assert not re.search(r"warning|C7\d\d\d|Potential Performance Loss|serialized", said), said


@pytest.mark.long
def test_registers_fit_the_threads_of_a_block(code: Any) -> None:
    arch, _, figures, _ = code
    for name in FORWARD + KEEPING + INTEGERS + CHAINS:
        assert named(figures, name)["registers"] <= 255  # 256 threads of 65,536
    if arch == "90a":
        for name in HOPPER:  # 384 threads; setmaxnreg then deals out 24 and 240
            assert named(figures, name)["registers"] <= 168


@pytest.mark.long
def test_matrix_and_sine_instructions(code: Any) -> None:
    """Counts follow from the loops: none is lost, none is on a slow path."""
    arch, _, figures, _ = code
    if disassembler() is None:
        pytest.skip("no cuobjdump and nvdisasm (in the CUDA toolkit, or in Triton's wheel)")
    assert all(f["local"] == f["atomics"] == 0 for f in figures.values())
    for name in FORWARD:
        # Of 8 columns; 4 rows of 16, 4 steps unrolled, 16 steps of output.
        blocks = 8 if "ELb0ELb0E" in name else 4
        f = named(figures, name)
        assert f["HMMA"] == 4 * 4 * blocks + 16
        assert f["LDSM"] == 4 * 4 + 16
        assert f["MUFU.SIN"] == 2 * 64  # first and hidden layer: 8 queries, 8 outputs
        assert f["LDGSTS"] >= 4 * blocks // 2
    for name in INTEGERS:
        # The same steps, of twice the k's; the output needs no matrix instruction.
        blocks = 8 if "ELb0E" in name else 4
        f = named(figures, name)
        assert f["IMMA"] == 4 * 4 * blocks and f["HMMA"] == 0
        assert f["LDSM"] == 4 * 4
        assert f["MUFU.SIN"] == 2 * 64
        assert f["LDGSTS"] >= 4 * blocks // 2
    for name in CHAINS:
        f = named(figures, name)
        assert f["HMMA"] == 4 * 4 * 4  # 4 rows of 16, 4 columns of 8, 4 steps unrolled
        assert f["MUFU.SIN"] == f["MUFU.COS"] == 2 * 64  # last layer, others
    if arch == "90a":
        for name in HOPPER:
            f = named(figures, name)
            chunks = 4 if "ELb0E" in name else 2
            assert f["HGMMA"] == f["HGMMA from registers"] == 16 * chunks
            assert f["MUFU.SIN"] == 128 + 128  # first and hidden layer: 2 queries, 64 outputs
            assert f["multicast"] >= 1
            # The cluster's barriers at the beginning and the end.
            assert f["fences of the GPU"] == 2


@pytest.mark.long
def test_the_library_loads_without_a_driver_and_says_what_is_missing(code: Any) -> None:
    _, path, _, _ = code
    library = cuda.interface(path)  # checks the struct's size, too
    if torch.cuda.is_available():
        return  # the kernels are tested by running them
    decode = _cuda.Decode()
    message = ctypes.create_string_buffer(400)
    decode.batch = 1
    decode.layers = 4
    decode.channels = 3
    assert library.diinn_forward(ctypes.byref(decode), message, len(message)) != 0
    assert b"failed: " in message.value


def test_compiled_once_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setenv("DIINN_FAST_NVCC_FLAGS", "-DTEST")  # not what a build of the package left
    monkeypatch.setattr(_nvcc, "command", lambda arch: calls.append(arch) or ["touch"])
    monkeypatch.setattr(_nvcc.subprocess, "run", fake_compiler)
    assert _nvcc.built("86") is None
    path = _nvcc.compile_library("86", cache_folder())
    assert path.parent == tmp_path / "diinn_fast" and _nvcc.built("86") == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-made is left
    assert calls == ["86"]


def test_other_flags_make_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _nvcc.name("90a")
    monkeypatch.setenv("DIINN_FAST_NVCC_FLAGS", "-DDIINN_CLUSTER=4 -DDIINN_AHEAD=1")
    assert _nvcc.name("90a") != plain
    assert {"-DDIINN_CLUSTER=4", "-DDIINN_AHEAD=1"} <= set(_nvcc.command("90a"))


def fake_compiler(command: list[str], **_: Any) -> Any:
    Path(command[-1]).write_text("library")
    return subprocess.CompletedProcess(command, 0, "", "")


def test_a_failing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\necho 'nvcc fatal : unsupported gpu architecture, error' >&2; exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(_nvcc.CompileError, match="unsupported gpu architecture"):
        _nvcc.compile_library("86", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for arch in _nvcc.ARCHITECTURES:
            _, figures, _ = compile_for(arch, Path(folder))
            for name, values in figures.items():
                short = re.sub(r"^_ZN5diinn\d+(\w+?)INS_\d+|E?vNS_6DecodeE$", "", name)
                print(
                    f"sm_{arch:4} {short:45}",
                    *(f"{k} {v}" for k, v in values.items() if v),
                    sep="  ",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
