"""Training data: a folder of photographs to LR crops and HR samples, determined by seed and step number alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(hr: Tensor, size: tuple[int, int]) -> Tensor:
    """LR image(s) ``[..., 3, *size]`` of HR ones in [0, 1]: antialiased bicubic (a = -0.5), rounded to 8 bit."""
    lr = F.interpolate(hr.reshape(-1, *hr.shape[-3:]), size, mode="bicubic", antialias=True)
    return ((lr.clamp(0, 1) * 255).round() / 255).view(*hr.shape[:-2], *size)


class Group(NamedTuple):
    """Crops of one scale; values in [0, 1]."""

    lr: Tensor  # [B, 3, n, n]
    size: tuple[int, int]  # of the HR crops
    yx: Tensor  # int64 [B, N, 2], sampled HR pixels
    rgb: Tensor  # [B, N, 3], their colours


class CropSampler:
    """Groups of random crops: in each its own scale, uniform in [1, 4], and N sampled HR pixels per crop (as LIIF).

    Of ``candidates`` random places the one with most texture is taken, since large parts of photographs are smooth.
    """

    def __init__(
        self, photos: list[Tensor], lr_size: int, samples: int, max_scale: float = 4.0, candidates: int = 3
    ) -> None:
        self.photos, self.lr_size, self.samples = photos, lr_size, samples
        self.max_scale, self.candidates = max_scale, candidates

    def groups(self, seed: int, step: int, count: int, batch: int) -> list[Group]:
        """``count`` groups of ``batch`` crops for a step."""
        rng = np.random.default_rng((seed, step))
        return [self._group(rng, batch) for _ in range(count)]

    def _group(self, rng: np.random.Generator, batch: int) -> Group:
        side = round(self.lr_size * rng.uniform(1.0, self.max_scale))
        hr = torch.stack([self._crop(rng, side) for _ in range(batch)])
        picks = np.stack([rng.choice(side * side, min(self.samples, side * side), replace=False) for _ in range(batch)])
        flat = torch.from_numpy(picks)
        rgb = hr.flatten(2).gather(2, flat[:, None].expand(-1, 3, -1)).transpose(1, 2)
        yx = torch.stack([flat // side, flat % side], dim=-1)
        return Group(degrade(hr, (self.lr_size, self.lr_size)), (side, side), yx, rgb)

    def _crop(self, rng: np.random.Generator, side: int) -> Tensor:
        """HR crop ``[3, side, side]`` in [0, 1], randomly flipped and transposed."""
        best, most = None, -1.0
        for _ in range(self.candidates):
            photo = self.photos[rng.integers(len(self.photos))]
            y, x = (int(rng.integers(n - side + 1)) for n in photo.shape[1:])
            crop = photo[:, y : y + side, x : x + side]
            texture = float(crop[1, :, 1:].float().sub(crop[1, :, :-1].float()).abs().mean())
            if texture > most:
                best, most = crop, texture
        assert best is not None
        if rng.random() < 0.5:
            best = best.flip(1)
        if rng.random() < 0.5:
            best = best.flip(2)
        if rng.random() < 0.5:
            best = best.transpose(1, 2)
        return best.float() / 255
