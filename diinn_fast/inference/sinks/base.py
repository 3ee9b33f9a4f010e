"""The sinks that collect samples in one raw file and make the output of it in the end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.files import is_disk_full, publish, sync_folder
from diinn_fast.imageio.formats import already_exists
from diinn_fast.imageio.layout import Layout, Progress
from diinn_fast.inference.sinks.protocol import SinkOptions
from diinn_fast.inference.sinks.samples import SampleFile


@contextmanager
def system_errors(path: Path, part: Path) -> Iterator[None]:
    """Make one sentence of an OSError; it says what is kept."""
    try:
        yield
    except FileExistsError as error:  # the output has appeared meanwhile
        raise already_exists(path) from error
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            raise ImageError(
                f"{path} is not complete, the disk is full: {part} keeps what was done, free some "
                "space and resume."
            ) from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(
            f"{path} is not complete ({reason}): {part} keeps what was done, check the disk and "
            "resume."
        ) from error


class SampleSink(ABC):
    """Windows go into `part`/samples; `finish` encodes them into `part`/final, which takes the
    name.
    """

    unit = (1, 1)
    header = b""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        options: SinkOptions,
        *,
        part: Path,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.path = path
        self.target = Path(
            os.path.realpath(path)
        )  # through a symbolic link instead of replacing it
        self.layout = layout
        self.options = options
        self.part = part
        self.overwrite = overwrite
        self.final = part / "final"
        self._taken = (
            part / "final.ready"
        )  # stands from the moment on when `final` may have taken the name
        self.samples: SampleFile | None = None
        with system_errors(path, part):
            if not resume:
                self._taken.unlink(missing_ok=True)
                self.final.unlink(missing_ok=True)
            self._open(resume)

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
        with system_errors(self.path, self.part):
            self._opened().write(y, x, samples)

    def flush(self) -> None:
        with system_errors(self.path, self.part):
            if self.samples is not None:
                self.samples.sync()
                sync_folder(self.part)

    def finish(self, progress: Progress | None = None) -> None:
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
        try:
            with open(self.final, "w+b") as file:
                self.encode(file, self._opened(), progress)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                self.final.unlink(missing_ok=True)  # a full disk gets its space back
            raise

    @abstractmethod
    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        """Write the final form into a new, empty file open for reading and writing."""

    def _published(self) -> bool:
        """The output bears its name already: as a second link, or moved (a file system without
        links).
        """
        if not self._taken.exists() or not self.target.exists():
            return False
        return not self.final.exists() or os.path.samefile(self.final, self.target)

    def _opened(self) -> SampleFile:
        if self.samples is None:
            raise ImageError(f"{self.path} is finished already: nothing more can be written.")
        return self.samples

    def close(self) -> None:
        if self.samples is not None:
            self.samples.close()
