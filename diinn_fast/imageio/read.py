"""`read_image`: a file to float samples, with its orientation applied and nothing else changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from diinn_fast.errors import ImageError
from diinn_fast.imageio.decode import decode
from diinn_fast.imageio.formats import Image

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a PNG, JPEG, TIFF or WebP file; the contents decide the format, not the name.

    Kept: bit depth, alpha (also tRNS), grey, ICC profile, resolution. Applied: EXIF orientation.
        Palettes
    become RGB, or RGB + alpha where they have transparency; 1-, 2- and 4-bit grey become 8-bit
    grey; premultiplied alpha of a TIFF is divided out. Of a phone's multi-picture JPEG the main
    picture is read.

    Raises:
        ImageError: missing, empty, damaged or cut off file; not one of the four formats; CMYK,
            YCbCr, LAB; float, signed or 32-bit samples; animation; more than one page
            (reduced-resolution copies aside); 16-bit TIFF with separate planes or grey + alpha;
            more pixels than fit in memory.
    """
    path = Path(path)
    with open_picture(path) as file:
        decoded = decode(path, sniff(path, file), file)
    samples = decoded.samples
    channels = samples.shape[2]
    colours = 3 if channels >= 3 else 1
    try:
        rgb = torch.empty(3, *samples.shape[:2])
        for channel in range(3):
            rgb[channel] = to_float(samples[..., min(channel, colours - 1)])
        alpha = to_float(samples[..., -1])[None] if channels > colours else None
    except (MemoryError, RuntimeError):  # torch reports a failed allocation as RuntimeError
        raise ImageError(
            f"{path} does not fit in memory: crop it or use a machine with more."
        ) from None
    return Image(
        rgb=rgb,
        alpha=alpha,
        grey=colours == 1,
        bits=8 * samples.itemsize,
        icc=decoded.icc,
        dpi=decoded.dpi,
    )


def to_float(samples: np.ndarray) -> torch.Tensor:
    """Integers [h, w] to float32 integer / (2**bits - 1)."""
    return torch.from_numpy(samples.astype(np.float32, order="C")).div_(np.iinfo(samples.dtype).max)


def open_picture(path: Path) -> BinaryIO:
    if path.is_dir():
        raise ImageError(f"{path} is a folder: name an image file in it.")
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: check the name and the folder.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{path} cannot be opened ({reason}): check its name and permissions."
        ) from error


def sniff(path: Path, file: BinaryIO) -> str:
    try:
        start = file.read(16)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): check the disk.") from error
    if not start:
        raise ImageError(f"{path} is empty: fetch or export the file again.")
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    raise ImageError(
        f"{path} is not a PNG, JPEG, TIFF or WebP image: convert it to one of them, such as PNG."
    )
