"""Where the pixels of the LR picture come from: read by region, whole only where the format leaves
no choice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from diinn_fast.formats import by_folder
from diinn_fast.formats.bands import Bands, check_picture
from diinn_fast.formats.heard import without_warnings
from diinn_fast.formats.read import CONTENTS, open_picture, opened, sniff
from diinn_fast.formats.sources import ArraySource, SampleSource, Source
from diinn_fast.inference.ranges import DTYPE, Asked, check_range, ranged
from diinn_fast.inference.sources.bands import each_band
from diinn_fast.inference.sources.memory import ImageSource, digest, memory_source
from diinn_fast.inference.sources.missing import without_missing

__all__ = ["Source", "bits_of", "open_bands", "open_source"]


def bits_of(source: Source) -> int:
    """Bits per channel of an output of the source's kind."""
    return 8 * np.dtype(source.dtype).itemsize


def open_source(picture: Any, *, max_bytes: int | None = None, range: Asked = DTYPE) -> Source:
    """The source of a picture of any kind.

    TIFF (tiles or strips), .npy and Zarr stay on disk; PNG, JPEG, WebP and unusual TIFFs are
    decoded once and held as integers. Kept and refused is what `read_image` keeps and
    refuses.

    Args:
        picture: a path, bytes or an open binary file, an `Image`, a PIL image, an array [h, w] or
            [h, w, 1 to 4], a tensor [3, h, w].
        max_bytes: most memory to use, while it is decoded too; checked before anything is
            allocated.
        range: sample range, see `diinn_fast.inference.ranges`.

    Raises:
        ImageError: a file that is missing, damaged, not supported or too large for `max_bytes`.
        UpscaleError: an object that is no picture.
    """
    source = _opened(picture, max_bytes, any_range=check_range(range) != DTYPE)
    try:
        name = str(picture) if isinstance(picture, (str, os.PathLike)) else "the picture"
        shape = (source.height, source.width, source.bands.count) if source.is_array else None
        check_picture(name, source.bands, shape)
        return ranged(without_missing(cast(Source, source)), range)
    except BaseException:
        source.close()
        raise


def open_bands(
    picture: Any, *, max_bytes: int | None = None, range: Asked = DTYPE
) -> tuple[list[Source], Bands]:
    """(the sources of all bands but alpha, what the channels are); arguments as of `open_source`.

    Each is a grey picture of its own, with its own missing samples and range. To close one is to
    close all.
    """
    source = _opened(picture, max_bytes, any_range=check_range(range) != DTYPE)
    try:
        return [ranged(without_missing(band), range) for band in each_band(source)], source.each
    except BaseException:
        source.close()
        raise


@without_warnings()
def _opened(picture: Any, max_bytes: int | None, *, any_range: bool) -> SampleSource | ImageSource:
    if isinstance(picture, CONTENTS):
        with opened(picture) as (name, stream):
            decoded = sniff(name, stream).read(name, stream, max_bytes)
        identity = digest(decoded.samples)
        return ArraySource(decoded.samples, identity, decoded.metadata, decoded.bands)
    if not isinstance(picture, (str, os.PathLike)):
        return memory_source(picture, any_range=any_range)
    path = Path(picture)
    if os.path.isdir(path) and (folder := by_folder(path)) is not None:
        return cast(SampleSource, folder.open_folder(path, max_bytes))
    with open_picture(path) as file:
        return cast(SampleSource, sniff(str(path), file).open(path, file, max_bytes))
