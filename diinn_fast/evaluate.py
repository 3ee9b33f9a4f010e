"""Quality of a model on folders of HR images: ``python -m diinn_fast.evaluate --data Set5 Set14 --scales 2 3 4``.

Prints a Markdown table of mean Y-PSNR (dB) by protocol ``liif-benchmark`` (see ``diinn_fast.metrics``), beside bicubic.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diinn_fast.data import degrade, load_photos
from diinn_fast.inference.weights import load_weights
from diinn_fast.metrics import psnr_y
from diinn_fast.model import DEFAULT_WEIGHTS

Upscaler = Callable[[Tensor, tuple[int, int]], Tensor]


def bicubic(lr: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(lr, size, mode="bicubic", antialias=True)


@torch.inference_mode()
def mean_psnr_y(upscaler: Upscaler, images: list[Tensor], scale: float) -> float:
    """Mean over uint8 HR images ``[3, h, w]`` of the Y-PSNR of ``upscaler`` ([0, 1] to [0, 1])."""
    total = 0.0
    for image in images:
        h, w = (int(n / scale) for n in image.shape[1:])
        size = (round(h * scale), round(w * scale))
        hr = image[None, :, : size[0], : size[1]].float() / 255
        total += psnr_y(upscaler(degrade(hr, (h, w)), size).clamp(0, 1), hr, scale)
    return total / len(images)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="folders of HR images")
    parser.add_argument("--scales", nargs="+", type=float, default=[2.0, 3.0, 4.0])
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS, help="bundled name, checkpoint or folder")
    options = parser.parse_args(arguments)
    model = load_weights(options.weights)

    def diinn(lr: Tensor, size: tuple[int, int]) -> Tensor:
        return model((lr - 0.5) / 0.5, size) * 0.5 + 0.5

    rows = []
    jobs = [(folder, scale) for folder in options.data for scale in options.scales]
    for folder, scale in tqdm(jobs, unit="set"):
        images = list(load_photos(folder, 1).values())
        scores = [mean_psnr_y(upscaler, images, scale) for upscaler in (bicubic, diinn)]
        rows.append(
            f"| {folder.name} | x{scale:g} | {scores[0]:.2f} | {scores[1]:.2f} | {scores[1] - scores[0]:+.2f} |"
        )
    print("\n".join(["| set | scale | bicubic | model | gain |", "|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
