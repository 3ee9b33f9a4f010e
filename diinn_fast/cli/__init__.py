"""The console program ``diinn-fast``: one module here per command, each with
``main(arguments) -> exit code``.

Exit codes: 0 done, 1 failed while working, 2 refused (usage, or what cannot work), 130 interrupted.
Errors are one sentence on stderr; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import nullcontext

from diinn_fast import __version__
from diinn_fast.cli.common import Refused
from diinn_fast.cli.streams import libraries_aside, unbreakable_streams
from diinn_fast.errors import DivergedError, Error, UnfinishedError

COMMANDS = {
    "upscale": "enlarge pictures by any factor, or to any size",
    "eval": "score models on folders of HR images: tables, plots, crop sheets",
    "train": "train a model on a folder of photographs",
    "convert": "turn a checkpoint into a model folder",
    "export": "write a model as ONNX, for programs without PyTorch",
    "view": "open pictures in the browser, enlarged as far as you look",
    "serve": "the same as a server, by IIIF for other viewers too",
    "info": "show versions, devices, models and backends",
}

HELP = """\
usage: diinn-fast COMMAND ...

Arbitrary-scale image super-resolution with DIINN.

commands:
{}

  -h, --help     show this, or with a command its options
  --version      show the version

example:
  diinn-fast upscale photo.jpg large.png --scale 3.7
""".format("\n".join(f"  {name:14} {text}" for name, text in COMMANDS.items()))


def main(arguments: list[str] | None = None) -> int:
    """Run one command (by default that of ``sys.argv``) and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # All that a library says may help to find an error.
    asides = nullcontext() if "--debug" in words else libraries_aside()
    with unbreakable_streams(), asides:
        return _run(words)


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if command == "--version":
        print(f"diinn-fast {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            raise Refused(f"unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
        # One command's modules alone are imported: some take seconds, or need packages of an extra.
        return int(importlib.import_module(f"diinn_fast.cli.{command}").main(arguments[1:]))
    except KeyboardInterrupt:
        print("diinn-fast: interrupted", file=sys.stderr)
        return 130
    except SystemExit as exit:  # argparse after --help
        return exit.code if isinstance(exit.code, int) else 1
    # 1: work had begun; 2: it was refused before.
    except (UnfinishedError, DivergedError) as error:
        return _report(error, 1, arguments)
    except (Refused, Error) as error:
        return _report(error, 2, arguments)
    except Exception as error:
        return _report(error, 1, arguments)


def _report(error: Exception, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    message = " ".join(str(error).split()) or type(error).__name__
    if code == 1 and not isinstance(error, (UnfinishedError, DivergedError)):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    print(f"diinn-fast: {message}", file=sys.stderr)
    return code
