"""All picture formats, and how one is found."""

from __future__ import annotations

import os
from pathlib import Path

from diinn_fast.formats.avif import Avif
from diinn_fast.formats.base import Format
from diinn_fast.formats.bmp import Bmp
from diinn_fast.formats.gif import Gif
from diinn_fast.formats.heif import Heif
from diinn_fast.formats.jpeg import Jpeg
from diinn_fast.formats.jpeg2000 import Jpeg2000
from diinn_fast.formats.npy import Npy
from diinn_fast.formats.ome_zarr import OmeZarr
from diinn_fast.formats.png import Png
from diinn_fast.formats.pnm import Pnm
from diinn_fast.formats.tiff import Tiff
from diinn_fast.formats.webp import WebP
from diinn_fast.formats.zarr import Zarr

FORMATS: tuple[Format, ...] = (
    Png(),
    Jpeg(),
    Tiff(),
    WebP(),
    Bmp(),
    Gif(),
    Pnm(),
    Jpeg2000(),
    Avif(),  # before HEIC, whose container it shares
    Heif(),
    Npy(),
    OmeZarr(),
    Zarr(),
)
"""Each format once; a longer suffix stands before one that it ends with."""


def by_suffix(path: str | os.PathLike[str]) -> Format | None:
    """The format that a file name asks for, None if there is none."""
    name = Path(path).name.lower()
    for form in FORMATS:
        if any(name.endswith(suffix) and name != suffix for suffix in form.suffixes):
            return form
    return None


def by_content(start: bytes) -> Format | None:
    """The format of a file that begins with these bytes (32, or the whole file)."""
    return next((form for form in FORMATS if form.reads and form.recognises(start)), None)


def by_folder(path: Path) -> Format | None:
    """The format of a folder that is one picture."""
    return next((form for form in FORMATS if form.recognises_folder(path)), None)


def readable_suffixes() -> tuple[str, ...]:
    """Suffixes of all files that can be read."""
    return tuple(suffix for form in FORMATS if form.reads for suffix in form.suffixes)


def writable_suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be written from memory."""
    return tuple(suffix for form in FORMATS if form.writes for suffix in form.suffixes)


def streamed_suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be written piece by piece."""
    return tuple(suffix for form in FORMATS if form.streams for suffix in form.suffixes)


def output_name(source: Path) -> str:
    """Name of the output of a picture in another folder: its own, as PNG where its format is only
    read.
    """
    form = by_suffix(source)
    if form is None or form.writes or form.streams:
        return source.name
    return f"{source.name}.png"


def names() -> str:
    """The formats that can be read, for messages."""
    return ", ".join(form.name for form in FORMATS if form.reads)
