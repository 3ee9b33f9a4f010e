"""What the compiler makes of the Triton kernels, without a GPU: registers, spills, shared memory,
instructions; and of the structures that a tile chooses among, what a step of the hidden layers
costs by prediction.

    python -m bench.triton_code                # the kernels as they are launched
    python -m bench.triton_code --structures   # a table of tiles, as in docs/kernels/triton.md

Triton compiles for a named architecture and its wheel carries NVIDIA's assembler and disassembler.
Each kernel takes ten seconds or more of a core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch


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
        """Such as ``content-sm_90-fp16-mode3-keep``."""
        parts = [self.kernel, f"sm_{self.architecture}", self.dtype, f"mode{self.mode}"]
        parts += (
            ["init_q"] * self.init_q + ["keep"] * self.keep + ["tf32"] * (self.precision == "tf32")
        )
        return "-".join(parts)


# The limits are the worst of Triton 3.6.0, 3.8.0 and 3.9.0, and a tenth.
CASES = [
    Case("content", 90, "fp16", spilled=80),
    Case("content", 90, "fp16", mode=4, spilled=80),
    Case("content", 90, "fp16", keep=True, spilled=144),
    Case("content", 90, "fp32", spilled=848),
    Case("content", 90, "fp32", precision="tf32", spilled=768),
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
    Case("content", 90, "int8", spilled=464),
    Case("modulation", 90, "int8", mode=1, spilled=256),
    Case("content", 80, "int8", spilled=400),
    Case("content", 120, "int8", spilled=600),
    Case("split", 80, "fp16"),
    Case("step_back", 80, "fp16", spilled=72),
    Case("step_back", 86, "fp32"),
    Case("step_back", 90, "bf16", spilled=120),
    Case("sum_queries", 90, "fp16"),
]

FLOAT = {
    *("position", "position_bias", "units", "hidden_bias", "last_bias", "content_bias"),
    *("first", "first_bias", "offset", "slab_s", "dq", "carry", "s", "target"),
}
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "int8": torch.int8,
}
NUMBERS = {"scale_y": "fp32", "scale_x": "fp32", "ratio": "fp32"}
INDICES = {"row_start": "*i64", "column_start": "*i64", "index": "*i64"}
INTEGERS = {
    *("h", "w", "height", "width", "origin_y", "origin_x", "grid_rows", "grid_columns"),
    *("y0", "x0", "rows", "columns", "images", "queries", "pitch", "target_pitch"),
    *("i0", "j0", "down", "span"),
}
COUNTED = {
    **{
        name: rf"\b{re.escape(name)}\b"
        for name in (
            "HGMMA",
            "HMMA",
            "IGMMA",
            "IMMA",
            "MUFU.SIN",
            "MUFU.COS",
            "LDGSTS",
            "LDL",
            "STL",
        )
    },
    "wide integer products": r"IMAD\.(WIDE\.U32|HI)",
    "atomics": r"\b(ATOM|RED|ATOMG)\b",
}
"""Instructions, by what they are called in the table."""


# -- compiling -------------------------------------------------------------------------------------


@dataclass
class Code:
    """A compiled kernel."""

    registers: int
    stack: int
    shared: int
    seconds: float
    ptx: str
    sass: str


def compile_case(case: Case, tile: Any = None) -> Code:
    """``tile``: this one in place of the tables'."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants, options = signature(case, tile)
    kinds = {n: "constexpr" if n in constants else kind(n, case) for n in function.arg_names}
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
    # The wheel's own tools read the machine code.
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.check_output(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], text=True
        )
        sass = subprocess.check_output(
            [tools / "nvdisasm", "-c", file.name], text=True, stderr=subprocess.DEVNULL
        )
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    shared = int(compiled.metadata.shared)
    ptx = str(compiled.asm["ptx"])
    return Code(resources["REG"], resources["STACK"], shared, round(seconds, 1), ptx, sass)


def signature(case: Case, tile: Any = None) -> tuple[Any, ...]:
    """The jitted function, constants and compiler options of a case, as ``launch`` passes them."""
    from diinn_fast.kernels import tiles

    fast = case.dtype != "fp32" or case.precision == "tf32"
    dtype = DTYPES[case.dtype]
    if case.kernel in ("split", "step_back", "sum_queries"):
        return _of_backward(case, dtype, fast)
    tile = tile or tiles.choose(case.kernel, case.architecture, dtype, 256, case.keep)
    return _of_forward(case, tile, fast)


def _of_backward(case: Case, dtype: torch.dtype, fast: bool) -> tuple[Any, ...]:
    from diinn_fast.kernels.backward import split, step_back, sum_queries

    from diinn_fast.kernels import tiles

    constants: dict[str, Any] = {"WIDTH": 256, "MODULATION": False, "FAST": fast}
    if case.kernel == "split":
        return split, constants | {"CARRY": True, "BLOCK": 1024}, {}
    if case.kernel == "sum_queries":
        return sum_queries, {"FEATURES": 256, "BF": 256, "BQ": 16}, {}
    step = tiles.step_back(dtype, 256)
    constants |= {"PRECISION": case.precision} | tiles.step_back_constants(step)
    options = {"num_warps": step.warps, "num_stages": step.stages, "enable_fp_fusion": True}
    return step_back, constants, options


def _of_forward(case: Case, tile: Any, fast: bool) -> tuple[Any, ...]:
    from diinn_fast.kernels.direct import direct
    from diinn_fast.kernels.projected import projected

    from diinn_fast.kernels import launch

    channels = 27 if case.mode == 4 else 3
    if case.dtype == "int8":
        return _of_integers(case, tile, channels)
    constants: dict[str, Any] = {"WIDTH": 256, "LAYERS": 4, "CHANNELS": channels, "POINTS": False}
    constants |= {"KEEP": case.keep, "PRECISION": case.precision, "FAST": fast}
    constants |= launch.tile_constants(tile, channels)
    absent = ["index", "offset"] + ([] if case.keep else ["slab_s", "slab_k", "slab_q"])
    options = launch.options(tile)
    if case.kernel == "direct":
        constants |= launch.direct_constants(64, case.mode, case.init_q)
        absent += [] if case.init_q else ["first", "first_bias"]
        return direct, constants | dict.fromkeys(absent), options
    constants |= launch.projected_constants(tile, case.kernel == "modulation")
    return projected, constants | dict.fromkeys(absent), options


def _of_integers(case: Case, tile: Any, channels: int) -> tuple[Any, ...]:
    from diinn_fast.kernels.quantised import quantised

    from diinn_fast.kernels import launch, launch_quantised

    constants = {"WIDTH": 256, "LAYERS": 4, "CHANNELS": channels, "POINTS": False}
    constants |= launch_quantised.constants(tile, case.kernel == "modulation")
    return quantised, constants | dict.fromkeys(["index", "offset"]), launch.options(tile)


def kind(name: str, case: Case) -> str:
    """Type of a kernel's argument."""
    if name in INTEGERS:
        return "i32"
    if known := NUMBERS.get(name) or INDICES.get(name):
        return known
    if case.dtype == "int8":
        return {"source": "*fp16", "out": "*fp16", "hidden": "*i8"}.get(name, "*fp32")
    return "*fp32" if name in FLOAT else f"*{case.dtype}"


def measure(case: Case) -> dict[str, float]:
    """The figures that tests look at."""
    code = compile_case(case)
    figures: dict[str, float] = {"registers": code.registers, "stack": code.stack}
    figures |= {"shared": code.shared, "seconds": code.seconds}
    for name, pattern in COUNTED.items():
        figures[name] = len(re.findall(pattern, code.sass))
    # a b + c d, of which the compiler chose the product to fuse.
    products = set(re.findall(r"mul\.f32\s+(%\w+),", code.ptx))
    addends = re.findall(r"fma\.rn\.f32\s+%\w+, %\w+, %\w+, (%\w+);", code.ptx)
    figures["fused by choice"] = sum(addend in products for addend in addends)
    return figures


# -- a step of the hidden layers -------------------------------------------------------------------

SHARED_BYTES = 128
ISSUED = 4
MMA_16_BIT = {90: 2048, 80: 1024}
"""Of an SM, a clock: bytes of shared memory, instructions of warps, products of 16-bit numbers (of
8-bit integers twice as many)."""
FETCH = 64
LATENCY = 700
"""Bytes of weights from L2 a clock and SM, and clocks until the first arrive: where a loop begins
with nothing fetched ahead."""
MATRIX = r"^[HI]G?MMA"
"""Instructions that multiply matrices: of 16-bit numbers or TF32, of 8-bit integers."""
MOVED = {
    r"^STSM\.\S*\.4\b|^STSM\S*M88\.4": 512,
    r"^LDSM\S*\.4\b": 512,
    r"^LDSM\S*\.2\b": 256,
    r"^LDGSTS\S*\.128\b": 512,
    r"^LDGSTS\S*\.64\b": 256,
    r"^LDS\.128\b|^STS\.128\b": 512,
    r"^LDS\.64\b|^STS\.64\b": 256,
    r"^LDS\b|^STS\b": 128,
}
"""Bytes of shared memory that a warp's instruction moves; the first pattern that fits counts."""


@dataclass
class Step:
    """The loop that makes BN outputs of a layer for all queries of a program, per warp."""

    body: list[str]
    around: list[str]
    """What is done between two of these loops, once a layer, where they are nested."""

    @classmethod
    def of(cls, sass: str) -> Step:
        """The innermost loop with the most matrix instructions."""
        lines, loops = _loops(sass)
        inner = [
            loop
            for loop in loops
            if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)
        ]
        a, b = max(inner, key=lambda loop: _count(lines[slice(*loop)], MATRIX))
        outer = [o for o in loops if o != (a, b) and o[0] <= a and b <= o[1]]
        start, stop = min(outer, key=lambda o: o[1] - o[0], default=(a, b))
        return cls(lines[a:b], lines[start:a] + lines[b:stop])

    def count(self, pattern: str) -> int:
        """Instructions of a warp whose text begins so."""
        return _count(self.body, pattern)


def _count(lines: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for line in lines)


def _loops(sass: str) -> tuple[list[str], set[tuple[int, int]]]:
    """The instructions without predicates, and from which to which each backward branch jumps."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in sass.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*);", line):
            if target := re.search(r"\bBRA\b.*\(\.(L_x_\d+)\)", found[1]):
                branches.append((len(lines), target[1]))
            lines.append(found[1].strip())
    back = {(labels[to], at + 1) for at, to in branches if labels.get(to, at + 1) <= at}
    return lines, back


def shared_bytes(lines: list[str], warps: int) -> int:
    """What all warps of a program move through shared memory by these instructions."""
    total = 0
    for line in lines:
        if found := re.match(r"([HI])GMMA\.(\d+)x(\d+)x(\d+)\S*\s+R\d+,\s*(\S+)", line):
            m, n, k = (int(v) for v in found.groups()[1:4])
            # A warpgroup's instruction; A only if it does not come from registers.
            rows = n + (m if found[5].startswith("gdesc") else 0)
            total += (2 if found[1] == "H" else 1) * rows * k * warps // 4
            continue
        total += next((v * warps for p, v in MOVED.items() if re.match(p, line)), 0)
    return total


def products(lines: list[str], warps: int) -> int:
    """Multiplications and additions of all warps' matrix instructions."""
    total = 0
    for line in lines:
        if found := re.match(r"[HI]GMMA\.(\d+)x(\d+)x(\d+)", line):
            m, n, k = (int(v) for v in found.groups())
            total += m * n * k * warps // 4
        elif re.match(r"IMMA\.16832", line):
            total += 16 * 8 * 32 * warps
        elif re.match(r"HMMA\.16816", line):
            total += 16 * 8 * 16 * warps
        elif re.match(r"HMMA\.1688", line):
            total += 16 * 8 * 8 * warps
    return total


def predicted(code: Code, tile: Any, architecture: int) -> dict[str, Any]:
    """Of a step of the hidden layers, scaled to 128 queries and 64 outputs: what is moved and
    issued, and how many clocks each takes an SM at least.
    """
    step = Step.of(code.sass)
    integers = step.count(r"^IG?MMA") > 0
    per_step = 128 * 64 / (tile.ty * tile.tx * tile.bn)
    steps = 256 // tile.bn  # of a layer
    moved = shared_bytes(step.body, tile.warps)
    # Between two loops: q is stored, and the first weights are waited for.
    wait = 0.0
    if tile.nested:
        moved += shared_bytes(step.around, tile.warps) // steps
        wait = (LATENCY + 2 * tile.bn * 256 * (1 if integers else 2) / FETCH) / steps
    rate = MMA_16_BIT[90 if architecture == 90 else 80] * (2 if integers else 1)
    clocks = {
        "products": products(step.body, tile.warps) / rate,
        "shared": moved / SHARED_BYTES,
        "issue": len(step.body) * tile.warps / ISSUED,
    }
    return {
        "from registers": step.count(r"^[HI]GMMA\S*\s+R\d+, R\d") or step.count(r"^[HI]MMA"),
        "from shared memory": step.count(r"^[HI]GMMA\S*\s+R\d+, gdesc"),
        "barriers": step.count(r"^BAR"),
        "selects": step.count(r"^(SEL|PRMT)"),
        "instructions": len(step.body),
        "spill loads and stores": step.count(r"^(LDL|STL)"),
        "moved KB": moved * per_step / 1024,
        "clocks": {name: value * per_step for name, value in clocks.items()},
        "waiting": wait * per_step,
    }


def structures() -> list[tuple[Case, Any]]:
    """What the table compares: today's and earlier defaults, and what tuning may choose."""
    from diinn_fast.kernels.tiles import Tile

    found = []
    for flags in ({}, {"paired": True}, {"nested": True}, {"paired": True, "nested": True}):
        found.append((Case("content", 90, "fp16"), Tile(8, 16, 64, 2, 8, **flags)))
    for flags in ({"paired": True}, {"paired": True, "nested": True}):
        found.append((Case("content", 90, "fp16"), Tile(8, 8, 32, 2, 4, **flags)))
    kept = Case("content", 90, "fp16", keep=True)
    for warps, flags in ((8, {}), (8, {"paired": True}), (4, {"paired": True})):
        found.append((kept, Tile(8, 8, 64, 2, warps, **flags)))
    for outputs in (64, 32):
        found.append((kept, Tile(8, 8, outputs, 2, 4, paired=True, nested=True)))
    for warps, flags in ((8, {}), (4, {}), (4, {"paired": True, "nested": True})):
        found.append((Case("content", 90, "fp32"), Tile(8, 8, 32, 2, warps, **flags)))
    for flags in ({}, {"paired": True}, {"nested": True}):
        found.append((Case("content", 80, "fp16"), Tile(8, 8, 32, 3, 4, **flags)))
    integers = {"nested": True}
    for cut in ((8, 16, 64, 2, 8), (8, 16, 64, 3, 8), (8, 8, 64, 2, 4)):
        found.append((Case("content", 90, "int8"), Tile(*cut, paired=True, **integers)))
    found.append((Case("content", 90, "int8"), Tile(8, 16, 64, 2, 8, **integers)))
    for cut in ((8, 16, 64, 2, 8), (8, 8, 64, 2, 4), (8, 8, 32, 3, 4)):
        found.append((Case("content", 80, "int8"), Tile(*cut, **integers)))
    return found


def row(case: Case, tile: Any, code: Code) -> str:
    """A line of the table."""
    found = predicted(code, tile, case.architecture)
    name = f"sm_{case.architecture} {case.dtype}{' keep' if case.keep else ''}"
    order = " and ".join(
        word for word, said in (("paired", tile.paired), ("nested", tile.nested)) if said
    )
    cut = f"{tile.ty * tile.tx} x {tile.bn}, {tile.stages} stages, {tile.warps} warps"
    operand = f"{found['from registers']} / {found['from shared memory']}"
    clocks = found["clocks"]
    cells = [
        *(name, order or "neither", cut, code.registers, code.stack, code.shared >> 10, operand),
        *(found["barriers"], found["selects"], found["spill loads and stores"]),
        *(found["instructions"], f"{found['moved KB']:.0f}"),
        *(f"{value:,.0f}" for value in clocks.values()),
        f"{max(clocks.values()) + found['waiting']:,.0f}",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


HEADINGS = (
    *("kernel", "structure", "queries x outputs", "registers", "stack B", "shared KiB"),
    *("products with A from registers / shared memory", "barriers", "selects", "spills"),
    *("instructions", "moved KB", "clocks: products", "shared memory", "issue", "at least"),
)


def main(arguments: list[str] | None = None) -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--structures", action="store_true", help="the table of tiles")
    parser.add_argument("--json", action="store_true", help="the kernels' figures for a program")
    parser.add_argument("--only", default="", help="lines whose kernel and tile contain this")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        if options.structures:
            print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
            for case, tile in structures():
                if options.only in f"{case.name} {tile}":
                    print(row(case, tile, compile_case(case, tile)), flush=True)
            return
        results = {}
        for case in CASES:
            if options.only not in case.name:
                continue
            results[case.name] = values = measure(case)
            if not options.json:
                if len(results) == 1:
                    print(f"{'kernel':40}", *(f"{name.split()[0]:>9}" for name in values))
                print(f"{case.name:40}", *(f"{value:9}" for value in values.values()), flush=True)
        if options.json:
            print(json.dumps(results))


if __name__ == "__main__":
    main()
