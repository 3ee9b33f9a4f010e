"""Training samples: HR crops determined by seed and step number alone, and LR crops made from
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.data.degradations import Degradations
from diinn_fast.data.drawn import add_frame, draw_picture


def degrade(hr: Tensor, size: tuple[int, int]) -> Tensor:
    """LR image(s) ``[..., 3, *size]`` of HR ones in [0, 1]: antialiased bicubic (a = -0.5), rounded
    to 8 bit.
    """
    lr = F.interpolate(hr.reshape(-1, *hr.shape[-3:]), size, mode="bicubic", antialias=True)
    return ((lr.clamp(0, 1) * 255).round() / 255).view(*hr.shape[:-2], *size)


class Crops(NamedTuple):
    """HR crops of one scale, as a loader hands them over: bytes, so that little travels to the
    device.
    """

    hr: Tensor  # uint8 [B, 3, S, S]
    lr_size: int
    yx: Tensor | None  # int64 [B, N, 2]: sampled HR pixels; None: all of them
    seeds: Tensor  # int64 [B, 4]: run's seed, step, group, crop; what is random about a crop's LR


class Pairs(NamedTuple):
    """What a model is trained on; values in [0, 1]."""

    lr: Tensor  # [B, 3, n, n]
    size: tuple[int, int]  # of the HR crops
    yx: Tensor | None
    target: Tensor  # colours of the sampled pixels [B, N, 3], or the HR crops [B, 3, S, S]
    clean: Tensor  # lr before it was spoiled [B, 3, n, n]


def make_pairs(crops: Crops, degradations: Degradations | None = None) -> Pairs:
    """LR crops (see ``degrade``) and targets, on the device where the crops are.

    ``degradations`` spoil the LR crops, not the targets.
    """
    hr = crops.hr.float() / 255
    height, width = hr.shape[-2:]
    target = hr
    if crops.yx is not None:
        flat = crops.yx[..., 0] * width + crops.yx[..., 1]
        target = hr.flatten(2).gather(2, flat[:, None].expand(-1, 3, -1)).transpose(1, 2)
    clean = degrade(hr, (crops.lr_size, crops.lr_size))
    lr = clean if degradations is None else _spoiled(clean, crops.seeds, degradations)
    return Pairs(lr, (height, width), crops.yx, target, clean)


def _spoiled(lr: Tensor, seeds: Tensor, degradations: Degradations) -> Tensor:
    """LR crops ``[B, 3, n, n]`` of whole 8-bit levels in [0, 1], each degraded by its own seed."""
    samples = (lr * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    # The crop itself was drawn from its seed: the last number makes these draws independent of it.
    spoiled = [
        degradations(image, (*seed, 1)) for image, seed in zip(samples, seeds.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(spoiled)).to(lr.device).permute(0, 3, 1, 2).float() / 255


class CropSampler:
    """The crops of every training step, in groups of one scale each.

    Each step has ``batch`` crops of every scale in ``scales`` (the paper: 2, 3, 4), or, where that
    is None, of ``groups`` scales drawn uniformly from [1, ``max_scale``] (as LIIF). A crop is
    ``round(lr_size * scale)`` HR pixels wide, and flipped and transposed at random; ``samples`` of
    its pixels are drawn, or None for all. Of ``candidates`` random places the one with most texture
    is taken, since large parts of photographs are smooth. Of the crops, the share ``drawn`` is no
    photograph but a drawn picture, and the share ``framed`` has lines along its border.

    Photos are uint8 ``[h, w, 3]``, each as likely as any other. Crop k of a group depends on seed,
    step, group and k
    only: runs can stop and go on anywhere, and every rank of several takes its share of the same
        batch.
    """

    def __init__(
        self,
        photos: Sequence[np.ndarray],
        *,
        lr_size: int = 48,
        batch: int = 16,
        scales: Sequence[float] | None = None,
        groups: int = 1,
        max_scale: float = 4.0,
        samples: int | None = None,
        candidates: int = 1,
        drawn: float = 0.0,
        framed: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.photos = photos
        self.lr_size = lr_size
        self.batch = batch
        self.samples = samples
        self.scales = scales
        self.groups = groups
        self.max_scale = max_scale
        self.candidates = candidates
        self.drawn = drawn
        self.framed = framed
        self.seed = seed

    def step(self, step: int, rank: int = 0, ranks: int = 1) -> list[Crops]:
        """The groups of a step, or the share of one of several ranks."""
        found = []
        for group in range(len(self.scales or range(self.groups))):
            if self.scales:
                scale = self.scales[group]
            else:
                scale = np.random.default_rng((self.seed, step, group)).uniform(1.0, self.max_scale)
            side = round(self.lr_size * scale)
            # Every rank draws its own part of the same crops, so that the number of ranks changes
            # nothing.
            share = range(rank * self.batch // ranks, (rank + 1) * self.batch // ranks)
            crops = [
                self._crop(np.random.default_rng((self.seed, step, group, k)), side) for k in share
            ]
            hr = torch.from_numpy(np.stack([crop for crop, _ in crops]))
            yx = torch.from_numpy(np.stack([yx for _, yx in crops])) if self.samples else None
            # Noise of a crop depends on its number alone, whoever makes it.
            seeds = torch.tensor([(self.seed, step, group, k) for k in share], dtype=torch.int64)
            found.append(Crops(hr, self.lr_size, yx, seeds))
        return found

    def _crop(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
        """HR crop ``[3, side, side]`` and pixels ``[N, 2]`` of it."""
        # Nothing is asked of the generator where no share is: the crops of photographs stay.
        if self.drawn and rng.random() < self.drawn:
            crop = draw_picture(rng, side)
        else:
            places = [self._place(rng, side) for _ in range(self.candidates)]
            crop = places[0] if len(places) == 1 else max(places, key=texture)
        if self.framed and rng.random() < self.framed:
            crop = add_frame(rng, crop)
        flip_rows, flip_columns, transpose = rng.random(3) < 0.5
        if flip_rows:
            crop = crop[::-1]
        if flip_columns:
            crop = crop[:, ::-1]
        crop = crop.transpose((2, 1, 0) if transpose else (2, 0, 1))
        count = min(self.samples or 0, side * side)
        picks = rng.choice(side * side, count, replace=False) if count else np.empty(0, np.int64)
        return np.ascontiguousarray(crop), np.stack([picks // side, picks % side], axis=-1)

    def _place(self, rng: np.random.Generator, side: int) -> np.ndarray:
        photo = self.photos[int(rng.integers(len(self.photos)))]
        y, x = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
        return photo[y : y + side, x : x + side]


def texture(crop: np.ndarray) -> float:
    """Mean absolute difference of horizontal neighbours in every other row of the green channel of
    ``[h, w, 3]``.
    """
    green = crop[::2, :, 1].astype(np.int16)
    return float(np.abs(green[:, 1:] - green[:, :-1]).mean()) if green.shape[1] > 1 else 0.0
