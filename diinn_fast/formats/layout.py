"""What an output holds, and how encoders get at its samples."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import Bands, bands_of_channels
from diinn_fast.metadata import NOTHING, Metadata

DTYPES = ("uint8", "uint16", "float32")

WORKERS = min(4, os.cpu_count() or 1)
"""Threads that compress."""

Read = Callable[[int, int, int, int], np.ndarray]
"""(y0, y1, x0, x1) -> samples [y1 - y0, x1 - x0, C] in native byte order."""

Progress = Callable[[int, int], None]
"""Told (rows done, rows in all) while a result takes its final form."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Layout:
    """Samples [height, width, channels] and what the file says about them.

    Attributes:
        channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha, unless ``others`` says something
            else; alpha is not premultiplied.
        dtype: "uint8" or "uint16" over their whole range, or "float32" in [0, 1].
        metadata: what else the file says, of a picture of this size.
        job: fingerprint of the job that made the samples; stored where the format has room for it.
        others: what the channels are if they are no picture.
    """

    height: int
    width: int
    channels: int
    dtype: str
    metadata: Metadata = NOTHING
    job: str = ""
    others: Bands | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ImageError(
                f"an output of {self.width} x {self.height} pixels has none: ask for at least 1 x "
                "1."
            )
        if self.channels < 1 or self.bands.count != self.channels or self.dtype not in DTYPES:
            raise ImageError(
                f"an output of {self.channels} channels of {self.dtype} is not possible: "
                f"choose one channel or more of {', '.join(DTYPES)}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def stored(self) -> np.dtype:
        """The dtype in files: little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of samples."""
        return self.width * self.channels * self.stored.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all samples."""
        return self.height * self.row_bytes

    @property
    def bands(self) -> Bands:
        """What the channels are."""
        return self.others or bands_of_channels(self.channels)


def levels_below(layout: Layout, smallest: int) -> list[Layout]:
    """Layouts of a half, a quarter, ... (rounded up) until both sides are at most `smallest`."""
    levels = []
    while max(layout.height, layout.width) > smallest:
        half = math.ceil(layout.height / 2), math.ceil(layout.width / 2)
        layout = Layout(*half, layout.channels, layout.dtype, others=layout.others)
        levels.append(layout)
    return levels


def halve(samples: np.ndarray) -> np.ndarray:
    """Mean of every 2 x 2 samples of [h, w, C], integers rounded half up; an odd border counts
    twice.

    Depends on the four samples alone, so that any tiling that begins at even places gives the same.
    """
    height, width = samples.shape[:2]
    if height % 2 or width % 2:
        samples = np.pad(samples, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    integers = samples.dtype.kind == "u"
    wide = samples.astype(np.uint32 if integers else np.float32)
    total = (wide[0::2, 0::2] + wide[0::2, 1::2]) + (wide[1::2, 0::2] + wide[1::2, 1::2])
    mean = (total + 2) // 4 if integers else total * np.float32(0.25)
    return mean.astype(samples.dtype)


def in_order(function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`map(function, items)` by `WORKERS` threads, at most twice as many results ahead of the
    consumer.
    """
    ahead: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) == 2 * WORKERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
