"""Where the pixels of the LR picture come from: read by region, whole only where the format leaves
no choice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diinn_fast.imageio.decode import decode
from diinn_fast.imageio.read import open_picture, sniff
from diinn_fast.inference.sources.base import Source, file_identity
from diinn_fast.inference.sources.memory import ArraySource, memory_source
from diinn_fast.inference.sources.npy import npy_source
from diinn_fast.inference.sources.tiff import tiff_source
from diinn_fast.inference.sources.zarr import METADATA, ZarrSource

__all__ = ["Source", "open_source"]


def open_source(picture: Any, *, max_bytes: int | None = None) -> Source:
    """The source of a picture of any kind.

    TIFF (tiles or strips), .npy and Zarr stay on disk; PNG, JPEG, WebP and unusual TIFFs are
    decoded once and held as integers. Kept and refused is what `imageio.read_image` keeps and
    refuses.

    Args:
        picture: a path, an `imageio.Image`, a PIL image, an array [h, w] or [h, w, 1 to 4], a
            tensor [3, h, w].
        max_bytes: most memory to use, while it is decoded too; checked before anything is
            allocated.

    Raises:
        ImageError: a file that is missing, damaged, not supported or too large for `max_bytes`.
        UpscaleError: an object that is no picture.
    """
    if not isinstance(picture, (str, os.PathLike)):
        return memory_source(picture)
    path = Path(picture)
    if path.is_dir() and any((path / name).exists() for name in METADATA):
        return ZarrSource(path, max_bytes)
    with open_picture(path) as file:
        if file.read(6) == b"\x93NUMPY":
            return npy_source(path)
        file.seek(0)
        kind = sniff(path, file)
        if kind == "TIFF" and (source := tiff_source(path, max_bytes)) is not None:
            return source
        decoded = decode(path, kind, file, max_bytes=max_bytes)
    return ArraySource(decoded.samples, file_identity(path), decoded.icc, decoded.dpi)
