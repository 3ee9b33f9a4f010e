"""The interface of sinks, and sinks that collect samples in one raw file and encode it at the
end.
"""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from diinn_fast.errors import ImageError, UnfinishedError
from diinn_fast.files import is_disk_full, publish, sync_folder
from diinn_fast.formats.image import already_exists
from diinn_fast.formats.layout import Layout, Progress
from diinn_fast.formats.samples import SampleFile


@dataclass(frozen=True)
class SinkOptions:
    """What a file name does not say.

    Attributes:
        pyramid: TIFF: add copies of half, a quarter, ... of the size for viewers (OME-Zarr always
            has them).
        compress: TIFF and Zarr: compress without loss; False is faster and larger.
    """

    pyramid: bool = False
    compress: bool = True


@dataclass(frozen=True)
class SinkTarget:
    """What a sink is told.

    Attributes:
        path: the output; nothing appears under this name before `Sink.finish`.
        layout: what the output holds.
        options: see `SinkOptions`.
        part: existing folder on the same file system; names that begin with "final" or "samples" in
            it are the sink's.
        resume: open what is there (also: join another process); False starts anew.
        overwrite: `Sink.finish` may replace an existing output.
    """

    path: Path
    layout: Layout
    options: SinkOptions
    part: Path
    resume: bool
    overwrite: bool


class Sink(Protocol):
    """Takes disjoint windows in any order, from any thread and process, and makes the file of them.

    `open_sink` with ``resume=False`` makes the data anew, which one process does before the others
    open it with ``resume=True``. The file appears under its name by `finish` alone, complete.

    Attributes:
        unit: (rows, columns): windows written by different processes must begin and end at
            multiples of it or at the border. (1, 1): anywhere.

    All methods raise ImageError when the system refuses; a full disk loses nothing that was
    flushed.
    """

    unit: tuple[int, int]

    def write(self, y: int, x: int, samples: np.ndarray) -> None:
        """Put `samples` [rows, columns, channels] of the layout's dtype at row y, column x."""

    def flush(self) -> None:
        """Return when all that this process wrote survives a power cut."""

    def finish(self, progress: Progress | None = None) -> None:
        """Give the complete output its name, in one process when the others have closed.

        The final form is written beside, reaches the disk and only then takes the name; after a
        kill it can be called again, also when the name was already taken by this very result.
        """

    def close(self) -> None:
        """Release the file handles; the data stays. Can be called twice."""


@contextmanager
def system_errors(path: Path, part: Path) -> Iterator[None]:
    """Make one sentence of an OSError; it says what is kept."""
    try:
        yield
    except FileExistsError as error:  # the output has appeared meanwhile
        raise already_exists(path) from error
    except (OSError, EOFError) as error:
        # A full disk is the one failure whose remedy the user can always apply.
        if isinstance(error, OSError) and is_disk_full(error):
            raise UnfinishedError(
                f"{path} is not complete, the disk is full: {part} keeps what was done, free some "
                "space and resume."
            ) from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnfinishedError(
            f"{path} is not complete ({reason}): {part} keeps what was done, check the disk and "
            "resume."
        ) from error


class SampleSink(ABC):
    """Windows go into `part`/samples; `finish` encodes them into `part`/final, which takes the
    name.
    """

    unit = (1, 1)
    header = b""

    def __init__(self, target: SinkTarget) -> None:
        self.path = target.path
        # Through a symbolic link instead of replacing it.
        self.target = Path(os.path.realpath(target.path))
        self.layout = target.layout
        self.options = target.options
        self.part = target.part
        self.overwrite = target.overwrite
        self.final = self.part / "final"
        # Stands from the moment on when `final` may have taken the name.
        self._taken = self.part / "final.ready"
        self.samples: SampleFile | None = None
        with system_errors(self.path, self.part):
            if not target.resume:
                self._taken.unlink(missing_ok=True)
                self.final.unlink(missing_ok=True)
            self._open(target.resume)

    def _open(self, resume: bool) -> None:
        try:
            self.samples = SampleFile(
                self._data, self.layout, header=self.header, create=not resume
            )
        except FileNotFoundError:
            if not self._published():
                raise ImageError(
                    f"{self.part} holds no samples of this output: delete it and start again "
                    "without resuming."
                ) from None

    @property
    def _data(self) -> Path:
        return self.part / "samples"

    def write(self, y: int, x: int, samples: np.ndarray) -> None:
        """See `Sink.write`."""
        with system_errors(self.path, self.part):
            self._opened().write(y, x, samples)

    def flush(self) -> None:
        """See `Sink.flush`."""
        with system_errors(self.path, self.part):
            if self.samples is not None:
                self.samples.sync()
                sync_folder(self.part)

    def finish(self, progress: Progress | None = None) -> None:
        """See `Sink.finish`."""
        with system_errors(self.path, self.part):
            if self._published():
                return
            if not self.overwrite and os.path.lexists(self.target):
                raise already_exists(self.path)
            self._make_final(progress)
            self._taken.touch()
            sync_folder(self.part)
            publish(self.final, self.target, self.overwrite)

    def _make_final(self, progress: Progress | None) -> None:
        self._taken.unlink(missing_ok=True)
        for left in self.part.glob("final*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        # A name of its own: no other process writes to it, where locks do not work either.
        made = self.part / f"final-{secrets.token_hex(8)}"
        try:
            with open(made, "x+b") as file:
                self.encode(file, self._opened(), progress)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, self.final)
        except BaseException:
            with suppress(OSError):
                made.unlink(missing_ok=True)  # a full disk gets its space back
            raise

    @abstractmethod
    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        """Write the final form into a new, empty file open for reading and writing."""

    def _published(self) -> bool:
        """Whether the output has its name already: as a second link, or moved (on a file system
        without links).
        """
        if not self._taken.exists() or not self.target.exists():
            return False
        return not self.final.exists() or os.path.samefile(self.final, self.target)

    def _opened(self) -> SampleFile:
        if self.samples is None:
            raise ImageError(f"{self.path} is finished already: nothing more can be written.")
        return self.samples

    def close(self) -> None:
        """See `Sink.close`."""
        if self.samples is not None:
            self.samples.close()
