"""What every sink can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diinn_fast.imageio.layout import Progress


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
