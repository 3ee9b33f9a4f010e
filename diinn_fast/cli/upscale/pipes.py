"""Pictures from stdin and other pipes, and into them."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from diinn_fast.cli.common import Refused
from diinn_fast.errors import UnfinishedError

PIPE = "-"
"""stdin as an input, stdout as an output."""

STDOUT = (PIPE, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
STDIN = (PIPE, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def is_pipe(path: Path) -> bool:
    """Whether it is a stream and no file: read once, written once, never replaced."""
    if str(path) in STDIN or str(path) in STDOUT:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def is_stdout(path: Path) -> bool:
    """Whether pictures go where lines would."""
    return str(path) in STDOUT


def contents(source: Path) -> Path | bytes:
    """A picture's path; of a pipe, all that comes out of it."""
    if not is_pipe(source):
        return source
    if str(source) in STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise Refused("stdin is a terminal: pipe a picture into it, or name a file")
        return sys.stdin.buffer.read()
    return source.read_bytes()


@contextmanager
def place_of(target: Path, ending: str) -> Iterator[Path]:
    """Where to write an output: for a pipe a file of its own, which goes into it in the end."""
    if not is_pipe(target):
        yield target
        return
    if is_stdout(target) and sys.stdout.isatty():
        raise Refused("stdout is a terminal: send the picture into a file or a program")
    if ending.endswith("zarr"):
        raise Refused("a Zarr is a folder, which no pipe takes: name an output")
    # Formats seek in their output, which a pipe cannot: it gets the finished file.
    with tempfile.TemporaryDirectory(prefix="diinn-fast-") as folder:
        place = Path(folder) / f"picture.{ending}"
        yield place
        if not place.exists():
            return  # a dry run
        try:
            with open(place, "rb") as made:
                _copy(made, target)
        except OSError as error:
            raise UnfinishedError(
                f"the picture could not be written ({error.strerror}): whatever reads {target} "
                "has ended"
            ) from error


def _copy(made: BinaryIO, target: Path) -> None:
    if is_stdout(target):
        shutil.copyfileobj(made, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with open(os.open(target, os.O_WRONLY), "wb") as out:
        shutil.copyfileobj(made, out)
