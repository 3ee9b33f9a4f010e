"""What an output holds, and what every sink can do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diinn_fast.imageio import ImageError

DTYPES = ("uint8", "uint16", "float32")

Progress = Callable[[int, int], None]
"""Told (rows done, rows in all) while a result takes its final form."""


@dataclass(frozen=True)
class Layout:
    """Samples [height, width, channels] and what the file says about them.

    Attributes:
        channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; alpha is not premultiplied.
        dtype: "uint8" or "uint16" over their whole range, or "float32" in [0, 1].
        icc: ICC profile, copied into the file.
        dpi: (horizontal, vertical) dots per inch.
        job: fingerprint of the job that made the samples; stored where the format has room, see `read_job`.
    """

    height: int
    width: int
    channels: int
    dtype: str
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    job: str = ""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ImageError(f"an output of {self.width} x {self.height} pixels has none: ask for at least 1 x 1.")
        if self.channels not in (1, 2, 3, 4) or self.dtype not in DTYPES:
            raise ImageError(
                f"an output of {self.channels} channels of {self.dtype} is not possible: "
                f"choose 1 to 4 channels of {', '.join(DTYPES)}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def stored(self) -> np.dtype:
        """The dtype in files: little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def alpha(self) -> bool:
        return self.channels in (2, 4)


@dataclass(frozen=True)
class SinkOptions:
    """What a file name does not say.

    Attributes:
        pyramid: TIFF: add copies of half, a quarter, ... of the size for viewers (OME-Zarr always has them).
        compress: TIFF and Zarr: compress without loss; False is faster and larger.
    """

    pyramid: bool = False
    compress: bool = True


class Sink(Protocol):
    """Takes disjoint windows in any order, from any thread and process, and makes the file of them.

    `open_sink` with ``resume=False`` makes the data anew, which one process does before the others open it
    with ``resume=True``. The file appears under its name by `finish` alone, complete.

    Attributes:
        unit: (rows, columns): windows written by different processes must begin and end at multiples of it
            or at the border. (1, 1): anywhere.

    All methods raise ImageError when the system refuses; a full disk loses nothing that was flushed.
    """

    unit: tuple[int, int]

    def write(self, y: int, x: int, samples: np.ndarray) -> None:
        """Put `samples` [rows, columns, channels] of the layout's dtype at row y, column x."""

    def flush(self) -> None:
        """Return when all that this process wrote survives a power cut."""

    def finish(self, progress: Progress | None = None) -> None:
        """Give the complete output its name, in one process when the others have closed.

        The final form is written beside, reaches the disk and only then takes the name; after a kill it can
        be called again, also when the name was already taken by this very result.
        """

    def close(self) -> None:
        """Release the file handles; the data stays. Can be called twice."""
