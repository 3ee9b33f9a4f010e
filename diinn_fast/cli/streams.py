"""The program's standard streams: work goes on when their reader has ended or their disk is
full, and libraries do not write between our sentences.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO, cast

log = logging.getLogger("diinn_fast")


class UnbreakableStream:
    """A text stream that drops its output after the first write that the system refuses."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> int:
        """As of any text stream; never fails."""
        if not self._broken:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:  # of a name of a file, which may be any bytes
                encoding = self._stream.encoding
                return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except (OSError, ValueError):
                self._silence()
        return len(text)

    def flush(self) -> None:
        """As of any text stream; never fails."""
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._silence()

    def _silence(self) -> None:
        self._broken = True
        # What is buffered goes nowhere, or the interpreter would complain of it at its end.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unbreakable_streams() -> Iterator[None]:
    """Within the block, stdout and stderr take what is printed, whoever reads it."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        # Services and windows without a console have no streams at all.
        given = [
            stream or stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            for stream in before
        ]
        sys.stdout, sys.stderr = (cast(TextIO, UnbreakableStream(stream)) for stream in given)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


@contextmanager
def libraries_aside() -> Iterator[None]:
    """Within the block, what libraries warn of and log is told of with ``--verbose`` alone.

    A picture that cannot be right is refused by our own sentences, whatever they say.
    """
    aside = _Aside()
    root = logging.getLogger()
    root.addHandler(aside)
    with warnings.catch_warnings():
        warnings.showwarning = _show_aside
        try:
            yield
        finally:
            root.removeHandler(aside)


class _Aside(logging.Handler):
    """Takes what no other handler does; without one, Python would print warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] != log.name and record.levelno >= logging.WARNING:
            log.info("%s: %s", record.name, " ".join(record.getMessage().split()))


def _show_aside(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    log.info("%s: %s", category.__name__, " ".join(str(message).split()))


def _open_closed_descriptors() -> None:
    """Standard streams that the caller has closed: else the next files that are opened, pictures
    among them, take their numbers and all that libraries print there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given, which is this one.
            os.open(os.devnull, os.O_RDWR)
