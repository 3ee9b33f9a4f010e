"""The one table of DIINN's formulations (modes), and the rule which form of the operator decodes
them.

A new formulation is an entry here, its equations in ``reference`` and ``plain``, and what the
backends compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

FORMS = ("content", "modulation", "direct")
"""Forms of the decode operator, see ``diinn_fast.ops``."""


@dataclass(frozen=True)
class Formulation:
    """What a mode computes: k_i = relu(K_i [r, x]), q_i = k_i sin(Q_i q_{i-1}), and the last layer.

    K_0 takes the content x alone; ``init_q`` puts a sine layer of the position before everything.
    """

    mode: int
    recurrent_k: bool
    """The recurrent input r is k_{i-1}; else q_{i-1}."""
    content: bool = True
    """Layers after the first take the content x beside r; else r alone."""
    kernel: int = 1
    """Size of the last layer's convolution, on the HR grid."""
    init_q: bool = False

    @property
    def needs_grid(self) -> bool:
        """Whether an output pixel depends on its HR neighbours, so that points cannot be asked
        for.
        """
        return self.kernel > 1

    @property
    def taps(self) -> int:
        """Products of the last layer per query and output channel."""
        return self.kernel**2

    @property
    def least_side(self) -> int:
        """Fewest HR rows and columns: reflection at the border needs a neighbour."""
        return 2 if self.needs_grid else 1

    @property
    def projected_form(self) -> str:
        """The form whose source is computed once per LR pixel."""
        return "modulation" if self.recurrent_k else "content"

    def form(self, lr: Sequence[int], queries: int) -> str:
        """The form that decodes an image of LR size (h, w) at so many HR pixels or points.

        Of a window, ``queries`` are those of the whole output, never of the window: windows must
        agree with the whole to the last bit.
        """
        if self.init_q or queries < lr[0] * lr[1]:
            return "direct"  # nothing can be projected, or projecting would cost more than it saves
        return self.projected_form

    def modulation_inputs(self, layer: int, width: int, content: int) -> int:
        """Input channels of K_i."""
        if layer == 0:
            return content
        return width + content if self.content else width


FORMULATIONS = {
    1: Formulation(1, recurrent_k=True, content=False),  # eq. 6
    2: Formulation(2, recurrent_k=True),  # eq. 7
    3: Formulation(3, recurrent_k=False),  # eq. 4
    4: Formulation(4, recurrent_k=False, kernel=3),
}


def formulation(mode: int, init_q: bool = False) -> Formulation:
    """The formulation of a mode, with or without init_q; ValueError for an unknown mode."""
    if mode not in FORMULATIONS:
        *first, last = FORMULATIONS
        known = f"{', '.join(map(str, first))} or {last}"
        raise ValueError(f"mode must be {known}, got {mode!r}")
    return replace(FORMULATIONS[mode], init_q=bool(init_q))


def modes_with(*, content: bool, kernel: int) -> list[int]:
    """Modes whose tensors have these shapes: modes 2 and 3 cannot be told apart by theirs."""
    return [mode for mode, f in FORMULATIONS.items() if f.content == content and f.kernel == kernel]
