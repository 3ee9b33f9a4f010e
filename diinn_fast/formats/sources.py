"""The interface of sources, and how samples become the network's input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import Bands, bands_of_channels
from diinn_fast.formats.heard import reason_of
from diinn_fast.formats.image import check_unit, to_float
from diinn_fast.formats.missing import Missing
from diinn_fast.formats.positioned import PositionedFile
from diinn_fast.formats.sample_range import FULL, SampleRange
from diinn_fast.metadata import NOTHING, Metadata


class Source(Protocol):
    """A picture, read by region.

    Attributes:
        height, width: in pixels, of the upright picture.
        grey, alpha: it is grey, it has alpha.
        missing: what stands for missing samples; None: nothing, or nothing that is known of.
        masked: `read` gives an alpha, of the picture or of its missing samples.
        bits: 8 or 16 per sample (8 for floating point).
        dtype: "uint8", "uint16" or "float32": what an output of the same kind holds.
        metadata: what else the file says, of the upright picture.
        resident_bytes: most memory that it holds for its whole life.
        range: the samples that `read` gives as [0, 1].
        identity: changes when the picture does (path, size and time of the file, or a digest of the
            samples).
    """

    height: int
    width: int
    grey: bool
    alpha: bool
    missing: Missing | None
    masked: bool
    bits: int
    dtype: str
    metadata: Metadata
    resident_bytes: int
    range: SampleRange
    identity: str

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """rgb [3, y1 - y0, x1 - x0] float32 in [0, 1] (grey replicated) and alpha [1, ...] or None.
        Floats of a file are what they are there until a sample range is chosen.

        Any thread may call it. ImageError if the file has vanished, got shorter or is damaged
        there.
        """

    def changed(self) -> bool:
        """Whether what `read` reads of the file may be others than those that were opened."""

    def close(self) -> None:
        """Release the file. Can be called twice."""


class SampleSource(ABC):
    """A source of samples [H, W, C], integers or floats.

    Attributes:
        bands: what the channels are; `read` is for pictures alone (`Bands.is_picture`).
        each: what they are to whom asks for every band; an array has no alpha then.
        is_array: it is an array, which says nothing of its channels.
    """

    resident_bytes = 0
    range = FULL
    missing: Missing | None = None
    _file: PositionedFile | None = None

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        identity: str,
        metadata: Metadata = NOTHING,
        bands: Bands | None = None,
        each: Bands | None = None,
    ) -> None:
        self.height, self.width, self.channels = shape
        self.bands = bands or bands_of_channels(self.channels)
        self.each = each or self.bands
        self.is_array = each is not None
        self.grey = self.bands.colours == 1
        self.alpha = self.bands.alpha is not None
        self.masked = self.alpha
        self.bits = 16 if dtype.kind == "u" and dtype.itemsize == 2 else 8
        self.dtype = f"uint{self.bits}" if dtype.kind == "u" else "float32"
        self.metadata = metadata
        self.identity = identity

    @abstractmethod
    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """[y1 - y0, x1 - x0, C] of a window inside the picture."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""
        check_inside(self, y0, y1, x0, x1)
        samples = self.samples(y0, y1, x0, x1)
        rgb = torch.empty(3, y1 - y0, x1 - x0)
        for channel in range(3):
            rgb[channel] = to_float(samples[..., 0 if self.grey else channel])
        alpha = to_float(samples[..., -1])[None] if self.alpha else None
        if alpha is not None:
            check_unit(alpha)
        return rgb, alpha

    def planes(self, y0: int, y1: int, x0: int, x1: int, channels: Sequence[int]) -> Tensor:
        """Some channels ``[n, y1 - y0, x1 - x0]`` as `read` gives them, whatever they are."""
        check_inside(self, y0, y1, x0, x1)
        samples = self.samples(y0, y1, x0, x1)
        return torch.stack([to_float(samples[..., channel]) for channel in channels])

    def changed(self) -> bool:
        """See `Source.changed`."""
        return self._file is not None and self._file.changed()

    def close(self) -> None:
        """See `Source.close`."""
        if self._file is not None:
            self._file.close()


class DerivedSource(ABC):
    """Another source's picture, changed when it is read.

    What a subclass does not set is that source's.
    """

    def __init__(self, source: Source, size: tuple[int, int] | None = None) -> None:
        """``size``: (height, width), if they are not the source's."""
        self._source = source
        self.height, self.width = size or (source.height, source.width)
        self.grey = source.grey
        self.alpha = source.alpha
        self.missing = source.missing
        self.masked = source.masked
        self.bits = source.bits
        self.dtype = source.dtype
        self.metadata = source.metadata
        self.resident_bytes = source.resident_bytes
        self.range = source.range
        self.identity = source.identity

    @abstractmethod
    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""

    def changed(self) -> bool:
        """See `Source.changed`."""
        return self._source.changed()

    def close(self) -> None:
        """Release the source."""
        self._source.close()


class ArraySource(SampleSource):
    """Samples [H, W, C] as they are: 3 bytes a pixel for 8-bit RGB, a quarter of what float samples
    take.
    """

    def __init__(
        self,
        samples: np.ndarray,
        identity: str,
        metadata: Metadata = NOTHING,
        bands: Bands | None = None,
        each: Bands | None = None,
    ) -> None:
        height, width, channels = samples.shape
        shape = height, width, channels
        super().__init__(shape, samples.dtype, identity, metadata, bands, each)
        self._samples = samples
        self.resident_bytes = samples.nbytes

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """See `SampleSource.samples`."""
        return self._samples[y0:y1, x0:x1]


class RowsSource(SampleSource):
    """Row-major samples that begin at byte `start` of a file, uncompressed."""

    def __init__(
        self,
        name: str,
        file: PositionedFile,
        start: int,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        identity: str,
        metadata: Metadata = NOTHING,
        bands: Bands | None = None,
        each: Bands | None = None,
    ) -> None:
        super().__init__(shape, dtype, identity, metadata, bands, each)
        self.name = name
        self._start = start
        self._dtype = dtype
        self._file: PositionedFile = file

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """See `SampleSource.samples`."""
        channels = self.channels
        try:
            values = self._file.window(
                self._start,
                self.width * channels,
                self._dtype,
                y0,
                y1,
                x0 * channels,
                (x1 - x0) * channels,
            )
        except (OSError, EOFError) as error:
            raise unreadable(self.name, error) from error
        return values.reshape(y1 - y0, x1 - x0, channels)


def check_inside(source: Source | SampleSource, y0: int, y1: int, x0: int, x1: int) -> None:
    """IndexError for a window that is empty or not inside: a programming error."""
    if not (0 <= y0 < y1 <= source.height and 0 <= x0 < x1 <= source.width):
        raise IndexError(
            f"window {(y0, y1, x0, x1)} is not inside {source.height} x {source.width}"
        )


def file_identity(path: Path) -> str:
    """Path, size and time of last change."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def check_array(path: Path | str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """[h, w, C] of an array that can be a picture, or its bands; ImageError for any other."""
    full = shape if len(shape) == 3 else (*shape, 1)
    if len(full) != 3 or min(full) < 1:
        raise ImageError(
            f"{path} holds an array {list(shape)}: give one of [h, w] or [h, w, 1 to 4]."
        )
    if dtype.kind not in "uf" or (dtype.kind == "u" and dtype.itemsize > 2):
        raise ImageError(f"{path} holds {dtype}: convert it to uint8, uint16 or float in [0, 1].")
    return full[0], full[1], full[2]


def unreadable(path: Path | str, error: Exception) -> ImageError:
    """The refusal of a file that can no longer be read."""
    reason = getattr(error, "strerror", None) or reason_of(error)
    return ImageError(
        f"{path} can no longer be read ({reason}): restore the file, or fetch or export it again."
    )
