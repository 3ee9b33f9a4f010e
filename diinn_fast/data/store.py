"""Decoded photographs for random access: in memory, or in a memory-mapped file that processes
share.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diinn_fast.data.images import Photo, decode_photo, photo_size
from diinn_fast.errors import DataError

NAMED = 3
"""Bad files that an error names."""


def decode_all(
    photos: Sequence[Photo], min_side: int, memory: int, cache: Path
) -> list[np.ndarray]:
    """All photos, uint8 ``[h, w, 3]``, decoded by all processors.

    Where they need more than ``memory`` bytes they come from a file in ``cache``, written at first
    use and known by the photos' names, sizes and times. Raises DataError that names the files that
    cannot be used.
    """
    sizes = _each(photos, lambda photo: photo_size(photo, min_side))
    ends = [0, *accumulate(h * w * 3 for h, w in sizes)]
    pixels: np.ndarray
    if ends[-1] <= memory:
        pixels = np.empty(ends[-1], np.uint8)
        _fill(photos, pixels, ends)
    else:
        pixels = _mapped(photos, ends, cache)
    return [
        pixels[a:b].reshape(h, w, 3) for (a, b), (h, w) in zip(pairwise(ends), sizes, strict=True)
    ]


def _fill(photos: Sequence[Photo], pixels: np.ndarray, ends: Sequence[int]) -> None:
    def decode(item: tuple[Photo, tuple[int, int]]) -> None:
        photo, (start, end) = item
        pixels[start:end] = decode_photo(photo).reshape(-1)

    _each(list(zip(photos, pairwise(ends), strict=True)), decode)


def _each(items: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """``work`` of every item, in threads (decoders release Python's lock); one DataError for all
    bad files.
    """
    errors: list[str] = []

    def attempt(item: Any) -> Any:
        try:
            return work(item)
        except DataError as error:
            errors.append(str(error))

    # All bad files at once: a user should not find them one run at a time.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(attempt, items))
    if errors:
        more = f"; and {len(errors) - NAMED} more" if len(errors) > NAMED else ""
        raise DataError("; ".join(sorted(errors)[:NAMED]) + more)
    return results


def _mapped(photos: Sequence[Photo], ends: Sequence[int], cache: Path) -> np.ndarray:
    # Other photographs, or changed ones, get a file of their own.
    known = hashlib.sha256(repr([(p.name, p.stamp) for p in photos]).encode()).hexdigest()[:16]
    path = cache / f"photos-{known}.bin"
    total = ends[-1]
    if not path.exists() or path.stat().st_size != total:
        cache.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(cache).free) < total:
            raise DataError(
                f"decoded photos need {total / 2**30:.1f} GiB and {cache} has {free / 2**30:.1f} "
                "GiB free: "
                "choose another folder with --data.cache"
            )
        # Several processes may decode at once: each writes its own file, the last rename holds.
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            pixels = np.memmap(partial, np.uint8, "w+", shape=(total,))
            _fill(photos, pixels, ends)
            pixels.flush()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return np.memmap(path, np.uint8, "r", shape=(total,))
