"""What a picture format can be asked for; each format is one subclass in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import Bands
from diinn_fast.formats.layout import Layout, Read
from diinn_fast.formats.sinks import Sink, SinkOptions, SinkTarget
from diinn_fast.formats.sources import ArraySource, Source, file_identity
from diinn_fast.metadata import NOTHING, Metadata


@dataclass
class Decoded:
    """Upright samples and what the file says about the picture.

    Attributes:
        samples: [h, w, c] uint8, uint16, or float32 in [0, 1]; c is grey, grey + alpha, RGB, RGB +
            alpha.
        metadata: what else the file says, of the upright picture.
        lossless: the file has no loss although files of its format may have.
        bands: what c is, where it is anything else; None: as said.
    """

    samples: np.ndarray
    metadata: Metadata = NOTHING
    lossless: bool = False
    bands: Bands | None = None


class Format:
    """A picture format: how it is recognised, read and written, and where it ends.

    A subclass sets the attributes and overrides the methods for what it can do.

    Attributes:
        key: short name in lower case, unique; stored in the journals of interrupted work.
        name: as messages spell it.
        suffixes: of file names, in lower case; the first one is the usual one.
        magics: how files begin; an empty tuple where `recognises` decides otherwise.
        reads, writes, streams: a file can be read; be written from memory; be written piece by
            piece.
        lossy: pixels change when they are written, unless it is `lossless` and that is asked for.
        alpha: it can hold an alpha channel.
        max_side: longest side in pixels that can really be written.
        dtypes: sample types that can be written.
        bands: samples may be more, or others, than grey or RGB with or without alpha.
        folders: its pictures are folders.
        unit: (rows, columns) of the pieces that processes may write independently.
        holds: entries of `Metadata` that it has a place for; "note" is EXIF's maker note.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    magics: ClassVar[tuple[bytes, ...]] = ()
    reads: ClassVar[bool] = True
    writes: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    lossy: ClassVar[bool] = False
    lossless: ClassVar[bool] = True
    alpha: ClassVar[bool] = True
    max_side: ClassVar[int] = 2**31 - 1
    dtypes: ClassVar[tuple[str, ...]] = ("uint8",)
    bands: ClassVar[bool] = False
    folders: ClassVar[bool] = False
    unit: ClassVar[tuple[int, int]] = (1, 1)
    holds: ClassVar[frozenset[str]] = frozenset()

    @property
    def pieces_only(self) -> bool:
        """Whether its pictures are never held in memory as a whole: arrays of any size."""
        return self.streams and not self.writes

    def prepare(self, path: Path) -> None:
        """Import what writing `path` needs; ImageError if that is absent."""

    def recognises(self, start: bytes) -> bool:
        """Whether a file that begins with `start` (32 bytes or all of it) is of this format."""
        return start.startswith(self.magics) if self.magics else False

    def recognises_folder(self, path: Path) -> bool:
        """Whether a folder is a picture of this format."""
        return False

    def read(self, name: str, file: BinaryIO, max_bytes: int | None = None) -> Decoded:
        """Decode a whole picture from a seekable binary file; messages call it `name`.

        `max_bytes` bounds the memory that is taken, and is checked before anything is allocated;
        without it, what float samples of the picture leave free is the bound.

        Raises:
            ImageError: damaged, cut off, not supported, or too large.
        """
        raise ImageError(f"{name} is {self.name}, read by region: give its path to upscale it.")

    def open(self, path: Path, file: BinaryIO, max_bytes: int | None = None) -> Source:
        """A source of regions of the file at `path`; here one that decodes everything at once."""
        decoded = self.read(str(path), file, max_bytes)
        return ArraySource(decoded.samples, file_identity(path), decoded.metadata)

    def open_folder(self, path: Path, max_bytes: int | None = None) -> Source:
        """A source of regions of the folder at `path`."""
        raise ImageError(f"{path} is a folder: name an image file in it.")

    def quality(self, file: BinaryIO) -> int | None:
        """How finely a file with loss was written, 1 to 100 as of encoders; None: not known."""
        return None

    def can_hold(self, entry: str, value: Any) -> bool:
        """Whether this value of an entry of `Metadata` can be written."""
        return entry in self.holds

    def stored(self, channels: int, bits: int) -> tuple[int, int]:
        """(channels, bits) that a picture of so many gets in a file."""
        if bits == 32 and "float32" in self.dtypes:
            return channels, 32
        return channels, 16 if bits > 8 and "uint16" in self.dtypes else 8

    def write(
        self, name: str, file: BinaryIO, layout: Layout, read: Read, *, quality: int | None
    ) -> None:
        """Write a whole picture into a new file, open for reading and writing; messages call it
        `name`. ``quality`` None: without loss.

        Raises:
            ImageError: the encoder refuses. OSError: the system refuses.
        """
        raise NotImplementedError(f"{self.name} is not written from memory")

    def sink(self, target: SinkTarget) -> Sink:
        """Where the pieces of an output go."""
        raise NotImplementedError(f"{self.name} is not written piece by piece")

    def disk_bytes(self, layout: Layout, options: SinkOptions) -> tuple[int, int]:
        """Worst case in bytes: (what the sink holds beside the final form, the final form)."""
        raise NotImplementedError(f"{self.name} is not written piece by piece")

    def finish_bytes(self, layout: Layout) -> int:
        """Most memory in bytes that `Sink.finish` holds; grows with the length of a row at most."""
        raise NotImplementedError(f"{self.name} is not written piece by piece")

    def read_job(self, path: Path) -> str | None:
        """`Layout.job` found in a finished output; None if there is none, or the output is
        damaged. May raise OSError.
        """
        return None

    def check_layout(self, path: Path, layout: Layout) -> None:
        """Refuse (ImageError) what the format cannot hold."""
        if not (layout.bands.is_picture or self.bands):
            raise ImageError(
                f"{path} cannot hold {layout.channels} bands, {self.name} has grey or RGB: write "
                ".tif, .npy or .zarr."
            )
        if layout.dtype not in self.dtypes:
            raise ImageError(
                f"{path} cannot hold {layout.dtype}, {self.name} has {' or '.join(self.dtypes)}: "
                "write .tif, .npy or .zarr."
            )
