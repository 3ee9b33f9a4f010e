"""Tile sizes per architecture, operand dtype and form. Every figure is from code generation;
nothing is timed yet.

The tables are what runs unless ``tuned`` finds that this machine has measured a faster one among
``candidates``.

What bounds them: q and the next q in registers (BM * H * 2 operands over the program's threads, of
255 registers each), the weights of one step times ``stages`` in shared memory, and the weights'
traffic: BM FLOP per byte read from L2, so that a large BM is worth a few spilled registers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """How a forward kernel is cut: TY x TX queries per program, BN outputs at a time; and how the
    kernel on LR-size content goes through them.
    """

    ty: int
    tx: int
    bn: int
    stages: int
    warps: int
    paired: bool = False
    """k and s of BN outputs are one product of 2 BN columns, which reads and awaits q once."""
    nested: bool = False
    """A loop for each layer, in which q stays the same: nothing is selected at its end, and q is
    stored once; but no weights are fetched ahead from one layer to the next."""


INTERPRETER = Tile(8, 16, 64, 1, 4, paired=True)
"""Few programs, since each costs a Python call per operation."""

SIXTEEN_BIT = {
    # K_i and Q_i for 64 outputs are 64 KiB a stage; two warpgroups of 64 queries. The compiler
    # takes operand A, q, from shared memory, where it stores it anew in every step: paired, a step
    # moves 387 KB, unpaired 467 KB, and either takes longer than the products.
    90: Tile(8, 16, 64, 2, 8, paired=True),
    # mma.sync, operand A in registers: pairing saves nothing, and spills more. 3 stages of 16 KiB:
    # 73 KiB, two programs on an 8.0, and within the 99 KiB of 8.6, 8.9 and 12.0.
    80: Tile(8, 8, 32, 3, 4),
}
FLOAT32 = {
    # Operands are twice as wide and split into two TF32 numbers: half the queries, 32 outputs at a
    # time. 8 warps would divide the outputs among them: 113 barriers a step instead of 32.
    90: Tile(8, 8, 32, 2, 4),
    # Nothing spilled, but 156 KiB: 8.0 only.
    80: Tile(4, 8, 64, 2, 8),
    # Within 99 KiB by loading weights without prefetching; with 32 outputs at a time 800 bytes
    # would be spilled.
    86: Tile(4, 8, 64, 1, 8),
}
DIRECT = {  # (architecture, bytes of an operand)
    # 600 bytes spilled, for half the weights' traffic of 64 queries, which spill 40.
    (90, 2): Tile(8, 16, 64, 2, 8),
    (90, 4): Tile(8, 8, 32, 2, 8),
    # 49 KiB, two programs per SM; 64 queries would spill 1.5 KiB.
    (80, 2): Tile(4, 8, 64, 2, 4),
    # Without prefetching nothing is spilled; with it, kilobytes.
    (80, 4): Tile(4, 8, 64, 1, 8),
}
KEEP = {  # 16-bit forward kernels that also write slabs: addresses take registers, so fewer queries
    # 8 warps would divide the outputs among them, in narrow products and with 26 barriers a step.
    # Nothing spilled in the loop, and 108 KiB: of two programs per SM one works while one waits.
    90: Tile(8, 8, 32, 2, 4, paired=True, nested=True),
    80: Tile(4, 8, 64, 2, 4),
}

INT8 = {  # forms content and modulation; q is kept in float32 until a layer is complete
    # Operand A in registers; 400 bytes spilled, since q in float32 takes half of them. Bound by
    # the instructions that a warp issues, of which half the queries or outputs would take more.
    90: Tile(8, 16, 64, 2, 8, paired=True, nested=True),
    # 48 KiB, and bound by shared memory, from which every warp reads all weights.
    80: Tile(8, 16, 64, 2, 8, nested=True),
}

# (family, bytes of an operand): what ``tune`` measures besides the tables' own choice.
CANDIDATES = {
    # Unpaired, and in a loop for each layer. Narrower products with one more stage; half
    # the queries, so that two programs share an SM and one's sines run during the other's products.
    (90, 2): [
        Tile(8, 16, 64, 2, 8),
        Tile(8, 16, 64, 2, 8, paired=True, nested=True),
        Tile(8, 16, 32, 3, 8, paired=True),
        Tile(8, 16, 32, 2, 8, paired=True),
        Tile(8, 8, 64, 2, 4, paired=True),
        Tile(8, 8, 64, 2, 4, paired=True, nested=True),
        Tile(8, 8, 64, 2, 8, paired=True),
        Tile(8, 8, 32, 2, 4, paired=True),
        Tile(8, 8, 32, 2, 4, paired=True, nested=True),
        Tile(8, 16, 64, 2, 8, paired=True),
    ],
    (90, 4): [
        Tile(8, 8, 32, 2, 8),
        Tile(8, 8, 32, 2, 4, paired=True, nested=True),
        Tile(8, 8, 32, 2, 8, paired=True),
        Tile(8, 8, 32, 1, 8),
        Tile(8, 8, 32, 3, 8),
        Tile(8, 16, 32, 2, 8),
    ],
    (80, 2): [
        Tile(8, 8, 32, 3, 4, paired=True),
        Tile(8, 8, 32, 2, 4),
        Tile(4, 8, 64, 2, 4),
        Tile(8, 16, 32, 3, 8),
        Tile(8, 8, 64, 2, 8),
    ],
    (80, 4): [Tile(4, 8, 64, 1, 8), Tile(4, 8, 64, 2, 8), Tile(4, 8, 64, 1, 4)],
    (90, 1): [
        Tile(8, 16, 64, 3, 8, paired=True, nested=True),
        Tile(8, 8, 64, 2, 4, paired=True, nested=True),
        Tile(8, 16, 64, 2, 8, nested=True),
    ],
    (80, 1): [Tile(8, 8, 64, 2, 4, nested=True)],
    (0, 1): [INTERPRETER._replace(paired=False)],
    (0, 2): [INTERPRETER._replace(ty=16, tx=8), INTERPRETER._replace(nested=True)],
    (0, 4): [INTERPRETER._replace(ty=16, tx=8), INTERPRETER._replace(paired=False)],
}


class Step(NamedTuple):
    """How ``backward.step_back`` is cut: BM queries by BN columns, BK terms at a time."""

    bm: int
    bn: int
    bk: int
    stages: int
    warps: int


def step_back(dtype: torch.dtype, width: int) -> Step:
    """48 KiB in 16 bit, for all architectures: it is bound by memory, not by products. float32:
    half the queries.
    """
    found = Step(128, 128, 32, 3, 8) if dtype.itemsize == 2 else Step(64, 128, 32, 2, 8)
    return found._replace(bn=divisor(width, found.bn), bk=divisor(width, found.bk))


def step_back_constants(step: Step) -> dict[str, int]:
    """The kernel's compile-time arguments for a tile."""
    return {"BM": step.bm, "BN": step.bn, "BK": step.bk, "STAGES": step.stages}


def candidates(
    form: str, architecture: int, dtype: torch.dtype, width: int, keep: bool = False
) -> list[Tile]:
    """Tiles of the same summation order as ``choose``'s, which comes first.

    A sum runs over its terms in steps of 16 (TF32: 8), one after the other, whatever the tile; only
    float32's three products per product are added up per block of BN, hence BN is kept there. On
    9.0, 64 queries and more use the same instruction. ``tune`` measures besides that the results
    are the same to the bit.
    """
    chosen = choose(form, architecture, dtype, width, keep)
    found = [
        t._replace(bn=divisor(width, t.bn))
        for t in CANDIDATES[_family(architecture), dtype.itemsize]
    ]
    # Where there is nothing to pair, or no other order of loops.
    if form != "content":
        found = [t._replace(paired=chosen.paired) for t in found]
    if form == "direct":
        found = [t._replace(nested=chosen.nested) for t in found]
    # Three products per product are added up per block of BN, and int8's RGB layer too.
    if dtype.itemsize != 2:
        found = [t for t in found if t.bn == chosen.bn]
    return list(dict.fromkeys([chosen, *found]))


def choose(
    form: str, architecture: int, dtype: torch.dtype, width: int, keep: bool = False
) -> Tile:
    """The tile for a form, an architecture (10 * major + minor, 0 for the interpreter), a dtype and
    a hidden width.

    ``keep``: the kernel also writes what the backward needs. Architectures newer than 9.0 run as
    8.x do.
    """
    # Slabs take registers for addresses, whatever the form.
    family = _family(architecture)
    if architecture == 0:
        tile = INTERPRETER
    elif keep and dtype.itemsize == 2:
        tile = KEEP[family]
    elif form == "direct":
        tile = DIRECT[family, dtype.itemsize]
    elif dtype == torch.int8:
        tile = INT8[family]
    elif dtype.itemsize == 2:
        tile = SIXTEEN_BIT[family]
    else:
        tile = FLOAT32.get(architecture, FLOAT32[86])
    if form != "content":
        tile = tile._replace(paired=False)
    return tile._replace(bn=divisor(width, tile.bn))


def _family(architecture: int) -> int:
    return architecture if architecture in (0, 90) else 80


def divisor(length: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``length``."""
    while length % most:
        most //= 2
    return most
