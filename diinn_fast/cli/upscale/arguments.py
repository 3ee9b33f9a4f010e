"""What ``diinn-fast upscale`` is asked for: its options, and which of them do not go together."""

from __future__ import annotations

import argparse

from diinn_fast.cli.common import Parser, make_parser
from diinn_fast.cli.upscale import values
from diinn_fast.formats import by_suffix
from diinn_fast.formats.bands import EACH
from diinn_fast.inference import target_size
from diinn_fast.inference.devices import AUTO, PRECISIONS
from diinn_fast.inference.memory import parse_size
from diinn_fast.inference.ranges import DTYPE, check_range
from diinn_fast.inference.sizes import TargetSize
from diinn_fast.metadata import CHOICES, KEEP
from diinn_fast.model import DEFAULT_WEIGHTS, bundled_names

EXAMPLE = """\
  diinn-fast upscale photo.jpg large.png --scale 3.7
  diinn-fast upscale scans/ large/ --long-side 4000 --recursive --skip-existing
  diinn-fast upscale map.tif huge.tif --scale 8 --max-memory 1.5GiB
  curl -s https://example.org/photo.jpg | diinn-fast upscale - - --format png > large.png
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options and paths; what is wrong for every picture is refused."""
    parser = _parser()
    # argparse forgets which words stood behind "--" if options may stand between paths.
    options_end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(values.join_pairs(arguments[:options_end]))
    options.paths += arguments[options_end + 1 :]
    if len(options.paths) < 2:
        parser.error("an input and an output are needed")
    if "" in options.paths:
        # As a path it would be the current folder, with all that is in it.
        parser.error("a name is empty: was it a shell variable that is not set?")
    if not 1 <= options.quality <= 100:
        parser.error(f"--quality must be 1 to 100, got {options.quality}")
    if options.skip_existing and options.overwrite:
        parser.error("--skip-existing and --overwrite are opposites: leave out one of the two")
    _check_sizes(parser, options)
    check_range(options.range)
    if options.max_memory is not None:
        parse_size(options.max_memory)
    target_size((1, 1), **size_options(options))
    return options


def _parser() -> Parser:
    parser = make_parser(
        "upscale",
        "[options] IN [IN ...] OUT",
        "Enlarge pictures (PNG, JPEG, TIFF, WebP; .npy and Zarr). Alpha, grey, 16 bits "
        "and metadata are kept. With --max-memory, or into .npy, .zarr and .ome.zarr, the output "
        "is made piece by piece, of any size; "
        "torchrun -m diinn_fast upscale shares the pieces among processes.",
        EXAMPLE,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="IN OUT",
        help="picture, or folder or pattern of pictures (OUT is then a folder); - is stdin, stdout",
    )
    # Groups of options, in the order in which --help lists them.
    _add_sizes(parser)
    _add_picture(parser)
    _add_bands(parser)
    _add_model(parser)
    _add_metadata(parser)
    _add_batch(parser)
    _add_pieces(parser)
    parser.add_argument(
        "--quality", type=int, default=95, help="of JPEG and WebP, 1 to 100 (default: %(default)s)"
    )
    parser.add_argument(
        "--lossless",
        action="store_true",
        help="WebP without loss, as it is anyway of a WebP without loss (JPEG is refused)",
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="print errors, and the plan of a dry run, only"
    )
    loudness.add_argument("-v", "--verbose", action="store_true", help="print what is done")
    return parser


def _add_sizes(parser: Parser) -> None:
    parser.add_argument(
        "--scale",
        type=values.scale,
        metavar="S",
        help="factor, or two: vertical, horizontal (default: 4)",
    )
    parser.add_argument(
        "--size",
        type=values.size,
        metavar="WxH",
        help="width and height of the output, such as 1920x1080; two numbers are height and width",
    )
    parser.add_argument(
        "--width", type=int, metavar="N", help="width of the output; alone, the aspect is kept"
    )
    parser.add_argument("--height", type=int, metavar="N", help="height of the output; likewise")
    parser.add_argument(
        "--long-side", type=int, metavar="N", help="longer side of the output in pixels"
    )


def _add_model(parser: Parser) -> None:
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
        choices=[AUTO, *PRECISIONS],
        default=AUTO,
        help="auto: fp16 on CUDA; int8 for pictures of 8 bits per channel on a CPU with "
        "instructions for it (see diinn-fast info), unless --backend is given; else fp32. int8: "
        "the decoder's products, on the CPU, or on CUDA with --backend triton or cuda",
    )
    parser.add_argument(
        "--backend", help="decoder implementation, see diinn-fast info (default: the fastest)"
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="mean over 8 flips and turns, 8 times the work"
    )


def _add_metadata(parser: Parser) -> None:
    parser.add_argument(
        "--metadata",
        choices=CHOICES,
        default=KEEP,
        help="what becomes of EXIF, GPS, text, georeference and the like (default: keep); colour "
        "profiles are always kept",
    )


def _add_picture(parser: Parser) -> None:
    parser.add_argument(
        "--range",
        type=values.sample_range,
        default=DTYPE,
        metavar="auto|LOW HIGH",
        help="sample values that are black and white to the network; auto: the picture's lowest "
        "and highest, for data of 10 to 14 bits in 16 and for floats (default: all of the type)",
    )
    parser.add_argument(
        "--wrap",
        action="store_true",
        help="the picture is a texture that tiles, and so is the output",
    )


def _add_bands(parser: Parser) -> None:
    parser.add_argument(
        "--bands",
        choices=[EACH],
        help="each: every band is upscaled as a grey picture of its own, whatever their number "
        "(satellites, microscopes); into .tif, .npy, .zarr, .ome.zarr",
    )


def _add_batch(parser: Parser) -> None:
    batch = parser.add_argument_group("folders and existing outputs")
    batch.add_argument(
        "--recursive", action="store_true", help="also folders in folders; OUT mirrors the tree"
    )
    batch.add_argument(
        "--format",
        type=_format,
        metavar="EXT",
        help="of outputs in a folder or on stdout, such as png or tif (default: the input's; on "
        "stdout png)",
    )
    batch.add_argument(
        "--skip-existing", action="store_true", help="leave outputs that exist, whatever they hold"
    )
    batch.add_argument(
        "--overwrite", action="store_true", help="replace existing outputs (never inputs)"
    )


def _add_pieces(parser: Parser) -> None:
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


def _format(text: str) -> str:
    """An ending that outputs can have, without its dot."""
    ending = text.lower().lstrip(".")
    form = by_suffix(f"x.{ending}")
    if form is None or not (form.writes or form.streams):
        raise argparse.ArgumentTypeError(f"{text!r} is no format that is written, such as png")
    return ending


def _check_sizes(parser: Parser, options: argparse.Namespace) -> None:
    chosen = [
        name
        for name, given in (
            ("--scale", options.scale is not None),
            ("--size", options.size is not None),
            ("--long-side", options.long_side is not None),
            ("--width", options.width is not None),
            ("--height", options.height is not None),
        )
        if given
    ]
    if len(chosen) > 1 and chosen != ["--width", "--height"]:
        parser.error(f"{chosen[0]} and {chosen[1]} do not go together: leave out one of the two")


def size_options(options: argparse.Namespace) -> TargetSize:
    """How large outputs become."""
    return {
        "scale": options.scale,
        "size": options.size,
        "long_side": options.long_side,
        "width": options.width,
        "height": options.height,
    }
