"""Zarr (v2, v3) and OME-Zarr by region through zarr-python: only the chunks that a window touches
are read.
"""

from __future__ import annotations

import base64
import hashlib
import math
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.sources import SampleSource, check_array, unreadable
from diinn_fast.formats.zarr_store import import_zarr

METADATA = ("zarr.json", ".zarray", ".zgroup")

MOST_METADATA_BYTES = 2**24


class ZarrSource(SampleSource):
    """An array whose axes are named y, x and c in any order, [H, W] or [H, W, C]; of OME-Zarr the
    largest level.
    """

    def __init__(self, path: Path, max_bytes: int | None) -> None:
        zarr = import_zarr(path)
        self.path = path
        metadata = [path / name for name in METADATA if (path / name).exists()]
        _check_metadata(path, metadata)
        store = _plain_files(zarr, path)
        try:
            node = zarr.open(store=store, mode="r")
            attributes = dict(node.attrs)
            array, axes = _array_of(path, node, attributes)
            complete, icc, dpi = _own_attributes(attributes)
        except ImageError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ImageError(
                f"{path} is a damaged or unusual Zarr store ({reason}): write it again."
            ) from error
        if not complete:
            raise ImageError(f"{path} is not complete: resume the run that writes it first.")
        self._array = array
        self._order = [axes.index(name) for name in "yxc" if name in axes]
        self._others = [i for i, name in enumerate(axes) if name not in "yxc"]
        if any(array.shape[i] != 1 for i in self._others):
            raise ImageError(
                f"{path} has several planes or times: give them one by one, as pictures."
            )
        shape = check_array(path, tuple(array.shape[i] for i in self._order), np.dtype(array.dtype))
        chunk = math.prod(array.chunks) * array.dtype.itemsize
        if max_bytes is not None and 4 * chunk > max_bytes:
            raise ImageError(
                f"{path} has chunks of {chunk / 2**20:,.0f} MiB and {max_bytes / 2**20:,.0f} are "
                "left within the "
                "bound: raise it, or store the array in smaller chunks."
            )
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in metadata)).hexdigest()
        times = [file.stat().st_mtime_ns for file in metadata]
        store.most_bytes = max(_most_stored(array), MOST_METADATA_BYTES)
        super().__init__(
            shape, np.dtype(array.dtype), f"{path.resolve()} {digest} {times}", icc, dpi
        )

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        window: list[Any] = [0] * self._array.ndim
        places = [slice(y0, y1), slice(x0, x1), slice(None)]
        for axis, place in zip(self._order, places, strict=False):
            window[axis] = place
        kept = sorted(self._order)
        try:
            values = np.asarray(self._array[tuple(window)])
        except Exception as error:
            raise unreadable(self.path, error) from error
        if not any(
            (self.path / name).exists() for name in METADATA
        ):  # absent chunks would read as zeros
            raise ImageError(f"{self.path} has vanished: restore it.")
        values = values.transpose([kept.index(axis) for axis in self._order])
        return values if values.ndim == 3 else values[..., None]


def _check_metadata(path: Path, metadata: list[Path]) -> None:
    """Refuse metadata that no picture needs, before it is parsed."""
    for file in metadata:
        if not file.is_file() or file.stat().st_size > MOST_METADATA_BYTES:
            raise ImageError(f"{path} is a damaged or unusual Zarr store: write it again.")


def _plain_files(zarr: Any, path: Path) -> Any:
    """A store of plain files alone, none larger than its `most_bytes`.

    A chunk may be a link to a device that never ends, or much larger than what it is decoded to.
    """

    class PlainFiles(zarr.storage.LocalStore):
        most_bytes = MOST_METADATA_BYTES

        async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
            file = path / key
            with suppress(FileNotFoundError, NotADirectoryError):
                status = file.stat()
                if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                    raise ValueError(f"{key} is no plain file")
                if status.st_size > self.most_bytes:
                    raise ValueError(f"{key} has {status.st_size:,} bytes, more than its samples")
            return await super().get(key, *arguments, **options)

    return PlainFiles(path, read_only=True)


def _most_stored(array: Any) -> int:
    """Most bytes of one file of chunks: samples, what compression adds to noise, and an index."""
    shape = getattr(array, "shards", None) or array.chunks
    return 2 * math.prod(shape) * array.dtype.itemsize + 2**20


def _own_attributes(
    attributes: dict[str, Any],
) -> tuple[bool, bytes | None, tuple[float, float] | None]:
    """(complete, profile, resolution) that this package has stored; any error if they are none."""
    state = attributes.get("diinn_fast", {})
    icc = base64.b64decode(state["icc"], validate=True) if "icc" in state else None
    dpi = None
    if "dpi" in state:
        horizontal, vertical = state["dpi"]
        dpi = (float(horizontal), float(vertical))
    return state.get("complete") is not False, icc, dpi


def _array_of(path: Path, node: Any, attributes: dict[str, Any]) -> tuple[Any, list[str]]:
    """The array and the names of its axes, one letter each."""
    if not hasattr(node, "shape"):
        multiscales = attributes.get("ome", attributes).get("multiscales")
        if not multiscales:
            raise ImageError(f"{path} is a group of arrays: name one of the arrays in it.")
        axes = [
            axis if isinstance(axis, str) else axis["name"]
            for axis in multiscales[0].get("axes", "tczyx")
        ]
        array = node[multiscales[0]["datasets"][0]["path"]]
        if not hasattr(array, "shape"):
            raise ValueError("its first level is no array")
        return array, axes
    names = getattr(node.metadata, "dimension_names", None) or ()
    if set(names) in ({"y", "x"}, {"y", "x", "c"}):
        return node, list(names)
    return node, ["y", "x", "c"][: node.ndim] if node.ndim in (2, 3) else [
        *"?" * (node.ndim - 3),
        "y",
        "x",
        "c",
    ]
