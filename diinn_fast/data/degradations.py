"""What cameras, editors and the web do to a picture before anybody enlarges it.

A clean LR image becomes one with mild blur, sharpening, an earlier change of size, noise and JPEG
compression, each with a probability and a range of its own, in the order in which a photograph
meets them. The ideas (random order-preserving chains, two compressions) are those of BSRGAN (Zhang
et al., ICCV 2021) and Real-ESRGAN (Wang et al., ICCVW 2021); the strengths here are milder, because
the model must stay faithful to its input and invent nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import ImageFilter

GRID = 16
"""Side, in pixels, of the blocks of a JPEG with 4:2:0 chroma: crops begin anywhere in one."""


@dataclass(frozen=True)
class Degradations:
    """Probabilities of each step, and the ranges from which its strength is drawn uniformly.

    Args:
        clean: images that stay as they are.
        blur: Gaussian blur before everything else.
        blur_sigma: its standard deviation, in pixels.
        resized: an earlier reduction or enlargement and back, bicubic or bilinear.
        resized_scale: its factor.
        sharpen: unsharp masking, as cameras do.
        sharpen_percent: its strength.
        noise: Gaussian noise, half of the time the same in all channels.
        noise_sigma: its standard deviation, in levels of 255.
        jpeg: compression.
        jpeg_quality: its quality.
        twice: compressed images that had been compressed before.
        subsampled: compressed images with 4:2:0 chroma; the others have 4:4:4.
    """

    clean: float = 0.2
    blur: float = 0.2
    blur_sigma: tuple[float, float] = (0.2, 0.8)
    resized: float = 0.15
    resized_scale: tuple[float, float] = (0.6, 1.4)
    sharpen: float = 0.2
    sharpen_percent: tuple[float, float] = (20.0, 100.0)
    noise: float = 0.4
    noise_sigma: tuple[float, float] = (1.0, 12.0)
    jpeg: float = 0.85
    jpeg_quality: tuple[int, int] = (30, 95)
    twice: float = 0.25
    subsampled: float = 0.6

    def __call__(self, image: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        """``image`` uint8 ``[h, w, 3]`` degraded, a function of image and seed alone."""
        rng = np.random.default_rng(seed)
        if rng.random() < self.clean:
            return image
        # Whoever cuts a crop out of a photograph does not meet its blocks at their corners.
        top = int(rng.integers(GRID))
        left = int(rng.integers(GRID))
        height, width = image.shape[:2]
        padded = np.pad(image, ((top, GRID - top), (left, GRID - left), (0, 0)), mode="reflect")
        picture = self._before_the_file(PIL.Image.fromarray(padded), rng)
        picture = self._noisy(picture, rng)
        if rng.random() < self.jpeg:
            for _ in range(1 + (rng.random() < self.twice)):
                picture = self._compressed(picture, rng)
        return np.asarray(picture)[top : top + height, left : left + width]

    def _before_the_file(
        self, picture: PIL.Image.Image, rng: np.random.Generator
    ) -> PIL.Image.Image:
        """Optics, an earlier change of size, and sharpening."""
        if rng.random() < self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur_sigma)))
        if rng.random() < self.resized:
            scale = rng.uniform(*self.resized_scale)
            methods = (PIL.Image.Resampling.BICUBIC, PIL.Image.Resampling.BILINEAR)
            size = picture.size
            # There and back: what a picture has lost by an earlier change of size.
            between = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            picture = picture.resize(between, methods[int(rng.integers(2))])
            picture = picture.resize(size, methods[int(rng.integers(2))])
        if rng.random() < self.sharpen:
            percent = round(rng.uniform(*self.sharpen_percent))
            picture = picture.filter(
                ImageFilter.UnsharpMask(radius=1, percent=percent, threshold=0)
            )
        return picture

    def _noisy(self, picture: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
        if rng.random() >= self.noise:
            return picture
        samples = np.asarray(picture).astype(np.float32)
        sigma = rng.uniform(*self.noise_sigma)
        channels = 1 if rng.random() < 0.5 else 3
        samples += rng.normal(0.0, sigma, (*samples.shape[:2], channels)).astype(np.float32)
        return PIL.Image.fromarray(samples.round().clip(0, 255).astype(np.uint8))

    def _compressed(self, picture: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
        low, high = self.jpeg_quality
        quality = int(rng.integers(low, high + 1))
        subsampling = 2 if rng.random() < self.subsampled else 0
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
        file.seek(0)
        return PIL.Image.open(file).convert("RGB")
