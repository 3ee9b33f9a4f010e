"""One picture: read, check, upscale, write; in memory or piece by piece."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from diinn_fast.cli.common import Refused
from diinn_fast.cli.upscale.arguments import size_options
from diinn_fast.cli.upscale.jobs import Job
from diinn_fast.cli.upscale.pipes import contents, is_pipe, place_of
from diinn_fast.cli.upscale.report import factor_text
from diinn_fast.errors import ImageError, UnfinishedError
from diinn_fast.formats import (
    Image,
    by_suffix,
    check_writable,
    read_image,
    writable_suffixes,
    write_image,
)
from diinn_fast.inference import Upscaler, rendering, target_size
from diinn_fast.inference.memory import TooLargeError
from diinn_fast.inference.progress import Progress
from diinn_fast.inference.ranges import DTYPE
from diinn_fast.inference.rendering.group import first_rank, torchrun_started, world_size
from diinn_fast.inference.sinks import sink_kind

DEFAULT_ENDING = "png"
"""Of a picture on stdout."""

PIECES_OPTIONS = (
    "--bands",
    "--max-memory",
    "--dry-run",
    "--resume",
    "--halo",
    "--pyramid",
    "--no-compression",
)
"""Options that mean something for outputs that are made piece by piece alone."""


@dataclass(frozen=True)
class Outcome:
    """What became of a picture.

    Attributes:
        line: to be printed; empty in all processes of a job but the first.
        done: False if the output was there already, or a plan was asked for.
    """

    line: str
    done: bool = True


@dataclass(frozen=True)
class Task:
    """A job, where its parts are.

    Attributes:
        picture: the picture's path, or what came out of a pipe.
        place: the output's path, or the file whose bytes go into a pipe.
    """

    job: Job
    picture: Path | bytes
    place: Path


def upscale_job(
    upscaler: Upscaler, job: Job, options: argparse.Namespace, progress: Progress
) -> Outcome:
    """Read, check, upscale, write."""
    if options.resume and is_pipe(job.target):
        raise Refused("what went into a pipe cannot be resumed: name an output, or leave --resume")
    with place_of(job.target, options.format or DEFAULT_ENDING) as place:
        task = Task(job, contents(job.source), place)
        if _in_pieces(task, options):
            return _render(upscaler, task, options, progress)
        return _in_memory(upscaler, task, options, progress)


def _in_memory(
    upscaler: Upscaler, task: Task, options: argparse.Namespace, progress: Progress
) -> Outcome:
    start = time.perf_counter()
    image = read_image(task.picture, any_range=options.range != DTYPE)
    lr = image.rgb.shape[1], image.rgb.shape[2]
    hr = target_size(lr, **size_options(options))
    # Whole in memory is faster; piece by piece needs less of it.
    if _too_large(upscaler, image, hr, task.place):
        del image
        return _render(upscaler, task, options, progress)
    # Whether it can be written is known before minutes of work.
    ways = {"overwrite": options.overwrite, "lossless": options.lossless}
    check_writable(task.place, *hr, like=image, **ways)
    result = upscaler(
        image,
        progress=progress,
        metadata=options.metadata,
        range=options.range,
        wrap=options.wrap,
        **size_options(options),
    )
    try:
        write_image(task.place, result, quality=options.quality, **ways)
    except ImageError as error:
        raise UnfinishedError(str(error)) from error
    seconds = time.perf_counter() - start
    factor = factor_text(options.scale, lr, hr)
    return Outcome(
        f"{task.job.source} {lr[1]}x{lr[0]} -> {task.job.target} {hr[1]}x{hr[0]} ({factor}) in "
        f"{seconds:.1f} s, {_how(upscaler)}, {hr[0] * hr[1] / seconds / 1000:.0f} kpx/s"
    )


def _how(upscaler: Upscaler) -> str:
    """By what a picture was made."""
    precision = f"precision {upscaler.used_precision}, " if upscaler.used_precision else ""
    return f"{precision}backend {upscaler.used_backend}"


def _is_given(options: argparse.Namespace, name: str) -> bool:
    """Whether an option is on the command line; ``--halo 0`` is."""
    value = getattr(options, name.removeprefix("--").replace("-", "_"))
    return value is not None and value is not False


def _in_pieces(task: Task, options: argparse.Namespace) -> bool:
    """Whether the output is asked for, or can only be made, piece by piece."""
    target = task.place
    asked = [name for name in PIECES_OPTIONS if _is_given(options, name)]
    # Outputs and inputs that do not fit in memory, and those that several processes make.
    forms = (by_suffix(target), by_suffix(task.job.source))
    if torchrun_started() or any(form is not None and form.pieces_only for form in forms):
        return True
    if sink_kind(target) is not None and os.path.isdir(rendering.part_of(target)):
        return True  # an interrupted run is continued, or replaced, only if asked
    if asked and sink_kind(target) is None and target.suffix.lower() in writable_suffixes():
        raise Refused(
            f"{target.suffix} is not written piece by piece: write .png or .tif, or leave out "
            f"{asked[0]}" + ("; --skip-existing passes over what is done" if options.resume else "")
        )
    return bool(asked)


def _too_large(upscaler: Upscaler, image: Image, hr: tuple[int, int], target: Path) -> bool:
    """Whether an output that can be made piece by piece cannot be made in memory."""
    if sink_kind(target) is None or upscaler.self_ensemble:
        return False
    try:
        made = upscaler.for_bits(image.bits)
        made.check(image.rgb.shape[1:], hr, [image], torch.float32)
    except TooLargeError:
        return True
    return False


def _render(
    upscaler: Upscaler, task: Task, options: argparse.Namespace, progress: Progress
) -> Outcome:
    """As `upscale_job`, piece by piece within ``--max-memory``."""
    start = time.perf_counter()
    spec = rendering.prepare(
        upscaler,
        task.picture,
        task.place,
        max_memory=options.max_memory,
        halo=options.halo,
        pyramid=options.pyramid,
        compress=not options.no_compression,
        metadata=options.metadata,
        range=options.range,
        wrap=options.wrap,
        bands=options.bands,
        **size_options(options),
    )
    if options.dry_run:
        workers = world_size()
        plan = rendering.make_plan(spec, workers)
        said = rendering.describe(spec, plan, workers) if first_rank() else ""
        return Outcome(said, done=False)
    done = rendering.run(
        spec, resume=options.resume, overwrite=options.overwrite, progress=progress
    )
    seconds = time.perf_counter() - start
    target = task.job.target
    if not done:
        return Outcome(f"{target} is complete already" if first_rank() else "", done=False)
    # One of several processes speaks for all.
    if not first_rank():
        return Outcome("")
    h, w = spec.picture
    height, width = spec.hr
    return Outcome(
        f"{task.job.source} {w}x{h} -> {target} {width}x{height} "
        f"({factor_text(options.scale, spec.picture, spec.hr)}) in {seconds:.1f} s, "
        f"{_how(upscaler)}"
    )
