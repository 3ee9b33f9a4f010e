"""What decoders say beside what they return: libtiff on stderr, tifffile in its log, and all by
warnings, which are of odd tags and never worth a line per picture.

libtiff and tifffile tell so of damage too, which they then pass over; their words are listened to.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

_DECODERS = r"(PIL|pillow_heif|tifffile|imagecodecs|zarr|numcodecs)\b"

_OF_LIBTIFF = re.compile(
    r"(?!\w+(?:Error|Exception|Warning): )"
    r"(?:_?TIFF\w*|O?JPEG\w*|[A-Z][a-z0-9]*[A-Z]\w*|[A-Z]+[a-z]\w*|tempfile\.tif): .+"
)
"""Its lines begin with the name of a function in C, as of no exception of Python's."""


def reason_of(error: Exception) -> str:
    """What a decoder's error says, as a part of a sentence."""
    said = " ".join(str(error).split()).rstrip(".")
    return said.replace(". ", "; ") or type(error).__name__


_stderr_lock = threading.Lock()


@contextmanager
def libtiff_heard(said: list[str]) -> Iterator[None]:
    """Within the block nothing reaches the process's stderr, where libtiff and libjpeg write of
    damage that they may then pass over; afterwards ``said`` has it, and all else is written.
    """
    with _stderr_lock, tempfile.TemporaryFile() as heard:
        try:
            before = os.dup(2)
        except OSError:  # there is none
            yield
            return
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            heard.seek(0)
            for line in heard.read().decode("utf-8", "replace").splitlines():
                if _OF_LIBTIFF.match(line):
                    said.append(line)
                else:  # of another thread
                    os.write(2, f"{line}\n".encode())


_listener: ContextVar[list[str] | None] = ContextVar("_listener", default=None)


class _Listening(logging.Filter):
    """Gives messages to the block that they were logged in, and to nobody else."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = _listener.get()
        if said is None:
            return True
        said.append(record.getMessage())
        return False


logging.getLogger("tifffile").addFilter(_Listening())


@contextmanager
def tifffile_heard() -> Iterator[list[str]]:
    """What tifffile logs within the block, in this thread, which would else go to stderr."""
    said: list[str] = []
    token = _listener.set(said)
    try:
        yield said
    finally:
        _listener.reset(token)


_quiet_lock = threading.Lock()
_quiet_blocks = 0


@contextmanager
def without_warnings() -> Iterator[None]:
    """Within the block, decoders' warnings are ignored; those of all other modules are not touched.

    The filters belong to the process: of blocks in several threads, the last one to end takes the
    filter away.
    """
    _count_blocks(+1)
    try:
        yield
    finally:
        _count_blocks(-1)


def _count_blocks(change: int) -> None:
    global _quiet_blocks
    ignored = ("ignore", None, Warning, re.compile(_DECODERS), 0)
    with _quiet_lock:
        _quiet_blocks += change
        if change > 0 and ignored not in warnings.filters:
            warnings.filterwarnings("ignore", module=_DECODERS)
        elif _quiet_blocks == 0 and ignored in warnings.filters:
            cast(list[object], warnings.filters).remove(ignored)
