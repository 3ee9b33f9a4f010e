"""Which sample values are black and white to the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleRange:
    """A part of what samples can hold, that the network sees as [0, 1].

    Attributes:
        low, high: as sources give samples: integers divided by the largest of their type, floats as
            they are.
    """

    low: float = 0.0
    high: float = 1.0

    def to_unit(self, values: Tensor) -> Tensor:
        """Samples in [0, 1]; those outside the range are cut off at its ends."""
        if self == FULL:
            return values
        if self.low == self.high:
            return torch.zeros_like(values)
        return ((values - self.low) / (self.high - self.low)).clamp_(0, 1)

    def from_unit(self, values: Tensor) -> Tensor:
        """What is in [0, 1] as samples again."""
        if self == FULL:
            return values
        return values * (self.high - self.low) + self.low


FULL = SampleRange()
"""All that integers can hold; floats in [0, 1]."""
