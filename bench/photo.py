"""A photograph from file to file, what a user waits for, beside what they would take instead:

    pytest bench/test_photo.py [--full] [--save]
    python -m bench.photo PICTURE [--scale 2 4] [--precisions fp32 int8]  # every stage

Peers read and write the same files. An ordinary network has one scale and no decoder: EDSR-baseline
as published, whose encoder the bundled model has, with its upsampling by pixel shuffle.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import machine
from bench.cases import Case, tail_steps
from bench.timing import interleave
from diinn_fast import DIINN, reference
from diinn_fast.baselines import LIIF
from diinn_fast.encoders import make_encoder
from diinn_fast.formats import Image, read_image, write_image
from diinn_fast.inference import Upscaler, target_size
from diinn_fast.loading import load_weights

PICTURE = machine.ROOT / "examples" / "coffee.png"
CHANNELS = 64
STAGES = ("read", "encode", "project", "decode", "write", "all")


def names(case: Case) -> list[str]:
    """Peers on the CPU (``bench.gpu`` has its own photographs), slowest kind first: other methods,
    and the package in every precision that is fast here.
    """
    if case.device != "cpu":
        return []
    found = ["official", "liif", "bicubic"]
    if case.scale in (2, 3, 4):
        found.append("convnet")
    return [*found, *precisions()]


def precisions() -> list[str]:
    """Precisions for which this CPU has instructions; int8 everywhere, it names what it lacks."""
    half = ["bf16"] if "avx512_bf16" in machine.cpu_flags() else []
    return ["fp32", *half, "int8"]


def build(case: Case, peer: str) -> Callable[[], object]:
    """A function that reads the photograph, enlarges it and writes a PNG."""
    source = picture_of(case.lr)
    out = scratch() / f"{case.name}-{peer}.png"
    if peer in ("fp32", "bf16", "int8"):
        upscaler = Upscaler(precision=peer, device="cpu")
        return lambda: write_image(
            out, upscaler(read_image(source), scale=case.scale), overwrite=True
        )
    enlarge = torch.inference_mode()(network(case, peer))

    def call() -> None:
        rgb = read_image(source).rgb[None]
        made = enlarge(rgb * 2 - 1)[0]
        write_image(out, Image(rgb=(made * 0.5 + 0.5).clamp(0, 1)), overwrite=True)

    return call


def channels_last(x: Any) -> Any:
    """A module or an image with the channels of a pixel side by side."""
    return x.to(memory_format=torch.channels_last)


def network(case: Case, peer: str) -> Callable[[Tensor], Tensor]:
    """LR ``[1, 3, h, w]`` in [-1, 1] to HR, by a peer."""
    if peer == "bicubic":
        return lambda x: F.interpolate(x, case.size, mode="bicubic")
    if peer == "liif":
        liif = LIIF(make_encoder(case.encoder))
        return lambda x: liif(x, case.size)
    if peer == "convnet":
        net = channels_last(ordinary_network(int(case.scale)))
        return lambda x: net(channels_last(x))
    model = load_weights()
    weights = model.decoder.state_dict(keep_vars=True)
    mode = model.decoder.mode
    return lambda x: reference.decode(weights, model.encoder.plain(x), case.size, mode)


class _Encoder(nn.Module):
    """An encoder in its authors' order of work."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_encoder("edsr-baseline")

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder.plain(x)
        return features


def ordinary_network(scale: int) -> nn.Module:
    """EDSR-baseline of one scale (Lim et al., CVPRW 2017), without its shift by the mean colour."""
    tail: list[nn.Module] = []
    for step in tail_steps(scale):
        tail += [
            nn.Conv2d(CHANNELS, CHANNELS * step**2, 3, padding=1),
            nn.PixelShuffle(step),
        ]
    return nn.Sequential(_Encoder(), *tail, nn.Conv2d(CHANNELS, 3, 3, padding=1)).eval()


@functools.cache
def scratch() -> Path:
    """A folder for pictures, removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="diinn-fast-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def picture_of(size: tuple[int, int]) -> Path:
    """The photograph at (height, width), as a PNG."""
    path = scratch() / f"{size[0]}x{size[1]}.png"
    with PIL.Image.open(PICTURE) as picture:
        picture.convert("RGB").resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC).save(path)
    return path


def stages(picture: Path, scale: float, precision: str) -> dict[str, Callable[[], object]]:
    """The parts of an upscaling as calls of their own, and all of it."""
    upscaler = Upscaler(precision=precision, device="cpu")
    image = read_image(picture)
    lr = image.rgb.shape[1], image.rgb.shape[2]
    hr = target_size(lr, scale=scale)
    upscaler.check_sizes(lr, hr)
    features = upscaler.encode(image.rgb)
    made = upscaler(image, scale=scale)
    out = scratch() / f"stages-{precision}.png"

    @torch.inference_mode()
    def project() -> Tensor:
        model: DIINN = upscaler.model
        padded = F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
        return model.decoder.project(padded, upscaler.used_backend)

    return {
        "read": lambda: read_image(picture),
        "encode": lambda: upscaler.encode(image.rgb),
        "project": project,
        "decode": lambda: deque(upscaler.strips(image.rgb, hr), maxlen=0),
        "write": lambda: write_image(out, made, overwrite=True),
        "all": lambda: write_image(out, upscaler(read_image(picture), scale=scale), overwrite=True),
    }


def table(picture: Path, scale: float, precision_names: Sequence[str], budget: float) -> str:
    """Seconds of every stage: medians of rounds in which all precisions take turns."""
    calls: dict[str, Callable[[], object]] = {}
    for precision in precision_names:
        for stage, call in stages(picture, scale, precision).items():
            calls[f"{precision} {stage}"] = call
    samples = interleave(calls, lambda call: machine.seconds(call, "cpu"), budget)
    lines = [f"| x{scale:g} | {' | '.join(STAGES)} |", "|---" + "|---:" * len(STAGES) + "|"]
    for precision in precision_names:
        found = {stage: median(samples[f"{precision} {stage}"]) for stage in STAGES}
        # What was timed as decoding begins with the encoder, and projects.
        found["decode"] -= found["encode"] + found["project"]
        lines.append(f"| {precision} | {' | '.join(f'{found[s]:.2f}' for s in STAGES)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE)
    parser.add_argument("--scale", type=float, nargs="+", default=[2.0, 4.0])
    parser.add_argument("--precisions", nargs="+", default=precisions())
    parser.add_argument("--seconds", type=float, default=3.0, help="for the rounds of a stage")
    options: Any = parser.parse_args(arguments)
    for scale in options.scale:
        print(table(options.picture, scale, options.precisions, options.seconds), flush=True)


if __name__ == "__main__":
    main()
