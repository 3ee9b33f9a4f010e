"""One picture: read, check, upscale, write; in memory or piece by piece."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from diinn_fast.cli.common import Refused
from diinn_fast.cli.upscale.arguments import size_options
from diinn_fast.cli.upscale.jobs import PIECES_ONLY
from diinn_fast.cli.upscale.report import factor_text
from diinn_fast.errors import ImageError, UnfinishedError
from diinn_fast.formats import (
    Image,
    check_writable,
    read_image,
    writable_suffixes,
    write_image,
)
from diinn_fast.inference import Upscaler, rendering, target_size
from diinn_fast.inference.memory import TooLargeError
from diinn_fast.inference.rendering.group import first_rank, torchrun_started, world_size
from diinn_fast.inference.sinks import sink_kind


def upscale_file(
    upscaler: Upscaler, source: Path, target: Path, options: argparse.Namespace
) -> str:
    """Read, check, upscale, write; returns the line to print."""
    if _in_pieces(target, source, options):
        return render_file(upscaler, source, target, options)
    start = time.perf_counter()
    image = read_image(source)
    lr = image.rgb.shape[1], image.rgb.shape[2]
    hr = target_size(lr, **size_options(options))
    if _too_large(upscaler, image, hr, target):
        del image
        return render_file(upscaler, source, target, options)
    check_writable(target, *hr, overwrite=options.overwrite, like=image)
    progress = not options.quiet and sys.stderr.isatty()
    result = upscaler(image, size=hr, progress=progress)
    try:
        write_image(target, result, overwrite=options.overwrite, quality=options.quality)
    except ImageError as error:
        raise UnfinishedError(str(error)) from error
    seconds = time.perf_counter() - start
    factor = factor_text(options.scale, lr, hr)
    return (
        f"{source} {lr[1]}x{lr[0]} -> {target} {hr[1]}x{hr[0]} ({factor}) in {seconds:.1f} s, "
        f"backend {upscaler.used_backend}, {hr[0] * hr[1] / seconds / 1000:.0f} kpx/s"
    )


def _in_pieces(target: Path, source: Path, options: argparse.Namespace) -> bool:
    """Whether the output is asked for, or can only be made, piece by piece."""
    asked = [
        name
        for name in (
            "--max-memory",
            "--dry-run",
            "--resume",
            "--halo",
            "--pyramid",
            "--no-compression",
        )
        if not any(
            getattr(options, name[2:].replace("-", "_")) is unset for unset in (None, False)
        )  # 0 is set
    ]
    if (
        sink_kind(target) in PIECES_ONLY
        or source.suffix.lower() in (".npy", ".zarr")
        or torchrun_started()
    ):
        return True
    if sink_kind(target) is not None and rendering.part_of(target).is_dir():
        return True  # an interrupted run is continued, or replaced, only if asked
    if asked and sink_kind(target) is None and target.suffix.lower() in writable_suffixes():
        raise Refused(
            f"{target.suffix} is not written piece by piece: write .png or .tif, or leave out "
            f"{asked[0]}"
        )
    return bool(asked)


def _too_large(upscaler: Upscaler, image: Image, hr: tuple[int, int], target: Path) -> bool:
    """Whether an output that can be made piece by piece cannot be made in memory."""
    if sink_kind(target) is None or upscaler.self_ensemble:
        return False
    try:
        upscaler.check(image.rgb.shape[1:], hr, [image], torch.float32)
    except TooLargeError:
        return True
    return False


def render_file(upscaler: Upscaler, source: Path, target: Path, options: argparse.Namespace) -> str:
    """As `upscale_file`, piece by piece within ``--max-memory``."""
    start = time.perf_counter()
    spec = rendering.prepare(
        upscaler,
        source,
        target,
        max_memory=options.max_memory,
        halo=options.halo,
        pyramid=options.pyramid,
        compress=not options.no_compression,
        **size_options(options),
    )
    if options.dry_run:
        workers = world_size()
        plan = rendering.make_plan(spec, workers)
        return rendering.describe(spec, plan, workers) if first_rank() else ""
    progress = not options.quiet and sys.stderr.isatty()
    done = rendering.run(
        spec, resume=options.resume, overwrite=options.overwrite, progress=progress
    )
    seconds = time.perf_counter() - start
    h, w = spec.picture
    height, width = spec.hr
    if not done:
        return f"{target} is complete already" if first_rank() else ""
    if not first_rank():
        return ""
    return (
        f"{source} {w}x{h} -> {target} {width}x{height} "
        f"({factor_text(options.scale, spec.picture, spec.hr)}) in {seconds:.1f} s, "
        f"backend {upscaler.used_backend}"
    )
