"""What a coarser precision does to pictures: the decoder's backends on the same features.

    python -m bench.precisions data/eval/Set5 [--scales 2 3 4] [--crop 192] [--most 100]

Markdown on stdout: by set and scale the PSNR against HR (protocol `basicsr`); of 8-bit values the
share that differs from float32's, in the mean and in the worst picture, the share that differs by
more than one level, and the largest difference. Without a set, the same differences for pictures
that try a precision: flat, noise, and the extremes side by side. The encoder is in float32, but for
`int8-bf16`: there EDSR's convolutions after the first are in bfloat16, the sums of its residual
blocks in float32.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from diinn_fast import DIINN
from diinn_fast.encoders.convolutions import fast_layout, residual
from diinn_fast.evaluation.run import make_pair, open_set, read_pixels
from diinn_fast.loading import load_weights
from diinn_fast.metrics import PROTOCOLS, score

Encode = Callable[[Tensor], dict[str, Tensor]]
Decode = Callable[[Tensor, tuple[int, int]], Tensor]
PROTOCOL = PROTOCOLS["basicsr"]
HALF = "int8-bf16"
PRECISIONS = ("fp32", "bf16", "int8", HALF)


def encode_by(model: DIINN, names: Collection[str], x: Tensor) -> dict[str, Tensor]:
    """Features of LR ``[B, 3, h, w]`` in [-1, 1], by precision."""
    encoder: Any = model.encoder
    exact: Tensor = encoder(x)
    found = dict.fromkeys(names, exact)
    if HALF in found:
        first = encoder.head(fast_layout(x))
        with torch.autocast("cpu", torch.bfloat16):
            found[HALF] = residual(encoder.body, first)
    return found


def decoders(model: DIINN, names: Sequence[str] = PRECISIONS) -> dict[str, Decode]:
    """Features and HR size to the picture in [0, 1], by name; float32 first."""
    half = copy.deepcopy(model.decoder).bfloat16()
    raw: dict[str, Decode] = {
        "fp32": lambda features, size: model.decoder(features, size, backend="cpu"),
        "bf16": lambda features, size: half(features.bfloat16(), size, backend="auto"),
        "int8": lambda features, size: model.decoder(features, size, backend="int8"),
        HALF: lambda features, size: model.decoder(features, size, backend="int8"),
    }

    def in_unit(decode: Decode) -> Decode:
        return lambda features, size: (decode(features, size).float() * 0.5 + 0.5).clamp(0, 1)

    return {name: in_unit(decode) for name, decode in raw.items() if name in ("fp32", *names)}


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


def cut(pixels: Tensor, side: int, middle: bool) -> Tensor:
    """A square of ``pixels`` [3, H, W], from their corner or middle; all of them if ``side`` is
    0.
    """
    if not side:
        return pixels
    y, x = (max(0, n - side) // 2 if middle else 0 for n in pixels.shape[-2:])
    return pixels[:, y : y + side, x : x + side]


def measure_set(
    found: dict[str, Decode], encode: Encode, folder: Path, options: argparse.Namespace
) -> None:
    """PSNR of every precision on a folder of pictures."""
    data = open_set(folder, PROTOCOL, ("psnr",))
    for scale in options.scales:
        decibels: dict[str, list[float]] = {name: [] for name in found}
        apart: dict[str, list[tuple[float, float, int]]] = {name: [] for name in found}
        for photo in data.photos[: options.most]:
            pixels = cut(read_pixels(photo, torch.device("cpu")), options.crop, options.middle)
            lr, hr = make_pair(pixels, scale, PROTOCOL)
            features = encode(lr * 2 - 1)
            size = (hr.shape[-2], hr.shape[-1])
            exact = found["fp32"](features["fp32"], size)
            for name, decode in found.items():
                sr = exact if name == "fp32" else decode(features[name], size)
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
                f"{100 * max(share):.2f} %",
                f"{100 * fmean(more):.4f} %",
                max(largest),
            )


def measure_adversarial(found: dict[str, Decode], encode: Encode) -> None:
    """Differences to float32 on pictures made to be hard."""
    for title, lr in adversarial().items():
        features = encode(lr * 2 - 1)
        size = (4 * lr.shape[-2], 4 * lr.shape[-1])
        exact = found["fp32"](features["fp32"], size)
        for name in list(found)[1:]:
            share, more, largest = difference(found[name](features[name], size), exact)
            percent = f"{100 * share:.2f} %"
            row(f"{title}, x4", name, "", percent, percent, f"{100 * more:.4f} %", largest)


@torch.inference_mode()
def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="sets of HR pictures")
    parser.add_argument("--scales", nargs="+", type=float, default=[2.0, 3.0, 4.0])
    parser.add_argument(
        "--crop", type=int, default=0, help="HR pixels of a side, from the corner (default: all)"
    )
    parser.add_argument("--middle", action="store_true", help="from the middle instead")
    parser.add_argument("--most", type=int, help="the first so many pictures of a set")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS[:-1], help="beside fp32"
    )
    parser.add_argument("--model", help="as of diinn-fast upscale (default: the bundled model)")
    options = parser.parse_args()
    model = load_weights(options.model)
    found = decoders(model, options.precisions)
    encode = partial(encode_by, model, found)
    differ = ("values that differ", "of the worst", "by more than 1", "largest")
    row("pictures", "precision", "PSNR", *differ)
    row(*["---"] * 7)
    for folder in options.folders:
        measure_set(found, encode, folder, options)
    if not options.folders:
        measure_adversarial(found, encode)


if __name__ == "__main__":
    main()
