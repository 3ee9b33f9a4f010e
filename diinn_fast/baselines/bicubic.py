"""Bicubic interpolation (a = -0.5), as Pillow and MATLAB enlarge."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def bicubic(lr: Tensor, size: Sequence[int]) -> Tensor:
    """``[B, 3, h, w]`` to ``[B, 3, H, W]``; values may leave the input's range."""
    # Only with antialias does torch use a = -0.5; where it enlarges there is nothing to antialias.
    return F.interpolate(lr, list(size), mode="bicubic", antialias=True)
