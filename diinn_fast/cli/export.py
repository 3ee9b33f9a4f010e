"""``diinn-fast export``: a model as ONNX files."""

from __future__ import annotations

import logging
from pathlib import Path

from diinn_fast.cli.common import Refused, make_parser, messages
from diinn_fast.export import export_any_scale, export_fixed_scale
from diinn_fast.loading import load_weights
from diinn_fast.model import DEFAULT_WEIGHTS, DIINN

EXAMPLE = "  diinn-fast export onnx/\n  diinn-fast export onnx/ --scale 2 4\n"


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    parser = make_parser(
        "export",
        "[options] FOLDER",
        "Write a model as ONNX, for programs without PyTorch: project.onnx and decode.onnx for any "
        "scale and window, or with --scale one file per integer scale.",
        EXAMPLE,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to write")
    parser.add_argument(
        "--weights", default=DEFAULT_WEIGHTS, help="model: bundled name, folder or file"
    )
    parser.add_argument(
        "--scale", type=int, nargs="+", metavar="S", help="integer scales, each a file of its own"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    scales: list[int] = options.scale or []
    # All names are checked before the first export, which takes minutes.
    planned = [f"diinn-x{s}.onnx" for s in scales] or ["project.onnx", "decode.onnx"]
    if not options.overwrite and (there := [n for n in planned if (folder / n).exists()]):
        raise Refused(f"{folder / there[0]} exists: pass --overwrite or choose another folder")
    with messages(logging.WARNING):
        model = load_weights(options.weights)
        if not isinstance(model, DIINN):
            raise Refused(f"{options.weights} is no DIINN: only that can be exported")
        written = [export_fixed_scale(model, folder, s) for s in scales]
        for path in written or export_any_scale(model, folder):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0
