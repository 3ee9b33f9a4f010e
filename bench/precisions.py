"""What a coarser precision does to pictures: the decoder's backends on the same features.

    python -m bench.precisions data/eval/Set5 [--scales 2 3 4] [--crop 192]

Markdown on stdout: by set and scale the PSNR against HR (protocol `basicsr`), the share of 8-bit
values that differ from float32's and the largest difference; then the same differences for pictures
that try a precision: flat, noise, and the extremes side by side. The encoder is in float32.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from diinn_fast import DIINN
from diinn_fast.evaluation.run import make_pair, open_set, read_pixels
from diinn_fast.loading import load_weights
from diinn_fast.metrics import PROTOCOLS, score

Decode = Callable[[Tensor, tuple[int, int]], Tensor]
PROTOCOL = PROTOCOLS["basicsr"]


def decoders(model: DIINN) -> dict[str, Decode]:
    """Features and HR size to the picture in [0, 1], by name; float32 first."""
    half = copy.deepcopy(model.decoder).bfloat16()
    raw: dict[str, Decode] = {
        "fp32": lambda features, size: model.decoder(features, size, backend="cpu"),
        "bf16": lambda features, size: half(features.bfloat16(), size, backend="auto"),
        "int8": lambda features, size: model.decoder(features, size, backend="int8"),
    }

    def in_unit(decode: Decode) -> Decode:
        return lambda features, size: (decode(features, size).float() * 0.5 + 0.5).clamp(0, 1)

    return {name: in_unit(decode) for name, decode in raw.items()}


def difference(got: Tensor, want: Tensor) -> tuple[float, float, int]:
    """Of two pictures in 8 bit: the share of values that differ at all, by more than one level,
    and the largest difference.
    """
    levels = ((got * 255).round() - (want * 255).round()).abs()
    return (
        float((levels > 0).double().mean()),
        float((levels > 1).double().mean()),
        int(levels.max()),
    )


def adversarial(size: int = 32) -> dict[str, Tensor]:
    """LR pictures ``[1, 3, size, size]`` in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, size, size, generator=draw)
    pictures = {f"flat {value}": torch.full_like(noise, value) for value in (0.0, 0.5, 1.0)}
    pictures["noise"] = noise
    pictures["noise of 0 and 1"] = noise.round()
    pictures["chessboard"] = ((x + y) % 2).float().expand_as(noise)
    pictures["half black, half white"] = (x >= size // 2).float().expand_as(noise)
    dot = torch.zeros_like(noise)
    dot[..., size // 2, size // 2] = 1.0
    pictures["white dot on black"] = dot
    return pictures


def row(*cells: object) -> None:
    """Print one row of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure_set(model: DIINN, folder: Path, scales: list[float], crop: int) -> None:
    """PSNR of every precision on a folder of pictures."""
    found = decoders(model)
    data = open_set(folder, PROTOCOL, ("psnr",))
    for scale in scales:
        decibels: dict[str, list[float]] = {name: [] for name in found}
        apart: dict[str, list[tuple[float, float, int]]] = {name: [] for name in found}
        for photo in data.photos:
            pixels = read_pixels(photo, torch.device("cpu"))[:, :crop, :crop]
            lr, hr = make_pair(pixels, scale, PROTOCOL)
            features = model.encoder(lr * 2 - 1)
            size = (hr.shape[-2], hr.shape[-1])
            exact = found["fp32"](features, size)
            for name, decode in found.items():
                sr = decode(features, size)
                lr_size = (lr.shape[-2], lr.shape[-1])
                scores = score(sr, hr, scale, PROTOCOL, ("psnr",), lr_size)
                decibels[name].append(scores["psnr"])
                apart[name].append(difference(sr, exact))
        for name in found:
            share, more, largest = zip(*apart[name], strict=True)
            row(
                f"{data.name} x{scale:g}",
                name,
                f"{fmean(decibels[name]):.4f}",
                f"{100 * fmean(share):.2f} %",
                f"{100 * fmean(more):.4f} %",
                max(largest),
            )


def measure_adversarial(model: DIINN) -> None:
    """Differences to float32 on pictures made to be hard."""
    found = decoders(model)
    for title, lr in adversarial().items():
        features = model.encoder(lr * 2 - 1)
        size = (4 * lr.shape[-2], 4 * lr.shape[-1])
        exact = found["fp32"](features, size)
        for name in list(found)[1:]:
            share, more, largest = difference(found[name](features, size), exact)
            row(f"{title}, x4", name, "", f"{100 * share:.2f} %", f"{100 * more:.4f} %", largest)


@torch.inference_mode()
def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="sets of HR pictures")
    parser.add_argument("--scales", nargs="+", type=float, default=[2.0, 3.0, 4.0])
    parser.add_argument("--crop", type=int, default=192, help="HR pixels of a side (default 192)")
    parser.add_argument("--model", help="as of diinn-fast upscale (default: the bundled model)")
    options = parser.parse_args()
    model = load_weights(options.model)
    row("pictures", "precision", "PSNR", "values that differ", "by more than 1", "largest")
    row(*["---"] * 6)
    for folder in options.folders:
        measure_set(model, folder, options.scales, options.crop)
    measure_adversarial(model)


if __name__ == "__main__":
    main()
