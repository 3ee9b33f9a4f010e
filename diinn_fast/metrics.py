"""Image quality by named protocol. PSNR in dB; images are ``[..., 3, H, W]`` in [0, 1].

``liif-benchmark``: luma with weights (65.738, 129.057, 25.064) / 256, a border of ``int(scale)`` pixels left out, mean
of the images' PSNR; HR cropped to a multiple of the scale, LR by antialiased bicubic rounded to 8 bit, output clamped,
not rounded (Chen et al., LIIF, CVPR 2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)


def psnr(sr: Tensor, hr: Tensor) -> float:
    """``-10 log10(mean((sr - hr)^2))``, infinite for equal images; the mean is taken in float64."""
    error = (sr.double() - hr.double()).square().mean().item()
    return -10 * math.log10(error) if error > 0 else math.inf


def luma(image: Tensor) -> Tensor:
    """Weighted sum of the channels, ``[..., 1, H, W]``, without the offset of 16/255 (it cancels in differences)."""
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * weights).sum(-3, keepdim=True)


def psnr_y(sr: Tensor, hr: Tensor, scale: float) -> float:
    """PSNR of protocol ``liif-benchmark``: luma, ``int(scale)`` pixels shaved."""
    shave = int(scale)
    rows, columns = (slice(shave, n - shave) for n in hr.shape[-2:])
    return psnr(luma(sr)[..., rows, columns], luma(hr)[..., rows, columns])
