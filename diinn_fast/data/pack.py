"""Training pack: a folder of photographs as one tar file of at most a given size, to carry to
another machine.
"""

from __future__ import annotations

import io
import math
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from diinn_fast.data.images import Photo, decode_photo, list_photos
from diinn_fast.errors import DataError, UnfinishedError
from diinn_fast.files import atomic_file, explain

QUALITY = 90
BLOCK = 512  # tar pads headers and files to blocks of this many bytes
END = 10240  # and the whole to this many


def write_pack(source: str | Path, path: str | Path, size: int) -> int:
    """Write the photos of ``source`` to ``path`` (.tar), at most ``size`` bytes; returns the bytes
    written.

    JPEG of quality 90 without chroma subsampling. Photos are reduced (Lanczos) until they fit,
    rather than compressed
    harder: a model should learn from clean pixels, and reduced ones are cleaner. Raises DataError.
    """
    path = Path(path)
    if path.suffix != ".tar":
        raise DataError(f"a training pack is a .tar file: {path} is not")
    photos = list_photos(source)
    factor = 1.0
    # File sizes follow pixel counts only roughly: a few tries, each a little smaller.
    for _ in range(8):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(pool.map(partial(_encode, factor=factor), photos))
        total = sum(BLOCK + math.ceil(len(data) / BLOCK) * BLOCK for data in files)
        total = math.ceil((total + 2 * BLOCK) / END) * END
        if total <= size:
            break
        factor *= 0.98 * math.sqrt(size / total)
    else:
        raise DataError(
            f"{len(photos)} photos do not fit into {size} bytes: use fewer, or allow more"
        )
    try:
        with atomic_file(path, overwrite=True) as file:
            _write_members(file, [photo.name for photo in photos], files)
    except OSError as error:
        raise UnfinishedError(explain(path, error)) from error
    return path.stat().st_size


def _write_members(file: BinaryIO, names: Sequence[str], contents: Sequence[bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w:") as pack:
        for n, (name, data) in enumerate(zip(names, contents, strict=True)):
            member = tarfile.TarInfo(f"{n:05}-{Path(name.rsplit(':', 1)[-1]).stem[:40]}.jpg")
            member.size = len(data)
            pack.addfile(member, io.BytesIO(data))


def _encode(photo: Photo, factor: float) -> bytes:
    image = Image.fromarray(decode_photo(photo))
    if factor < 1:
        width, height = (max(1, round(n * factor)) for n in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()
