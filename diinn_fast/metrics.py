"""Image quality: metrics, each an entry of ``METRICS``, and the named protocols they are taken by.

PSNR depends on the evaluation protocol (channels, borders, rounding), so scores are always reported
with one. Images are ``[..., 3, H, W]`` in [0, 1]; means are taken in float64.

Of all protocols here: an HR image gives its LR image by antialiased bicubic reduction (a = -0.5),
rounded to 8 bit; outputs are clamped to [0, 1]; the score of a set is the mean of its images'
scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)
"""ITU-R BT.601 luma of [0, 1] colours, on the scale that has black at 16/255 and white at
235/255.
"""

SSIM_WINDOW = 11
LPIPS_SIDE = 17
"""Pixels of the smallest image that LPIPS is taken of."""


@dataclass(frozen=True)
class Protocol:
    """How an image is cut, reduced and scored at a scale s."""

    name: str
    channels: Literal["Y", "RGB"]
    shave: int | None
    """Pixels left out at each border: int(s) plus this number; None: none."""
    rounded: bool
    """Whether outputs are rounded to 8 bit before they are scored."""
    crop: bool
    """Whether HR is cut to round(s h) x round(s w) with h, w = floor(H / s), floor(W / s), the LR
    size. Otherwise HR is kept whole, the LR size is round(H / s) x round(W / s), and the scales of
    the axes differ a little.
    """
    mirrored: bool
    """Whether the reduction continues the image by its mirror image, as MATLAB's imresize, which
    made the LR images of the usual data sets. Otherwise the filter is cut off at the border and
    normalised again, as Pillow and torch do.
    """
    metrics: tuple[str, ...]
    source: str

    def border(self, scale: float) -> int:
        """Pixels left out at each border."""
        return 0 if self.shave is None else int(scale) + self.shave

    def sizes(
        self, height: int, width: int, scale: float
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """LR size and HR size of an image of ``height`` x ``width``; both at least 1 pixel."""
        if not self.crop:
            return (max(1, round(height / scale)), max(1, round(width / scale))), (height, width)
        lr = max(1, int(height / scale + 1e-9)), max(1, int(width / scale + 1e-9))
        return lr, (min(height, round(lr[0] * scale)), min(width, round(lr[1] * scale)))

    def describe(self) -> str:
        """One sentence for the head of a table."""
        border = (
            "whole image"
            if self.shave is None
            else f"border of int(scale){f' + {self.shave}' * bool(self.shave)}"
        )
        parts = [
            {"Y": "luma", "RGB": "RGB"}[self.channels],
            f"{border} left out" if self.shave is not None else border,
            f"output clamped and {'rounded to 8 bit' if self.rounded else 'not rounded'}",
            "HR cut to a multiple of the scale"
            if self.crop
            else "HR whole, LR of round(H / scale)",
            f"LR by antialiased bicubic ({'mirrored' if self.mirrored else 'renormalised'} "
            "border), 8 bit",
        ]
        return f"`{self.name}`: " + ", ".join(parts) + "."


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "liif-benchmark", "Y", 0, False, True, True, ("psnr",), "LIIF's test of benchmark sets"
        ),
        Protocol("liif-div2k", "RGB", 6, False, True, True, ("psnr",), "LIIF's test of DIV2K"),
        Protocol(
            "basicsr",
            "Y",
            0,
            True,
            True,
            True,
            ("psnr", "ssim"),
            "BasicSR's calculate_psnr with test_y_channel",
        ),
        Protocol(
            "diinn-test",
            "RGB",
            None,
            False,
            False,
            False,
            ("psnr", "ssim", "lr_psnr"),
            "DIINN's test at scales beyond training",
        ),
    )
}
"""All rules in one table."""


def score(
    sr: Tensor,
    hr: Tensor,
    scale: float,
    protocol: Protocol,
    metrics: tuple[str, ...],
    lr: tuple[int, int],
) -> dict[str, float]:
    """Scores of an output ``[1, 3, H, W]`` by name of the metric; NaN where the image is too small
    for the border or for SSIM's window. ``lr`` is the LR size.
    """
    sr = sr.clamp(0, 1)
    if protocol.rounded:
        sr = (sr * 255).round() / 255
    a = luma(sr) if protocol.channels == "Y" else sr
    b = luma(hr) if protocol.channels == "Y" else hr
    border = protocol.border(scale)
    pictures = Pictures(
        a[..., border : a.shape[-2] - border, border : a.shape[-1] - border],
        b[..., border : b.shape[-2] - border, border : b.shape[-1] - border],
        a, b, sr, hr, lr, protocol.mirrored,
    )  # fmt: skip
    return {name: METRICS[name].function(pictures) for name in metrics}


@dataclass(frozen=True)
class Pictures:
    """What a metric compares: an output and the HR image, ``[1, C, H, W]``, C by the protocol."""

    sr: Tensor
    hr: Tensor
    whole_sr: Tensor
    """With the border that ``sr`` leaves out."""
    whole_hr: Tensor
    rgb_sr: Tensor
    """With the border, in RGB whatever the protocol."""
    rgb_hr: Tensor
    lr: tuple[int, int]
    """Size of the LR image."""
    mirrored: bool
    """How the LR image was made, see Protocol."""


@dataclass(frozen=True)
class Metric:
    """One number for a pair of images."""

    name: str
    title: str
    """In tables, with the unit."""
    digits: int
    """Decimals in tables."""
    function: Callable[[Pictures], float]
    """NaN where the images are too small."""
    needs: tuple[str, ...] = ()
    """Packages that it is computed by, beyond those that the package depends on."""
    best: Callable[[Sequence[float]], float] = max
    """Of several values the best one: max or min."""
    trial: Callable[[], object] | None = None
    """Does what may fail at first use, such as fetching weights, and raises OSError."""

    @property
    def stored_digits(self) -> int:
        """Decimals in files."""
        return self.digits + 2


def _psnr_of(pictures: Pictures) -> float:
    return psnr(pictures.sr, pictures.hr) if pictures.sr.numel() else math.nan


def _ssim_of(pictures: Pictures) -> float:
    fits = min(pictures.sr.shape[-2:]) >= SSIM_WINDOW
    return ssim(pictures.sr, pictures.hr) if fits else math.nan


def _lr_psnr_of(pictures: Pictures) -> float:
    """PSNR of both images reduced to the LR size, not rounded, without a border."""
    sr, hr = (
        reduce(image, pictures.lr, pictures.mirrored)
        for image in (pictures.whole_sr, pictures.whole_hr)
    )
    return psnr(sr, hr)


def _lpips_of(pictures: Pictures) -> float:
    fits = min(pictures.rgb_sr.shape[-2:]) >= LPIPS_SIDE
    return lpips(pictures.rgb_sr, pictures.rgb_hr) if fits else math.nan


def _try_lpips() -> None:
    blank = torch.zeros(1, 3, LPIPS_SIDE, LPIPS_SIDE)
    lpips(blank, blank)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR, dB", 2, _psnr_of),
        Metric("ssim", "SSIM", 4, _ssim_of, needs=("torchmetrics",)),
        Metric("lr_psnr", "LR-PSNR, dB", 2, _lr_psnr_of),
        Metric("lpips", "LPIPS", 4, _lpips_of, ("torchmetrics", "torchvision"), min, _try_lpips),
    )
}
"""All metrics: a new one is an entry here."""


def psnr(sr: Tensor, hr: Tensor) -> float:
    """``-10 log10(mean((sr - hr)^2))`` in dB, infinite for equal images."""
    error = (sr.double() - hr.double()).square().mean().item()
    return -10 * math.log10(error) if error != 0 else math.inf


def luma(image: Tensor) -> Tensor:
    """Luma ``[..., 1, H, W]`` in [16/255, 235/255]."""
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * weights).sum(-3, keepdim=True) + 16 / 255


def ssim(sr: Tensor, hr: Tensor) -> float:
    """Structural similarity (Wang et al., 2004) of ``[1, C, H, W]``: Gaussian window 11x11 with
    sigma 1.5, K1 = 0.01, K2 = 0.03, biased variances, mean over channels and the region where the
    window fits. Needs torchmetrics.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, index = structural_similarity_index_measure(
        sr.float(), hr.float(), sigma=1.5, data_range=1.0, return_full_image=True
    )
    inside = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
    return index[..., inside, inside].double().mean().item()


def lpips(sr: Tensor, hr: Tensor) -> float:
    """Learned perceptual distance (Zhang et al., CVPR 2018, version 0.1) of ``[1, 3, H, W]`` in
    [0, 1], by SqueezeNet 1.1: 0 for equal images. Needs torchmetrics and torchvision, which fetches
    the network's weights once (5 MB).
    """
    return _lpips_network()(sr.float().cpu(), hr.float().cpu()).double().item()


@cache
def _lpips_network() -> Callable[[Tensor, Tensor], Tensor]:
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    network: Callable[[Tensor, Tensor], Tensor] = LearnedPerceptualImagePatchSimilarity(
        "squeeze", normalize=True
    )
    return network


def missing_for(metrics: tuple[str, ...]) -> str | None:
    """What has to be installed or fetched for these metrics, or None."""
    for name in metrics:
        title = METRICS[name].title
        without = f"or leave {name} out of --metrics"
        for needs in METRICS[name].needs:
            try:
                import_module(needs)
            except ImportError:
                return f"{title} needs {needs}: pip install {needs}, {without}"
            # A torchvision of another torch does not know its own operators.
            except RuntimeError as error:
                return f"{title} needs a {needs} that fits this torch ({error}): {without}"
        if trial := METRICS[name].trial:
            try:
                trial()
            except OSError as error:
                return f"{title} cannot fetch what it needs ({error}): try again, {without}"
    return None


def degrade(hr: Tensor, size: tuple[int, int], mirrored: bool) -> Tensor:
    """LR image of an HR one: reduced, clamped, and rounded to 8 bit."""
    return (reduce(hr, size, mirrored).clamp(0, 1) * 255).round() / 255


def reduce(image: Tensor, size: tuple[int, int], mirrored: bool) -> Tensor:
    """``[..., H, W]`` to ``[..., h, w]`` by antialiased bicubic interpolation (a = -0.5); see
    Protocol.mirrored.
    """
    rows, columns = (
        bicubic_matrix(n_in, n_out, mirrored).to(image.device, image.dtype)
        for n_in, n_out in zip(image.shape[-2:], size, strict=True)
    )
    return rows @ image @ columns.t()


def bicubic_matrix(n_in: int, n_out: int, mirrored: bool) -> Tensor:
    """Weights of the antialiased bicubic resize of one axis: float64 ``[n_out, n_in]``, rows sum to
    1.

    Keys' kernel, a = -0.5, widened by n_in / n_out where that reduces.
    """
    widening = max(1.0, n_in / n_out)
    centre = (torch.arange(n_out, dtype=torch.float64) + 0.5) * n_in / n_out - 0.5
    taps = torch.arange(math.ceil(4 * widening) + 2)
    position = (centre - 2 * widening).floor().long()[:, None] + taps  # [n_out, taps]
    x = (position - centre[:, None]).abs() / widening
    # Keys' two cubic pieces, for distances up to 1 and from 1 to 2.
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weight = torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
    if mirrored:
        # MATLAB's border: the image is mirrored about its edge, without end.
        folded = position.remainder(2 * n_in)
        position = torch.minimum(folded, 2 * n_in - 1 - folded)
    else:
        # Pillow's border: taps outside count nothing, and the rest is scaled up.
        weight = torch.where((position >= 0) & (position < n_in), weight, 0.0)
        position = position.clamp(0, n_in - 1)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64).scatter_add_(1, position, weight)
    return matrix / matrix.sum(1, keepdim=True)
