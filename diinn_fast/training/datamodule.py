"""Training data: a folder of photographs or a training pack, with some photographs held out for
validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from diinn_fast.data import Crops, CropSampler, decode_all, list_photos
from diinn_fast.data.degradations import Degradations
from diinn_fast.data.images import Photo
from diinn_fast.errors import DataError
from diinn_fast.files import cache_folder


class PhotoData(L.LightningDataModule):
    """Crops of photographs, a function of seed and step alone; PSNR of validation photos at some
    scales.

    Args:
        folder: folder of photographs (DIV2K's layout is recognised), or a training pack (.tar).
        val_folder: photographs to validate on; else some of the training ones are held out.
        lr_size: side of the LR crops, in pixels.
        batch: crops of each scale in a step, all ranks together.
        scales: scales of every step; none: drawn from [1, max_scale].
        groups: scales drawn for a step.
        max_scale: largest scale drawn.
        samples: HR pixels that the loss sees of a crop; none: all.
        candidates: random places of which the one with most texture becomes the crop.
        drawn: share of crops that are drawn pictures (text, shapes, stripes), no photographs.
        framed: share of crops with lines of one colour along their border.
        hold_out: photographs held out for validation where val_folder is not given.
        val_scales: scales of the validation.
        val_size: side of the central squares that are validated on; none: whole photographs.
        workers: processes that prepare crops; 0: the training process itself.
        seed: of the crops.
        memory: bytes of decoded photographs to keep in memory; more come from a memory-mapped file.
        cache: folder of that file.
        degradations: what spoils the LR crops of training (validation stays clean); none: nothing.
    """

    def __init__(
        self,
        folder: str = "",
        val_folder: str | None = None,
        lr_size: int = 48,
        batch: int = 16,
        scales: list[float] | None = None,
        groups: int = 1,
        max_scale: float = 4.0,
        samples: int | None = None,
        candidates: int = 1,
        drawn: float = 0.0,
        framed: float = 0.0,
        hold_out: int = 6,
        val_scales: list[float] = [2, 3, 4],  # noqa: B006 jsonargparse shows it
        val_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        memory: int = 2 << 30,
        cache: str | None = None,
        degradations: Degradations | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.val_folder = val_folder
        self.hold_out = hold_out
        self.val_scales = val_scales
        self.val_size = val_size
        self.workers = workers
        self.trained_scales = (float(min(scales or [1])), float(max(scales or [max_scale])))
        self.sampling: dict[str, Any] = {
            "lr_size": lr_size,
            "batch": batch,
            "scales": scales,
            "groups": groups,
            "max_scale": max_scale,
            "samples": samples,
            "candidates": candidates,
            "drawn": drawn,
            "framed": framed,
            "seed": seed,
        }
        _check_sampling(self.sampling)
        # Refused here, before photographs are decoded for minutes.
        self.val_side = _validated_side(val_size, max(val_scales))
        self.memory = memory
        self.degradations = degradations
        self.cache = Path(cache) if cache else cache_folder()
        self.sampler: CropSampler | None = None

    @property
    def side(self) -> int:
        """Side of the largest HR crop: smaller photographs cannot be used."""
        lr_size: int = self.sampling["lr_size"]
        return round(lr_size * self.trained_scales[1])

    def prepare_data(self) -> None:
        """Decode everything, so that bad files are named now; what is too large for memory, for the
        other ranks too.
        """
        self._load()

    def setup(self, stage: str) -> None:
        """Decode the photographs; Lightning calls it before each stage."""
        self._load()

    def _load(self) -> None:
        # Lightning asks before each of its stages.
        if self.sampler:
            return
        if not self.folder:
            raise DataError("no photographs to train on: give --data FOLDER")
        training, validation = self._split()
        if self.val_folder is None and not training:
            raise DataError(
                f"{self.folder} has too few photographs to hold out {self.hold_out}: see "
                "--data.hold_out"
            )
        pixels = decode_all(training, self.side, self.memory, self.cache)
        self.validation = decode_all(validation, self.val_side, self.memory, self.cache)
        self.sampler = CropSampler(pixels, **self.sampling)

    def _split(self) -> tuple[list[Photo], list[Photo]]:
        """Training and validation photos; those held out are spread evenly over the names."""
        photos = list_photos(self.folder, "train")
        if self.val_folder is not None:
            return photos, list_photos(self.val_folder, "valid")
        if not self.hold_out:
            return photos, []
        held = photos[:: max(1, len(photos) // self.hold_out)][: self.hold_out]
        names = {photo.name for photo in held}
        return [photo for photo in photos if photo.name not in names], held

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the step at which the run is."""
        assert self.sampler and self.trainer
        trainer = self.trainer
        if self.sampler.batch % trainer.world_size:
            raise DataError(
                f"a batch of {self.sampler.batch} crops cannot be shared by {trainer.world_size} "
                "processes: "
                "choose a multiple with --data.batch"
            )
        # Crops depend on the step alone, so that a resumed run sees what it would have seen.
        start = trainer.global_step * trainer.accumulate_grad_batches
        return DataLoader(
            Steps(self.sampler, trainer.global_rank, trainer.world_size),
            batch_size=None,
            sampler=CountFrom(start),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Pairs of every validation photograph and scale; no batches without photographs."""
        if not self.validation:
            return []
        assert self.trainer
        rank = self.trainer.global_rank
        ranks = self.trainer.world_size
        share = self.validation[rank::ranks]
        # Every rank gets as many, with weight 0 where there is none: all wait for the same sums.
        missing = len(self.validation[::ranks]) - len(share)
        photos = [(photo, 1.0) for photo in share] + [(self.validation[0], 0.0)] * missing
        items = [(photo, scale, weight) for photo, weight in photos for scale in self.val_scales]
        return DataLoader(Scored(items, self.val_size), batch_size=None)


def _check_sampling(sampling: dict[str, Any]) -> None:
    """Raise DataError where the arguments of a CropSampler make no crops to learn from."""
    for name in ("lr_size", "batch", "groups", "candidates", "samples"):
        count = sampling[name]
        if count is not None and count < 1:
            raise DataError(f"--data.{name} is {count}: it must be at least 1")
    if min(sampling["max_scale"], *(sampling["scales"] or [1])) < 1:
        raise DataError(
            "a scale of training is smaller than 1: there is nothing to learn about reduced "
            "pictures"
        )
    for name in ("drawn", "framed"):
        share = sampling[name]
        if not 0 <= share <= 1:
            raise DataError(f"--data.{name} is {share:g}: it is a share, from 0 to 1")


def _validated_side(val_size: int | None, largest: float) -> int:
    """Pixels that a validated picture must have along each side: when the border is left out,
    something is left.
    """
    least = 2 * (int(largest) + 7)
    if val_size is not None and val_size < least:
        raise DataError(
            f"--data.val_size {val_size} leaves nothing to score at x{largest:g}: enlarge it"
        )
    return val_size or least


class Steps(Dataset[Any]):
    """Item n: the crops of step n."""

    def __init__(self, sampler: CropSampler, rank: int, ranks: int) -> None:
        self.sampler = sampler
        self.rank = rank
        self.ranks = ranks

    def __getitem__(self, step: int) -> list[Crops]:
        return self.sampler.step(step, self.rank, self.ranks)


class CountFrom(Sampler[int]):
    """All steps from one on: training goes on where it stopped, and has no epochs."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


class Scored(Dataset[Any]):
    """HR photo ``[1, 3, H, W]`` (whole, or its central square), scale, and its weight in the
    mean.
    """

    def __init__(self, items: list[tuple[np.ndarray, float, float]], side: int | None) -> None:
        self.items = items
        self.side = side

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, n: int) -> tuple[Tensor, float, float]:
        photo, scale, weight = self.items[n]
        if self.side:
            y, x = ((size - self.side) // 2 for size in photo.shape[:2])
            photo = photo[y : y + self.side, x : x + self.side]
        return (
            torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))[None],
            float(scale),
            weight,
        )
