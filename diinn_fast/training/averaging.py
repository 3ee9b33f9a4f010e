"""Exponential moving average of the weights: what is validated, exported, and under ``state_dict``
in checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Average with a memory of ``1 / (1 - decay)`` steps; shorter in the first steps,
    ``min(decay, (1 + n)/(10 + n))``.

    Args:
        decay: weight of the past; 0 keeps the last weights only.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=self._update)
        self.decay = decay

    @torch.no_grad()
    def _update(self, average: Sequence[Tensor], current: Sequence[Tensor], count: Any) -> None:
        n = int(count)
        torch._foreach_lerp_(list(average), list(current), 1 - min(self.decay, (1 + n) / (10 + n)))
