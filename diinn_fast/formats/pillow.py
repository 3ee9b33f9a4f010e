"""File to integer samples through Pillow, including the 16-bit colour that Pillow alone cuts to 8
bits.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, ClassVar, cast

import numpy as np
import PIL.Image
from PIL.ImageFile import ImageFile

from diinn_fast.errors import ImageError
from diinn_fast.formats.base import Decoded, Format
from diinn_fast.formats.header_file import HeaderFile
from diinn_fast.formats.heard import reason_of
from diinn_fast.formats.info import metadata_of
from diinn_fast.host import free_bytes
from diinn_fast.metadata import Metadata

ORIENTATION = 274
"""EXIF and TIFF tag."""

MAX_PIXELS = 2**31
"""Largest picture that is read, whatever the memory."""

_READ_BYTES = 28
"""Peak bytes per pixel while reading 16-bit RGB + alpha: integers 8, float32 result 16, one plane
4.
"""

_DECODE_BYTES_8BIT = 22
_DECODE_BYTES_16BIT = 27
"""Peak bytes per pixel of decoding alone: 1.1 x the most measured (WebP with alpha, 16-bit RGB +
alpha).
"""

_MODES_8BIT = {"1": "L", "L": "L", "La": "LA", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
_MODES_16BIT = {"I;16", "I;16B", "RGB", "RGBA"}


class PillowReader:
    """One picture of 8 bits per sample on its way through a plugin of Pillow.

    Subclasses know what a format has beyond that.
    """

    def __init__(self, form: PillowFormat, name: str, file: BinaryIO) -> None:
        self.form = form
        self.name = name
        self.file = file
        with damage_explained(name, form):
            self.picture = self.opened()

    def read(self, max_bytes: int | None) -> Decoded:
        """All of `Format.read`, size and kind checked before anything is decoded."""
        with damage_explained(self.name, self.form):
            width, height = self.picture.size
            if max_bytes is None:
                check_size(self.name, width, height)
            self.check()
            if max_bytes is not None:
                check_bound(self.name, width, height, self.bits, max_bytes)
            samples = self.samples()
            orientation = self.orientation()  # afterwards: to look for EXIF decodes some formats
            metadata = self.metadata().upright(orientation, self.stored_size())
            return Decoded(self.upright(samples, orientation), metadata, self.lossless)

    @property
    def bits(self) -> int:
        """8 or 16 per sample, of what `samples` gives."""
        return 8

    @property
    def lossless(self) -> bool:
        """See `Decoded`."""
        return False

    def check(self) -> None:
        """Refuse what would give a wrong or partial picture."""
        self.check_frames()
        supported = _MODES_16BIT if self.bits == 16 else {*_MODES_8BIT, "P", "PA"}
        if self.picture.mode not in supported:
            raise ImageError(
                f"{self.name} has {self.picture.mode} pixels: convert it to 8- or 16-bit grey or "
                "RGB first."
            )

    def check_frames(self) -> None:
        """Refuse an animation."""
        if getattr(self.picture, "is_animated", False):
            raise ImageError(
                f"{self.name} is an animated {self.form.name}: extract its frames first and give "
                "them one by one."
            )

    def samples(self) -> np.ndarray:
        """Decode: [h, w, c] as stored, not turned."""
        picture = self.picture
        picture.load()
        if picture.mode.startswith("I;16"):
            return as_array(picture)
        if picture.mode in ("P", "PA"):
            mode = "RGBA" if picture.has_transparency_data else "RGB"
        else:
            mode = _MODES_8BIT[picture.mode]
        return as_array(picture if picture.mode == mode else picture.convert(mode))

    def orientation(self) -> object:
        """EXIF orientation, 1 where there is none or it cannot be read (as viewers do)."""
        try:
            return self.picture.getexif().get(ORIENTATION, 1)
        except Exception:
            return 1

    def stored_size(self) -> tuple[int, int]:
        """(height, width) before the picture is turned."""
        width, height = self.picture.size
        return height, width

    def metadata(self) -> Metadata:
        """What else the file says, of the picture as it is stored."""
        return metadata_of(self.picture)

    def upright(self, samples: np.ndarray, orientation: object) -> np.ndarray:
        """The samples turned as the orientation says."""
        return upright(samples, orientation)

    def opened(self) -> PIL.Image.Image:
        """The file from its beginning, with another look whatever size Pillow allows."""
        try:
            return self._opened()
        except PIL.Image.DecompressionBombError:  # some plugins look at the setting themselves
            with pillow_limit_lifted():
                return self._opened()

    def _opened(self) -> PIL.Image.Image:
        self.file.seek(0)
        header = HeaderFile(self.file, self.form.most_reads)
        picture = self.form.plugin(cast(BinaryIO, header))
        header.opened()
        return picture


class PillowFormat(Format):
    """A format that Pillow decodes, 8 bits per sample.

    Attributes:
        most_reads: of its file, until a picture is open.
    """

    most_reads = 2**17
    reader: ClassVar[type[PillowReader]] = PillowReader

    def plugin(self, file: BinaryIO) -> PIL.Image.Image:
        """Pillow's picture of a file, by the plugin of this format.

        Not by `PIL.Image.open`, which refuses large pictures by a process-wide setting.
        """
        raise NotImplementedError

    def read(self, name: str, file: BinaryIO, max_bytes: int | None = None) -> Decoded:
        """See `Format.read`."""
        return self.reader(self, name, file).read(max_bytes)


@contextmanager
def damage_explained(name: str, form: Format) -> Iterator[None]:
    """Make one ImageError of whatever a decoder raises within the block."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(
            f"{name} does not fit in memory: crop it or use a machine with more."
        ) from None
    except Exception as error:  # on damaged input decoders raise nearly every exception there is
        reason = reason_of(error)
        raise ImageError(
            f"{name} is a damaged, cut off or unusual {form.name} ({reason}): "
            f"export it again as an 8- or 16-bit grey or RGB {form.name}."
        ) from error


_limit_lock = threading.Lock()


@contextmanager
def pillow_limit_lifted() -> Iterator[None]:
    """No limit of Pillow's within the block: `check_size` has the better one."""
    with _limit_lock:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def check_size(name: str, width: int, height: int) -> None:
    """Refuse before anything of the picture's size is allocated; a small file can declare any
    size.
    """
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} declares {width} x {height} pixels, more than 2**31: cut it into parts."
        )
    # Declared sizes cost an attacker nothing; memory is asked for only if it is there.
    available = free_bytes()
    if pixels * _READ_BYTES > available:
        raise ImageError(
            f"{name} declares {width} x {height} pixels, which take "
            f"{pixels * _READ_BYTES / 2**30:.1f} GiB "
            f"to read and {available / 2**30:.1f} GiB are free: crop it or use a machine with "
            "more memory."
        )


def decode_bytes(width: int, height: int, bits: int) -> int:
    """Most memory that decoding takes, its result included."""
    return width * height * (_DECODE_BYTES_16BIT if bits == 16 else _DECODE_BYTES_8BIT)


def check_bound(name: str, width: int, height: int, bits: int, max_bytes: int) -> None:
    """Refuse what cannot be decoded within `max_bytes`."""
    needed = decode_bytes(width, height, bits)
    if needed > max_bytes:
        raise ImageError(
            f"{name} takes {needed / 2**20:,.0f} MiB to decode {width} x {height} pixels and "
            f"{max_bytes / 2**20:,.0f} "
            "are left within the bound: raise it, or convert the file to a tiled TIFF or Zarr, "
            "read by region."
        )


def is_huge(picture: PIL.Image.Image) -> bool:
    """Whether Pillow would refuse to load it by its process-wide setting."""
    return math.prod(picture.size) > (PIL.Image.MAX_IMAGE_PIXELS or math.inf)


def high_and_low_bytes(reader: PillowReader) -> np.ndarray:
    """16-bit colour samples, which Pillow has no mode for.

    Pillow decompresses 16-bit colour completely and then keeps one byte of each sample, as the byte
    order of the tile's raw mode says. Decoding twice, the second time with the byte order
    exchanged, yields the high and the low bytes.
    """
    first = as_file(reader.picture)
    set_raw_mode(first, lambda raw_mode: raw_mode.replace("RGBa", "RGBA"))
    samples = as_array(first).astype(np.uint16) << 8
    second = as_file(reader.opened())
    set_raw_mode(second, lambda raw_mode: _other_byte(raw_mode.replace("RGBa", "RGBA")))
    samples |= as_array(second)
    return samples


def as_file(picture: PIL.Image.Image) -> ImageFile:
    """A picture with tiles that are not decoded yet."""
    assert isinstance(picture, ImageFile)
    return picture


def set_raw_mode(picture: ImageFile, change: Callable[[str], str]) -> None:
    """Change how the decoder takes the samples of each tile."""
    tiles = []
    for tile in picture.tile:
        args = tile.args
        changed = (change(args[0]), *args[1:]) if isinstance(args, tuple) else change(str(args))
        tiles.append(tile._replace(args=changed))
    picture.tile = tiles


def _other_byte(raw_mode: str) -> str:
    """Raw mode with the other byte order: "RGB;16B" <-> "RGB;16L", "N" is this machine's own."""
    name = raw_mode[:-1]
    order = raw_mode[-1]
    return name + {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[order]


def as_array(picture: PIL.Image.Image) -> np.ndarray:
    """[h, w, c] in native byte order."""
    array = np.asarray(picture)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[..., None] if array.ndim == 2 else array


def upright(samples: np.ndarray, orientation: object) -> np.ndarray:
    """Undo EXIF orientation 2..8; any other value means upright already."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
