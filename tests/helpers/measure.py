"""How far two tensors are apart, for tests of every package."""

from __future__ import annotations

from torch import Tensor


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.detach().double().square().mean().sqrt())


def relative(got: Tensor, want: Tensor) -> float:
    """The largest difference, as a part of the largest expected value."""
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))
