"""``diinn-fast eval``: models x data sets x scales by a named protocol, into tables, plots and crop
sheets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diinn_fast.cli.common import Refused, make_parser
from diinn_fast.encoders import encoder_names
from diinn_fast.errors import DataError
from diinn_fast.evaluation.inputs import KINDS
from diinn_fast.evaluation.tables import TABLES
from diinn_fast.metrics import METRICS, PROTOCOLS

EXAMPLE = """\
  diinn-fast eval --data Set5 Set14 --models bicubic liif=edsr-baseline-liif.pth bundled
  diinn-fast eval --data DIV2K --table in-scale --protocol liif-div2k
"""


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    options = make_eval_parser().parse_args(arguments)
    try:
        return run(options)
    except DataError as error:
        raise Refused(str(error)) from error


def make_eval_parser() -> argparse.ArgumentParser:
    """The options of ``eval``, in the groups of its help."""
    parser = make_parser(
        "eval",
        "[options] --data DIR [DIR ...]",
        "Score models on folders of HR images. Rows are added to OUT/images.csv as they come; the "
        "same command resumes an interrupted evaluation, and further models, sets or scales are "
        "added to the same OUT.",
        EXAMPLE,
    )
    _add_subjects(parser)
    _add_rules(parser)
    _add_output(parser)
    return parser


def _add_subjects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="DIR", help="folders of HR images"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["bicubic", "bundled"],
        metavar="MODEL",
        help="bicubic, bundled, a bundled model's name, a checkpoint (DIINN, LIIF, Meta-SR) or a "
        "model folder; "
        "LABEL=MODEL names it in the tables (default: bicubic bundled)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="each model also as NAME+, the mean over 8 flips and turns: 8 times the work",
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="folder of runs, for --table ablation"
    )
    parser.add_argument(
        "--encoder", default="rdn", help=f"for --table runtime: {encoder_names()} (default: rdn)"
    )


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scales", nargs="+", type=float, metavar="S", help="(default: 2 3 4)")
    parser.add_argument(
        "--table",
        choices=TABLES,
        help="a table of the DIINN paper: its scales, protocol and models",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="rules of measurement (default: liif-div2k for folders called DIV2K*, else "
        "liif-benchmark)",
    )
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, help="(default: those of the protocol)"
    )
    parser.add_argument(
        "--inputs",
        nargs="+",
        default=["clean"],
        metavar="KIND",
        help=f"what the LR images suffer first, a table each: {KINDS} (default: clean)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), metavar="DIR", help="(default: evaluation)"
    )
    parser.add_argument(
        "--sheets", type=int, default=1, metavar="N", help="crop sheets per set (default: 1)"
    )
    parser.add_argument(
        "--sheet-scale", type=float, metavar="S", help="(default: 4, or the largest scale)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no progress bar, no table on the terminal"
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate as the options say; returns the exit status."""
    from diinn_fast.evaluation import tables

    if options.table == "runtime":
        return tables.runtime(options)
    return tables.quality(options)
