"""What happens to an LR image before a model sees it: nothing, JPEG compression, or noise."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diinn_fast.errors import UpscaleError

KINDS = "clean, jpegQ (quality 1 to 100, 4:2:0) or noiseS (sigma in levels of 255)"


@dataclass(frozen=True)
class Inputs:
    """A condition of measurement, the same for every model and in every run."""

    kind: str = "clean"
    strength: int = 0

    @property
    def name(self) -> str:
        """As on the command line: ``clean``, ``jpeg40``, ``noise10``."""
        return self.kind if self.kind == "clean" else f"{self.kind}{self.strength}"

    def __call__(self, lr: Tensor, image: str) -> Tensor:
        """``lr`` ``[1, 3, h, w]`` in [0, 1], of 8-bit levels, as the model gets it.

        ``image`` is the file's name, which seeds the noise.
        """
        if self.kind == "clean":
            return lr
        pixels = (lr[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        spoilt = self._compressed(pixels) if self.kind == "jpeg" else self._noisy(pixels, image)
        return torch.from_numpy(spoilt).permute(2, 0, 1)[None].to(lr) / 255

    def _compressed(self, pixels: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.strength, subsampling=2)
        return np.array(Image.open(file).convert("RGB"))

    def _noisy(self, pixels: np.ndarray, image: str) -> np.ndarray:
        digest = hashlib.sha256(f"{image} {pixels.shape} {self.name}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        noise = rng.normal(0.0, self.strength, pixels.shape)
        return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def parse_inputs(text: str) -> Inputs:
    """``clean``, ``jpeg40``, ``noise10``. Raises UpscaleError for anything else."""
    if text == "clean":
        return Inputs()
    match = re.fullmatch(r"(jpeg|noise)(\d{1,3})", text)
    if match is None:
        raise UpscaleError(f"inputs {text!r} are unknown: give {KINDS}")
    kind = match[1]
    strength = int(match[2])
    if not 1 <= strength <= (100 if kind == "jpeg" else 255):
        raise UpscaleError(f"inputs {text!r} are out of range: give {KINDS}")
    return Inputs(kind, strength)
