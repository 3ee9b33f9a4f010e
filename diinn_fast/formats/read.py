"""`read_image`: a file to float samples, with its orientation applied and nothing else changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, IOBase
from pathlib import Path
from typing import BinaryIO, cast

import torch

from diinn_fast.errors import ImageError
from diinn_fast.files import address
from diinn_fast.formats.bands import check_picture
from diinn_fast.formats.base import Format
from diinn_fast.formats.heard import without_warnings
from diinn_fast.formats.image import Image, check_unit, to_float
from diinn_fast.formats.missing import Missing
from diinn_fast.formats.registry import by_content, names

CONTENTS = (bytes, bytearray, memoryview, IOBase)
"""What a picture's file may be beside its path: its contents, or an open binary file."""

File = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | IOBase


@without_warnings()
def read_image(file: File, *, any_range: bool = False) -> Image:
    """Read a picture from a path, bytes or an open binary file; its contents decide the format, not
    the name.

    Kept: bit depth, alpha (also tRNS), grey, metadata. Applied: EXIF orientation. Palettes become
    RGB, or RGB + alpha where they have transparency; 1-, 2- and 4-bit grey become 8-bit grey;
    premultiplied alpha of a TIFF is divided out. Of a phone's multi-picture JPEG the main picture
    is read.

    With ``any_range``, floats may lie outside [0, 1]; else they are refused, but for the value that
    the metadata calls missing.

    Raises:
        ImageError: missing, empty, damaged or cut off file; not a format that is read; CMYK,
            YCbCr, LAB; float, signed or 32-bit samples; animation; more than one page
            (reduced-resolution copies aside); 16-bit TIFF with separate planes or grey + alpha;
            more pixels than fit in memory.
    """
    with opened(file) as (name, stream):
        decoded = sniff(name, stream).read(name, stream)
        if decoded.bands is not None:
            check_picture(name, decoded.bands)
    samples = decoded.samples
    channels = samples.shape[2]
    colours = 3 if channels >= 3 else 1
    try:
        # Plane by plane: one float copy at a time beside the samples.
        rgb = torch.empty(3, *samples.shape[:2])
        for channel in range(3):
            rgb[channel] = to_float(samples[..., min(channel, colours - 1)])
        alpha = to_float(samples[..., -1])[None] if channels > colours else None
        if samples.dtype.kind == "f" and not any_range:
            check_unit(rgb, Missing.of(decoded.metadata, "float32"))
        if samples.dtype.kind == "f" and alpha is not None:
            check_unit(alpha)
    except (MemoryError, RuntimeError):  # torch reports a failed allocation as RuntimeError
        raise ImageError(
            f"{name} does not fit in memory: crop it or use a machine with more."
        ) from None
    return Image(
        rgb=rgb,
        alpha=alpha,
        grey=colours == 1,
        bits=8 * samples.itemsize,  # 32: floats
        metadata=decoded.metadata,
        lossless=decoded.lossless,
    )


@without_warnings()
def quality_of(file: File) -> int | None:
    """How finely a file with loss was written, 1 to 100 as of encoders; None: without loss, or not
    known. ImageError for what is no picture.
    """
    with opened(file) as (name, stream):
        form = sniff(name, stream)
        stream.seek(0)
        return form.quality(stream)


@contextmanager
def opened(file: File) -> Iterator[tuple[str, BinaryIO]]:
    """What messages call the picture, and a binary file of it that can be sought.

    A file that was given open stays open; one that cannot be sought is read into memory.
    """
    if isinstance(file, (bytes, bytearray, memoryview)):
        yield "the picture", BytesIO(file)
    elif isinstance(file, (str, os.PathLike)):
        path = Path(file)
        with open_picture(path) as stream:
            yield str(path), stream if stream.seekable() else BytesIO(stream.read())
    else:
        name = getattr(file, "name", None)
        binary = cast(BinaryIO, file)
        stream = binary if binary.seekable() else BytesIO(binary.read())
        yield name if isinstance(name, str) else "the picture", stream


def open_picture(path: Path) -> BinaryIO:
    """The file opened for reading; ImageError where that is impossible."""
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder: name an image file in it.")
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(
            address(path) or f"{path} does not exist: check the name and the folder."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{path} cannot be opened ({reason}): check its name and permissions."
        ) from error


def sniff(name: str, file: BinaryIO) -> Format:
    """The format of a file, by how it begins; ImageError for none that is read."""
    file.seek(0)
    try:
        start = file.read(32)
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}): check the disk.") from error
    # An interrupted download, most often: its own sentence helps more than "unknown format".
    if not start:
        raise ImageError(f"{name} is empty: fetch or export the file again.")
    form = by_content(start)
    if form is None:
        raise ImageError(
            f"{name} is none of the pictures that are read ({names()}): convert it, for example "
            "to PNG."
        )
    return form
