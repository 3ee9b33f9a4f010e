"""Counts what the CPU has to start on a GPU: operators of the framework that launch a kernel, and
launches of our own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FREE = {
    *("view", "_unsafe_view", "slice", "select", "t", "transpose", "permute", "expand", "alias"),
    *("unsqueeze", "squeeze", "detach", "as_strided", "unbind", "split", "split_with_sizes"),
    *("_reshape_alias", "lift_fresh", "set_", "_local_scalar_dense", "item", "sym_size"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "is_pinned"),
}
"""Operators that make views or take memory, and launch nothing."""


class Launches(TorchDispatchMode):
    """Inside, counts operators by name; ``launch`` counts one of our own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))

    def launch(self, name: str, count: int = 1) -> None:
        self.counts[name] += count

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Kernel:
    """Stands for a Triton kernel: ``kernel[grid](...)`` is counted and does nothing."""

    def __init__(self, name: str, counted: Launches) -> None:
        self.name = name
        self.counted = counted

    def __getitem__(self, grid: object) -> Any:
        return lambda *arguments, **options: self.counted.launch(self.name)


def zero_product(counted: Launches, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Stands for a matrix product with float32 sums, which on a GPU is one launch."""
    counted.launch("product")
    shape = (*x.shape[:-1], weight.shape[-1])
    return torch.empty((), dtype=torch.float32).expand(shape)
