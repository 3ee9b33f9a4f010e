"""Zarr (v2, v3) and OME-Zarr by region through zarr-python: only the chunks that a window touches
are read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import bands_of_array
from diinn_fast.formats.heard import reason_of
from diinn_fast.formats.sources import SampleSource, check_array, unreadable
from diinn_fast.formats.zarr_bounds import bounded_array, most_inflated
from diinn_fast.formats.zarr_store import import_zarr
from diinn_fast.metadata import Metadata, Space, from_json

METADATA = ("zarr.json", ".zarray", ".zgroup")

MOST_METADATA_BYTES = 2**24

LEAST_SAMPLES = 64
"""Of a chunk, where there are more chunks than `MOST_SMALL_CHUNKS`."""

MOST_SMALL_CHUNKS = 2**14

_LAYOUT = frozenset({"diinn_fast", "ome", "multiscales", "omero", "_ARRAY_DIMENSIONS"})
"""Attributes that are made anew."""


class ZarrSource(SampleSource):
    """An array whose axes are named y, x and c in any order, [H, W] or [H, W, C]; of OME-Zarr the
    largest level.
    """

    def __init__(self, path: Path, max_bytes: int | None) -> None:
        self.path = path
        files = [path / name for name in METADATA if os.path.exists(path / name)]
        _check_metadata(path, files)
        store = _plain_files(import_zarr(path), path)
        array, axes, metadata = _opened(path, store)
        self._stamps = self._look()
        self._order = [axes.index(name) for name in "yxc" if name in axes]
        # One picture is made: which of several to take is for the user to say.
        if any(array.shape[i] != 1 for i, name in enumerate(axes) if name not in "yxc"):
            raise ImageError(
                f"{path} has several planes or times: give them one by one, as pictures."
            )
        shape = check_array(path, tuple(array.shape[i] for i in self._order), np.dtype(array.dtype))
        _check_chunks(path, array, max_bytes)
        self._array = bounded_array(import_zarr(path), array)
        # Only now is it known how large a file of samples may be.
        store.most_bytes = max(_most_stored(array), MOST_METADATA_BYTES)
        identity = _identity(path, files)
        each = bands_of_array(shape[2])
        super().__init__(shape, np.dtype(array.dtype), identity, metadata, each=each)

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """See `SampleSource.samples`."""
        window: list[Any] = [0] * self._array.ndim
        places = [slice(y0, y1), slice(x0, x1), slice(None)]
        for axis, place in zip(self._order, places, strict=False):
            window[axis] = place
        kept = sorted(self._order)
        try:
            values = np.asarray(self._array[tuple(window)])
        except Exception as error:
            raise unreadable(self.path, error) from error
        # Of a store that is gone, absent chunks would read as zeros.
        if not self._look():
            raise ImageError(f"{self.path} has vanished: restore it.")
        values = values.transpose([kept.index(axis) for axis in self._order])
        return values if values.ndim == 3 else values[..., None]

    def changed(self) -> bool:
        """See `Source.changed`; told by the metadata, not by each chunk."""
        return self._look() != self._stamps

    def _look(self) -> list[tuple[int, int]]:
        """Size and time of each file of metadata that there is."""
        found = []
        for name in METADATA:
            with suppress(FileNotFoundError, NotADirectoryError):
                status = (self.path / name).stat()
                found.append((status.st_size, status.st_mtime_ns))
        return found


def _opened(path: Path, store: Any) -> tuple[Any, list[str], Metadata]:
    """The array of a store, the names of its axes, and what the store says of the picture."""
    zarr = import_zarr(path)
    try:
        node = zarr.open(store=store, mode="r")
        attributes = dict(node.attrs)
        array, axes = _array_of(path, node, attributes)
        complete, metadata = _own_state(attributes)
        space = _space(node, attributes, axes) or metadata.space
        lost = metadata.lost + _display(attributes)
    except ImageError:
        raise
    except Exception as error:  # zarr-python raises many kinds for metadata that are no such
        reason = reason_of(error)
        raise ImageError(
            f"{path} is a damaged or unusual Zarr store ({reason}): write it again."
        ) from error
    if not complete:
        raise ImageError(f"{path} is not complete: resume the run that writes it first.")
    return array, axes, replace(metadata, space=space, attributes=_others(attributes), lost=lost)


def _check_chunks(path: Path, array: Any, max_bytes: int | None) -> None:
    """Refuse chunks that do not fit the bound: of each, four copies are held for a moment; and very
    many of very few samples, each of which takes longer than its pixels do, be it there or not.
    """
    samples = math.prod(array.chunks)
    count = math.prod(
        -(-side // size) for side, size in zip(array.shape, array.chunks, strict=True)
    )
    if samples < LEAST_SAMPLES and count > MOST_SMALL_CHUNKS:
        raise ImageError(
            f"{path} has {count:,} chunks of {samples} samples: store the array in larger chunks."
        )
    chunk = samples * array.dtype.itemsize
    if max_bytes is not None and 4 * chunk > max_bytes:
        raise ImageError(
            f"{path} has chunks of {chunk / 2**20:,.0f} MiB and {max_bytes / 2**20:,.0f} are "
            "left within the bound: raise it, or store the array in smaller chunks."
        )


def _identity(path: Path, metadata: list[Path]) -> str:
    """What changes when the store is another one, or is written again."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in metadata)).hexdigest()
    times = [file.stat().st_mtime_ns for file in metadata]
    return f"{path.resolve()} {digest} {times}"


def _check_metadata(path: Path, metadata: list[Path]) -> None:
    """Refuse metadata that no picture needs, before it is parsed."""
    for file in metadata:
        if not os.path.isfile(file) or file.stat().st_size > MOST_METADATA_BYTES:
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
                # Links are followed: what counts is what would be read.
                status = file.stat()
                if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                    raise ValueError(f"{key} is no plain file")
                if status.st_size > self.most_bytes:
                    raise ValueError(f"{key} has {status.st_size:,} bytes, more than its samples")
            return await super().get(key, *arguments, **options)

    return PlainFiles(path, read_only=True)


def _most_stored(array: Any) -> int:
    """Most bytes of one file of chunks."""
    shape = getattr(array, "shards", None) or array.chunks
    return most_inflated(int(math.prod(shape)) * array.dtype.itemsize)


def _own_state(attributes: dict[str, Any]) -> tuple[bool, Metadata]:
    """(complete, metadata) that this package has stored; any error if they are none."""
    state = attributes.get("diinn_fast", {})
    return state.get("complete") is not False, from_json(state.get("metadata", {}))


def _others(attributes: dict[str, Any]) -> str | None:
    """Attributes that are neither ours nor of the layout of the array, as JSON."""
    said = {name: value for name, value in attributes.items() if name not in _LAYOUT}
    return json.dumps(said, sort_keys=True) if said else None


def _display(attributes: dict[str, Any]) -> tuple[str, ...]:
    """What another program said of showing the channels, which outputs say anew."""
    if "diinn_fast" in attributes or "omero" not in attributes.get("ome", attributes):
        return ()
    return ("OME-Zarr's names, colours and windows of channels",)


def _space(node: Any, attributes: dict[str, Any], axes: list[str]) -> Space | None:
    """The physical grid of an OME-Zarr."""
    if hasattr(node, "shape"):
        return None
    return _space_of(attributes.get("ome", attributes)["multiscales"][0], axes)


def _space_of(multiscale: dict[str, Any], axes: list[str]) -> Space | None:
    """The physical grid of the first level; None if it says nothing."""
    units = {
        axis["name"]: axis.get("unit")
        for axis in multiscale.get("axes", ())
        if isinstance(axis, dict)
    }
    scale = np.ones(len(axes))
    start = np.zeros(len(axes))
    level = multiscale["datasets"][0]
    # Transformations of the level, then those of all levels, each after the one before.
    for step in (
        *level.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if step["type"] == "scale":
            scale = scale * np.array(step["scale"], np.float64)
            start = start * np.array(step["scale"], np.float64)
        elif step["type"] == "translation":
            start = start + np.array(step["translation"], np.float64)
    y = axes.index("y")
    x = axes.index("x")
    unit = units.get("x") if units.get("x") == units.get("y") else None
    if not np.isfinite([scale, start]).all() or min(scale[y], scale[x]) <= 0:
        raise ValueError("its scale is no scale")
    space = Space(
        (float(scale[y]), float(scale[x])),
        (float(start[y]), float(start[x])),
        None if unit is None else str(unit),
    )
    return None if space == Space((1.0, 1.0)) else space


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
    # Named axes decide; without names the usual order of pictures does.
    names = getattr(node.metadata, "dimension_names", None) or ()
    if set(names) in ({"y", "x"}, {"y", "x", "c"}):
        return node, list(names)
    return node, ["y", "x", "c"][: node.ndim] if node.ndim in (2, 3) else [
        *"?" * (node.ndim - 3),
        "y",
        "x",
        "c",
    ]
