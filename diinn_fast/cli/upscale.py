"""``diinn-fast upscale``: pictures, folders and globs of them."""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from diinn_fast import BackendError
from diinn_fast.cli.common import Refused, make_parser, messages
from diinn_fast.errors import ImageError, UnfinishedError
from diinn_fast.formats import (
    Image,
    check_writable,
    output_name,
    read_image,
    readable_suffixes,
    writable_suffixes,
    write_image,
)
from diinn_fast.inference import Upscaler, rendering, target_size
from diinn_fast.inference.devices import PRECISIONS, pick_device
from diinn_fast.inference.memory import TooLargeError, parse_size
from diinn_fast.inference.rendering.group import first_rank, torchrun_started, world_size
from diinn_fast.inference.sinks import sink_kind
from diinn_fast.inference.sizes import TargetSize
from diinn_fast.loading import load_weights
from diinn_fast.model import DEFAULT_WEIGHTS, bundled_names

PIECES_ONLY = ("npy", "zarr", "ome-zarr")
"""Kinds of output that are only written piece by piece."""

EXAMPLE = """\
  diinn-fast upscale photo.jpg large.png --scale 3.7
  diinn-fast upscale scans/ large/ --long-side 4000
  diinn-fast upscale map.tif huge.tif --scale 8 --max-memory 1.5GiB
"""


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    with messages(level):
        try:
            return run(options)
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:
                raise
            print(f"diinn-fast: {interrupt}", file=sys.stderr)  # what is kept
            return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "upscale",
        "[options] IN [IN ...] OUT",
        "Enlarge pictures (PNG, JPEG, TIFF, WebP; .npy and Zarr). Alpha, grey, 16 bits, colour "
        "profile and dpi are "
        "kept. With --max-memory, or into .npy, .zarr and .ome.zarr, the output is made piece by "
        "piece, of any size; "
        "torchrun -m diinn_fast upscale shares the pieces among processes.",
        EXAMPLE,
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="IN OUT",
        help="picture, or folder or pattern of pictures (OUT is then a folder)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--scale",
        type=_scale,
        metavar="S",
        help="factor, or two: vertical, horizontal (default: 4)",
    )
    size.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="height and width of the output"
    )
    size.add_argument(
        "--long-side", type=int, metavar="N", help="longer side of the output in pixels"
    )
    bundled = ", ".join(bundled_names())
    parser.add_argument(
        "--weights",
        default=DEFAULT_WEIGHTS,
        help=f"bundled model ({bundled}), model folder, or checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--mode", type=int, choices=(2, 3), help="of weights whose file does not say which of them"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: CUDA if there is any)")
    parser.add_argument(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="auto: fp16 on CUDA, fp32 elsewhere; int8: the decoder's products, on the CPU",
    )
    parser.add_argument(
        "--backend", help="decoder implementation, see diinn-fast info (default: the fastest)"
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="mean over 8 flips and turns, 8 times the work"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing outputs (never inputs)"
    )
    pieces = parser.add_argument_group("outputs of any size (.png, .tif, .npy, .zarr, .ome.zarr)")
    pieces.add_argument(
        "--max-memory", metavar="SIZE", help="bound on peak memory, such as 600MiB or 1.5GiB"
    )
    pieces.add_argument(
        "--dry-run", action="store_true", help="print the plan, memory, disk and time, and stop"
    )
    pieces.add_argument("--resume", action="store_true", help="continue an interrupted run")
    pieces.add_argument(
        "--halo",
        type=int,
        metavar="N",
        help="LR pixels read around a tile (default: all that count; fewer are faster)",
    )
    pieces.add_argument(
        "--pyramid", action="store_true", help="TIFF: add smaller copies for viewers"
    )
    pieces.add_argument(
        "--no-compression", action="store_true", help="TIFF and Zarr: larger and faster"
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="of JPEG and WebP, 1 to 100 (default: %(default)s)"
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="print errors, and the plan of a dry run, only"
    )
    loudness.add_argument("-v", "--verbose", action="store_true", help="print what is done")
    options = parser.parse_intermixed_args(join_scale(arguments))
    if len(options.paths) < 2:
        parser.error("an input and an output are needed")
    if not 1 <= options.quality <= 100:
        parser.error(f"--quality must be 1 to 100, got {options.quality}")
    if options.max_memory is not None:
        parse_size(options.max_memory)
    target_size((1, 1), **_size_options(options))  # refuses what is wrong for every picture
    return options


def join_scale(arguments: list[str]) -> list[str]:
    """``--scale 2 3`` as one word, so that ``--scale 2 in.png`` leaves the picture alone."""
    joined = list(arguments)
    for n in range(len(joined) - 2):
        if joined[n] == "--scale" and _is_number(joined[n + 1]) and _is_number(joined[n + 2]):
            joined[n + 1 : n + 3] = [f"{joined[n + 1]} {joined[n + 2]}"]
            break
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _scale(text: str) -> float | tuple[float, ...]:
    if "," in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} has a comma: write a factor with a point, such as 2.5, and two factors as "
            "--scale 2 3"
        )
    try:
        numbers = tuple(float(part) for part in text.split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not one or two numbers") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _size_options(options: argparse.Namespace) -> TargetSize:
    return {"scale": options.scale, "size": options.size, "long_side": options.long_side}


def run(options: argparse.Namespace) -> int:
    pairs = plan(options.paths[:-1], options.paths[-1])
    model = options.weights
    if options.mode is not None:
        model = load_weights(model, mode=options.mode)
    upscaler = Upscaler(
        model,
        device=pick_device(options.device),
        precision=options.precision,
        backend=options.backend,
        self_ensemble=options.self_ensemble,
    )
    if pairs.folder is not None and not options.dry_run:
        try:
            pairs.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"folder {pairs.folder} cannot be made ({error.strerror}): choose another one"
            ) from None
    failures = []
    for source, target in pairs.files:
        try:
            line = upscale_file(upscaler, source, target, options)
        except BackendError:
            raise
        except Exception as error:
            if not pairs.batch or options.debug:
                raise
            failures.append(error)
            continue
        if line and (options.dry_run or not options.quiet):
            print(line, flush=True)
    for failure in failures:
        print(f"diinn-fast: {' '.join(str(failure).split())}", file=sys.stderr)
    if failures:
        print(f"diinn-fast: {len(failures)} of {len(pairs.files)} pictures failed", file=sys.stderr)
    return 1 if failures else 0


def upscale_file(
    upscaler: Upscaler, source: Path, target: Path, options: argparse.Namespace
) -> str:
    """Read, check, upscale, write; returns the line to print."""
    if _in_pieces(target, source, options):
        return render_file(upscaler, source, target, options)
    start = time.perf_counter()
    image = read_image(source)
    lr = image.rgb.shape[1], image.rgb.shape[2]
    hr = target_size(lr, **_size_options(options))
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
    return (
        f"{source} {lr[1]}x{lr[0]} -> {target} {hr[1]}x{hr[0]} ({_factor(options.scale, lr, hr)}) "
        f"in {seconds:.1f} s, "
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
        **_size_options(options),
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
        f"({_factor(options.scale, spec.picture, spec.hr)}) in {seconds:.1f} s, "
        f"backend {upscaler.used_backend}"
    )


def _factor(
    asked: float | tuple[float, ...] | None, lr: tuple[int, int], hr: tuple[int, int]
) -> str:
    if isinstance(asked, float):
        return f"x{asked:g}"
    vertical, horizontal = (f"x{out / n:.3g}" for out, n in zip(hr, lr, strict=True))
    return vertical if vertical == horizontal else f"{vertical} down, {horizontal} across"


class Pairs(NamedTuple):
    """Inputs with their outputs, in ``folder`` if one was named; one bad picture does not stop a
    batch.
    """

    files: list[tuple[Path, Path]]
    batch: bool
    folder: Path | None


def plan(inputs: list[str], output: str) -> Pairs:
    """Which picture becomes which file. Refuses collisions and outputs that are inputs, before
    anything is done.
    """
    sources = []
    collective = len(inputs) > 1
    for text in inputs:
        found = _expand(text)
        collective |= found != [Path(text)]
        sources += found
    sources = list({os.path.realpath(p): p for p in reversed(sources)}.values())[
        ::-1
    ]  # each once, in order
    out = Path(output)
    store = (
        sink_kind(out) in PIECES_ONLY
    )  # a Zarr is a folder on the disk, and shells end its name with a slash
    folder = collective or (not store and (out.is_dir() or output.endswith(("/", os.sep))))
    if not folder:
        files = [(sources[0], out)]
    else:
        named = out.exists() or out.suffix.lower() in writable_suffixes()
        if store or (not out.is_dir() and named):
            raise Refused(f"the output of several pictures must be a folder, not {output}")
        files = [(source, out / output_name(source)) for source in sources]
    _refuse_collisions(files)
    return Pairs(files, collective, out if folder else None)


def _expand(text: str) -> list[Path]:
    """The pictures that an input means: those of a folder, those that match a pattern, or the file
    itself.
    """
    path = Path(text)
    if path.is_dir() and path.suffix.lower() != ".zarr":
        found = sorted(
            p for p in path.iterdir() if p.suffix.lower() in readable_suffixes() and p.is_file()
        )
        if not found:
            raise Refused(f"folder {text} has no pictures ({', '.join(readable_suffixes())})")
        return found
    if not path.exists() and glob.has_magic(text):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not found:
            raise Refused(f"nothing matches {text}")
        return found
    return [path]


def _refuse_collisions(files: list[tuple[Path, Path]]) -> None:
    originals = {os.path.realpath(source) for source, _ in files}
    owner: dict[str, Path] = {}
    for source, target in files:
        place = os.path.realpath(target)
        if place in originals:
            raise Refused(f"output {target} is one of the inputs: choose another name or folder")
        if place in owner:
            raise Refused(
                f"{owner[place]} and {source} would both become {target}: upscale them separately"
            )
        owner[place] = source
