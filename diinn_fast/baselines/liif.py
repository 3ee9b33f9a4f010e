"""LIIF, the local implicit image function (Chen, Liu & Wang, CVPR 2021, arXiv 2012.09161), in plain PyTorch.

The published configuration: feature unfolding, local ensemble, cell decoding, and an MLP of five layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.encoders import make_encoder
from diinn_fast.geometry import check_size, local_offset
from diinn_fast.model import CheckpointError, fit

BSIZE = 30_000
"""Queries at a time, as in the authors' evaluation: about 2.3 KB each for every tensor of unfolded features."""


class MLP(nn.Module):
    """ReLU network ``[..., in] -> [..., 3]``; the layers carry the published names ``layers.{0,2,4,6,8}``."""

    def __init__(self, in_features: int, hidden: Sequence[int] = (256, 256, 256, 256), out_features: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LIIF(nn.Module):
    """LIIF: ``[B, 3, h, w]`` to ``[B, 3, H, W]`` at any real scale; values normalised ``(v - 0.5) / 0.5``.

    The colour at a query is the mean of four predictions, one from each surrounding LR pixel (i, j), weighted by the
    area of the rectangle between the query and the LR pixel diagonally opposite (eq. 4). A prediction is
    ``imnet([x_ij, dy, dx, cell])``: x the 3x3 neighbourhood of features, (dy, dx) the query's position from the LR
    pixel and cell the HR pixel's size, both in LR half-pixels (eq. 2, 3 and 6).
    """

    def __init__(self, encoder: str | nn.Module = "edsr-baseline") -> None:
        super().__init__()
        self.encoder = make_encoder(encoder)
        self.imnet = MLP(getattr(self.encoder, "out_channels", 64) * 9 + 4)

    def forward(self, x: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """SR image at ``size`` (H, W); ``bsize`` limits the queries processed at a time."""
        return self.decode(self.encoder(x), size, bsize)

    def decode(self, features: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """RGB ``[B, 3, H, W]`` of features ``[B, C, h, w]``."""
        batch, _, h, w = features.shape
        height, width = check_size(size, (h, w))
        unfolded = F.unfold(features, 3, padding=1).transpose(1, 2)  # [B, h*w, 9C], a view
        unfolded = unfolded.contiguous()
        rows, columns = (surrounding(*n, features.device, features.dtype) for n in ((h, height), (w, width)))
        cell = torch.tensor([2 * h / height, 2 * w / width], dtype=features.dtype, device=features.device)
        parts = []
        for query in torch.arange(height * width, device=features.device).split(bsize or BSIZE):
            y, x = query // width, query % width
            predictions, areas = [], []
            for i, dy in rows:
                for j, dx in columns:
                    position = torch.stack([dy[y], dx[x]], dim=-1)
                    pixel = i[y] * w + j[x]
                    inputs = [unfolded[:, pixel], position.expand(batch, -1, -1), cell.expand(batch, len(query), 2)]
                    predictions.append(self.imnet(torch.cat(inputs, dim=-1)))
                    areas.append(position.prod(dim=-1).abs() + 1e-9)
            total = sum(areas)
            # Each prediction has the area of the opposite corner.
            weighted = [p * (area / total)[:, None] for p, area in zip(predictions, reversed(areas), strict=True)]
            parts.append(sum(weighted))
        return torch.cat(parts, dim=1).transpose(1, 2).reshape(batch, 3, height, width)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> LIIF:
        """Model from the authors' file, a mapping with ``model.sd``. Raises CheckpointError if it does not fit."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            state = {k: v for k, v in content["model"]["sd"].items() if "_mean." not in k}  # mean shifts, unused
        except Exception as error:  # damaged pickles raise anything
            raise CheckpointError(f"checkpoint {path} is not a LIIF model that can be read: {error}") from error
        with torch.device("meta"):
            model = cls("edsr-baseline" if "encoder.head.0.weight" in state else "rdn")
        fit(model, state, path)
        return model


def surrounding(
    n_in: int, n_out: int, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both LR pixels around each HR position of one axis: (index, offset in LR half-pixels), each ``[n_out]``.

    They are floor(t) and floor(t) + 1 for a position ``t = (Y + 0.5) * n_in / n_out - 0.5`` in LR pixels, clamped to
    the image: at its border both are the same pixel.
    """
    positions = torch.arange(n_out, device=device)
    below = ((2 * positions + 1) * n_in - n_out).div(2 * n_out, rounding_mode="floor")
    first, second = below.clamp(0, n_in - 1), (below + 1).clamp(0, n_in - 1)
    return (
        (first, local_offset(0, n_out, first, n_in, n_out, dtype)),
        (second, local_offset(0, n_out, second, n_in, n_out, dtype)),
    )
