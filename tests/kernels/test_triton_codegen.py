"""What the compiler makes of the Triton kernels, without a GPU: registers, spills, shared memory,
instructions, time.

By `bench.triton_code` in a process of its own, because the interpreter of the other tests excludes
code generation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import triton_code
from bench.triton_code import CASES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Most shared memory of a program, bytes."""


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "bench.triton_code", "--json"]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result: dict[str, dict[str, Any]] = json.loads(run.stdout)
    return result


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_code(case: Any, figures: dict[str, dict[str, Any]]) -> None:
    code = figures[case.name]
    assert code["registers"] <= 255
    assert code["stack"] <= case.spilled
    assert code["shared"] <= SHARED[case.architecture]
    if case.kernel in ("content", "modulation", "direct", "step_back"):
        kind = "I" if case.dtype == "int8" else "H"
        assert code[f"{kind}GMMA" if case.architecture == 90 else f"{kind}MMA"] > 0
    if case.kernel in ("content", "modulation", "direct"):
        # In a b + c d the compiler fuses either product, depending on the tile: bits would differ
        # between tiles.
        assert code["fused by choice"] == 0
    fast = case.dtype != "fp32" or case.precision == "tf32"
    if case.kernel != "sum_queries":
        # The slow path of libdevice's sine multiplies by hundreds of bits of 2/pi in 64-bit
        # integers.
        assert (code["MUFU.SIN"] > 0) == fast
        assert code["wide integer products"] < 150
    if case.kernel in ("split", "step_back"):
        assert (code["MUFU.COS"] > 0) == fast
    assert code["atomics"] == 0


LOOP = """
        /*0000*/                   HGMMA.64x128x16.F32 R24, gdesc[UR20], RZ, !UPT ;
.L_x_1:
        /*0010*/                   LDS.128 R4, [R2] ;
.L_x_2:
        /*0020*/                   HGMMA.64x128x16.F32 R24, gdesc[UR20], R24 ;
        /*0030*/                   HGMMA.64x128x16.F32 R24, R8, gdesc[UR20], R24 ;
        /*0040*/              @P1  BAR.SYNC 0x0 ;
        /*0050*/                   SEL R3, R4, R5, P2 ;
        /*0060*/                   STSM.16.M88.4 [R2], R4 ;
        /*0070*/              @!P0 BRA `(.L_x_2) ;
        /*0080*/                   STS.64 [R2], R4 ;
        /*0090*/              @!P0 BRA `(.L_x_1) ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3) ;
"""


def test_a_step_is_the_inner_loop_of_the_products() -> None:
    step = triton_code.Step.of(LOOP)
    assert len(step.body) == 6
    assert step.count("^HGMMA") == 2 and step.count("^BAR") == step.count("^SEL") == 1
    assert [line.split()[0] for line in step.around] == ["LDS.128", "STS.64", "BRA"]


def test_shared_memory_moved_by_two_warpgroups() -> None:
    """B of every product, 128 columns by 16 terms; A, 64 rows, of one alone; and a warp's store."""
    step = triton_code.Step.of(LOOP)
    assert triton_code.shared_bytes(step.body, warps=8) == 2 * 2 * 16 * (2 * 128 + 64) + 8 * 512
    assert triton_code.shared_bytes(step.around, warps=8) == 8 * (512 + 256)
    assert triton_code.products(step.body, warps=8) == 2 * 2 * 64 * 128 * 16
