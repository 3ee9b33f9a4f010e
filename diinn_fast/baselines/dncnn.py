"""DnCNN (Zhang et al., IEEE TIP 2017, arXiv 1608.03981), which removes noise and JPEG blocks, and
bicubic interpolation of what it leaves: the baseline for compressed and noisy pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from diinn_fast.baselines.bicubic import bicubic
from diinn_fast.checkpoints import Checkpoint, fit, read_checkpoint
from diinn_fast.geometry import check_size
from diinn_fast.metrics import luma

WIDTH = 64
"""Channels between its convolutions."""


class DnCNN(nn.Module):
    """``[B, 3, h, w]`` to ``[B, 3, H, W]``, bicubic after cleaning; values normalised
    ``(v - 0.5) / 0.5``.

    The network is 3x3 convolutions with ReLUs between them, and says what to subtract from a
    picture in [0, 1]. With one channel it is applied to luma, and Cb and Cr stay as they are.
    """

    anchor = "model.0.weight"
    """A tensor by which a state_dict is known to be of a DnCNN: the layout of KAIR, the authors'
    PyTorch code.
    """

    def __init__(self, channels: int = 1, layers: int = 20) -> None:
        super().__init__()
        widths = [channels, *[WIDTH] * (layers - 1), channels]
        modules: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            modules += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*modules[:-1])

    def forward(self, x: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """Picture at ``size`` (H, W); ``bsize`` is of no use here."""
        size = check_size(size, (x.shape[-2], x.shape[-1]))
        return bicubic(self.clean(x * 0.5 + 0.5), size) * 2 - 1

    def clean(self, picture: Tensor) -> Tensor:
        """The picture ``[B, 3, h, w]`` in [0, 1] without its noise."""
        in_colour = self.model[0].in_channels == 3
        noise: Tensor = self.model(picture if in_colour else luma(picture))
        # Luma has 219 of 255 levels, and a change of it alone changes R, G and B alike.
        return picture - (noise if in_colour else noise * (255 / 219))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Model from a file. Raises CheckpointError."""
        return cls.from_tensors(read_checkpoint(path, {cls.__name__: cls.anchor}))

    @classmethod
    def from_tensors(cls, checkpoint: Checkpoint) -> Self:
        """Model from what was read of a file; every tensor must be there, fit, and be finite."""
        first = checkpoint.state[cls.anchor]
        layers = sum(name.endswith(".weight") for name in checkpoint.state)
        with torch.device("meta"):
            model = cls(3 if first.shape[1:2] == (3,) else 1, layers)
        fit(model, checkpoint.state, checkpoint.path)
        return model
