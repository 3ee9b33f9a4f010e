"""The picture in memory, the four file formats, and what can be refused before any work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from diinn_fast.errors import ImageError
from diinn_fast.files import explain


@dataclass
class Image:
    """A picture in memory, together with what its file said about it.

    Attributes:
        rgb: [3, h, w] float32 in [0, 1], value = integer / (2**bits - 1); grey is replicated to 3
            channels.
        alpha: [1, h, w] float32 in [0, 1], not premultiplied, or None for an opaque picture.
        grey: the file is grey; it is written back as one channel, the mean of the three.
        bits: 8 or 16 per sample; 1, 2 and 4 bits and palettes count as 8.
        icc: ICC profile, copied through; pixels are never converted.
        dpi: (horizontal, vertical) resolution in dots per inch.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    bits: int = 8
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None


FORMAT_OF_SUFFIX = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
}

MAX_SIDE: dict[str, int] = {
    "PNG": 2**31 - 1,
    "JPEG": 65_500,  # the format's field goes to 65,535, libjpeg stops here
    "WebP": 16_383,
    "TIFF": 2**32 - 1,
}
"""Longest side in pixels of each format, as far as it can really be written."""


def format_of(path: Path) -> str:
    """Format ("PNG", "JPEG", "TIFF", "WebP") that the file name asks for; ImageError for any other
    suffix.
    """
    try:
        return FORMAT_OF_SUFFIX[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMAT_OF_SUFFIX)
        raise ImageError(
            f"{path} has no known image extension: name it with one of {known}."
        ) from None


def check_writable(
    path: str | os.PathLike[str],
    height: int,
    width: int,
    *,
    overwrite: bool,
    like: Image | None = None,
) -> None:
    """Refuse before the work is done whatever `write_image` would refuse after it.

    Args:
        path: output file; its extension picks the format.
        height, width: size of the output in pixels.
        overwrite: an existing file may be replaced.
        like: picture whose alpha, grey and bits the output will have (for example the input of an
            upscale); without it an opaque 8-bit RGB output is assumed.

    Raises:
        ImageError: unknown extension, missing or unwritable folder, existing output without
            `overwrite`, size beyond the format's limit, alpha in a JPEG.
    """
    path = Path(path)
    kind = format_of(path)
    _check_place(path, overwrite)
    if height < 1 or width < 1:
        raise ImageError(f"{path} would have {width} x {height} pixels: ask for at least 1 x 1.")
    if max(height, width) > MAX_SIDE[kind]:
        raise ImageError(
            f"{path} would have {width} x {height} pixels and {kind} ends at {MAX_SIDE[kind]:,} a "
            "side: "
            f"write {'TIFF' if kind == 'PNG' else 'PNG or TIFF'} or choose a smaller scale."
        )
    if kind == "JPEG" and like is not None and like.alpha is not None:
        raise ImageError(
            f"{path} cannot hold the alpha channel, JPEG has none: write PNG, TIFF or WebP."
        )


def stored_layout(kind: str, image: Image) -> tuple[int, int]:
    """(channels, bits) that `image` has in a file of format `kind`.

    JPEG and WebP have 8 bits, WebP no grey. Few readers know 16-bit grey + alpha TIFF, so that it
    is stored as RGB + alpha.
    """
    bits = image.bits if kind in ("PNG", "TIFF") else 8
    has_alpha = image.alpha is not None
    as_colour = not image.grey or kind == "WebP" or (kind == "TIFF" and bits == 16 and has_alpha)
    return (3 if as_colour else 1) + has_alpha, bits


def _check_place(path: Path, overwrite: bool) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise ImageError(f"{path} cannot be written, {folder} is not a folder: create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ImageError(
            f"{path} cannot be written, {folder} is write-protected: choose another folder."
        )
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise ImageError(f"{path} exists and is not a plain file: choose another name.")
    if not overwrite:
        raise already_exists(path)


def already_exists(path: Path) -> ImageError:
    """The refusal to replace a file that nobody said may be replaced."""
    return ImageError(explain(path, FileExistsError()))
