"""What the compiler makes of the Triton kernels, without a GPU: registers, spills, shared memory,
instructions, time.

Triton compiles for a named architecture and its wheel carries NVIDIA's assembler and disassembler.
In a process of its own, because the interpreter of the other tests excludes code generation:

    python tests/kernels/test_triton_codegen.py            # prints the figures as a table
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


class Case(NamedTuple):
    """A kernel as it is launched for a 256-wide, 4-layer decoder on 64 features, and the most it
    may spill.
    """

    # content, modulation, direct: forward; split, step_back, sum_queries: backward
    kernel: str
    architecture: int
    dtype: str
    mode: int = 3
    init_q: bool = False
    keep: bool = False
    precision: str = "tf32x3"
    spilled: int = 0  # bytes of stack per thread

    @property
    def name(self) -> str:
        parts = [self.kernel, f"sm_{self.architecture}", self.dtype, f"mode{self.mode}"]
        parts += (
            ["init_q"] * self.init_q + ["keep"] * self.keep + ["tf32"] * (self.precision == "tf32")
        )
        return "-".join(parts)


# The limits are the worst of Triton 3.6.0, 3.8.0 and 3.9.0, and a tenth.
CASES = [
    Case("content", 90, "fp16"),
    Case("content", 90, "fp16", mode=4),
    Case("content", 90, "fp16", keep=True, spilled=144),
    Case("content", 90, "fp32", spilled=720),
    Case("content", 90, "fp32", precision="tf32", spilled=80),
    Case("modulation", 90, "bf16", mode=1, spilled=80),
    Case("direct", 90, "fp16", spilled=720),
    Case("direct", 90, "bf16", mode=2, init_q=True, spilled=696),
    Case("direct", 90, "fp32", init_q=True, spilled=680),
    Case("content", 80, "fp16", spilled=320),
    Case("content", 80, "fp32", spilled=72),
    Case("content", 86, "fp32", spilled=248),
    Case("content", 120, "bf16", spilled=320),
    Case("direct", 80, "fp16", spilled=48),
    Case("direct", 80, "bf16", mode=2, init_q=True, spilled=264),
    Case("direct", 80, "fp32", mode=1, spilled=48),
    Case("split", 80, "fp16"),
    Case("step_back", 80, "fp16", spilled=72),
    Case("step_back", 86, "fp32"),
    Case("step_back", 90, "bf16", spilled=120),
    Case("sum_queries", 90, "fp16"),
]

SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Most shared memory of a program, bytes."""
SECONDS = 60
"""Most time for one kernel, on one slow core; 2 to 5 are usual."""


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--json"]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result: dict[str, dict[str, Any]] = json.loads(run.stdout)
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_code(case: Any, figures: dict[str, dict[str, Any]]) -> None:
    code = figures[case.name]
    assert code["registers"] <= 255
    assert code["stack"] <= case.spilled
    assert code["shared"] <= SHARED[case.architecture]
    assert code["seconds"] <= SECONDS
    if case.kernel in ("content", "modulation", "direct", "step_back"):
        assert code["HGMMA" if case.architecture == 90 else "HMMA"] > 0
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


# -- the child process -----------------------------------------------------------------------------


def signature(case: Case) -> tuple[Any, ...]:
    """The jitted function, constants, compiler options and pointer types of a case, as ``launch``
    passes them.
    """
    from diinn_fast.kernels.backward import split, step_back, sum_queries
    from diinn_fast.kernels.direct import direct
    from diinn_fast.kernels.projected import projected

    from diinn_fast.kernels import launch, tiles

    fast = case.dtype != "fp32" or case.precision == "tf32"
    if case.kernel == "split":
        return (
            split,
            {"WIDTH": 256, "CARRY": True, "MODULATION": False, "FAST": fast, "BLOCK": 1024},
            {},
        )
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[case.dtype]
    if case.kernel == "step_back":
        tile = tiles.step_back(dtype, 256)
        constants = {"WIDTH": 256, "MODULATION": False, "PRECISION": case.precision, "FAST": fast}
        options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
        return step_back, constants | tiles.step_back_constants(tile), options
    if case.kernel == "sum_queries":
        return sum_queries, {"FEATURES": 256, "BF": 256, "BQ": 16}, {}
    tile = tiles.choose(case.kernel, case.architecture, dtype, 256, case.keep)
    channels = 27 if case.mode == 4 else 3
    constants = {
        "WIDTH": 256,
        "LAYERS": 4,
        "CHANNELS": channels,
        "POINTS": False,
        "KEEP": case.keep,
    }
    constants |= {"PRECISION": case.precision, "FAST": fast} | launch.tile_constants(tile, channels)
    absent = ["index", "offset"] + ([] if case.keep else ["slab_s", "slab_k", "slab_q"])
    if case.kernel == "direct":
        constants |= launch.direct_constants(64, case.mode, case.init_q)
        absent += [] if case.init_q else ["first", "first_bias"]
    else:
        constants["MODULATION"] = case.kernel == "modulation"
    return (
        direct if case.kernel == "direct" else projected,
        constants | dict.fromkeys(absent),
        launch.options(tile),
    )


FLOAT = {
    "position",
    "position_bias",
    "hidden_bias",
    "last_bias",
    "content_bias",
    "first",
    "first_bias",
    "offset",
}
FLOAT |= {"slab_s", "dq", "carry", "s", "target"}
NUMBERS = {"scale_y": "fp32", "scale_x": "fp32", "ratio": "fp32"}
INDICES = {"row_start": "*i64", "column_start": "*i64", "index": "*i64"}
INTEGERS = {
    "h",
    "w",
    "height",
    "width",
    "origin_y",
    "origin_x",
    "grid_rows",
    "grid_columns",
    "y0",
    "x0",
    "rows",
}
INTEGERS |= {"columns", "images", "queries", "pitch", "target_pitch", "i0", "j0", "down", "span"}


def kind(name: str, operand: str) -> str:
    if name in INTEGERS:
        return "i32"
    return NUMBERS.get(name) or INDICES.get(name) or ("*fp32" if name in FLOAT else f"*{operand}")


def measure(case: Case) -> dict[str, float]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants, options = signature(case)
    kinds = {n: "constexpr" if n in constants else kind(n, case.dtype) for n in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(function.arg_names)
        if kinds[n].startswith("*")
    }
    start = time.perf_counter()
    source = ASTSource(function, kinds, constants, aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", case.architecture, 32), options=options
    )
    seconds = time.perf_counter() - start
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.check_output(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], text=True
        )
        sass = subprocess.check_output([tools / "nvdisasm", "-c", file.name], text=True)
    resources = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    figures: dict[str, float] = {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]),
    }
    figures |= {"shared": compiled.metadata.shared, "seconds": round(seconds, 1)}
    for name, pattern in {
        **{
            name: rf"\b{re.escape(name)}\b"
            for name in ("HGMMA", "HMMA", "MUFU.SIN", "MUFU.COS", "LDGSTS", "LDL", "STL")
        },
        "wide integer products": r"IMAD\.(WIDE\.U32|HI)",
        "atomics": r"\b(ATOM|RED|ATOMG)\b",
    }.items():
        figures[name] = len(re.findall(pattern, sass))
    products = set(re.findall(r"mul\.f32\s+(%\w+),", compiled.asm["ptx"]))
    addends = re.findall(r"fma\.rn\.f32\s+%\w+, %\w+, %\w+, (%\w+);", compiled.asm["ptx"])
    figures["fused by choice"] = sum(addend in products for addend in addends)
    return figures


def main() -> None:
    as_json = "--json" in sys.argv
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        results = {}
        for case in CASES:
            results[case.name] = measure(case)
            if not as_json:
                values = results[case.name]
                if len(results) == 1:
                    print(f"{'kernel':40}", *(f"{name.split()[0]:>9}" for name in values))
                print(f"{case.name:40}", *(f"{value:9}" for value in values.values()), flush=True)
    if as_json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
