"""What ``diinn-fast upscale`` is asked for: its options, and which of them do not go together."""

from __future__ import annotations

import argparse

from diinn_fast.cli.common import make_parser
from diinn_fast.inference import target_size
from diinn_fast.inference.devices import PRECISIONS
from diinn_fast.inference.memory import parse_size
from diinn_fast.inference.sizes import TargetSize
from diinn_fast.model import DEFAULT_WEIGHTS, bundled_names

EXAMPLE = """\
  diinn-fast upscale photo.jpg large.png --scale 3.7
  diinn-fast upscale scans/ large/ --long-side 4000
  diinn-fast upscale map.tif huge.tif --scale 8 --max-memory 1.5GiB
"""


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
    target_size((1, 1), **size_options(options))  # refuses what is wrong for every picture
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


def size_options(options: argparse.Namespace) -> TargetSize:
    return {"scale": options.scale, "size": options.size, "long_side": options.long_side}
