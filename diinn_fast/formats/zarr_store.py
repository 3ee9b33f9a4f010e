"""Zarr v3 through zarr-python, the reference implementation.

The store grows in `part` chunk by chunk, marked incomplete, and is renamed when it is complete.
Source: Zarr v3 core specification.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.files import sync_folder
from diinn_fast.formats.image import already_exists
from diinn_fast.formats.layout import Layout, Progress, levels_below
from diinn_fast.formats.samples import check_window
from diinn_fast.formats.sinks import SinkTarget, system_errors
from diinn_fast.metadata import as_json

CHUNK = 512
"""Sides of a chunk in pixels."""
SMALLEST_LEVEL = 256
"""A pyramid ends where both sides of its picture are no longer than this."""
_BLOCK = 2**20


class ZarrSink:
    """One array [H, W] (grey) or [H, W, C] in chunks of 512 x 512 pixels, zstd.

    The attribute "diinn_fast" has: complete (bool), job, and metadata, if there is any; the other
    attributes are those of an input that was a Zarr.
    """

    unit = (CHUNK, CHUNK)
    multiscale = False

    def __init__(self, target: SinkTarget) -> None:
        self.path = target.path
        self.target = Path(os.path.realpath(target.path))
        self.layout = target.layout
        self.options = target.options
        self.part = target.part
        self.overwrite = target.overwrite
        self.store = self.part / "final"
        self._lock = threading.Lock()  # windows within one chunk are read, changed and written
        self._written: set[Path] = set()
        self.array: Any = None
        zarr = import_zarr(self.path)
        # A resumed run may have died between renaming the store and removing OUT.part.
        with system_errors(self.path, self.part):
            if not target.resume:
                _remove(self.store)
                self._create(zarr)
            elif self.store.exists():
                self._open(zarr)
            elif not self._published():
                raise self._nothing_to_resume()

    def write(self, y: int, x: int, samples: np.ndarray) -> None:
        """See `Sink.write`."""
        if self.array is None:
            raise ImageError(f"{self.path} is finished already: nothing more can be written.")
        check_window(self.layout, y, x, samples)
        rows, columns, _ = samples.shape
        with system_errors(self.path, self.part), self._lock:
            self._put(self.array, y, x, samples)
            for row, column in product(
                range(y // CHUNK, -(-(y + rows) // CHUNK)),
                range(x // CHUNK, -(-(x + columns) // CHUNK)),
            ):
                self._written.add(self._full_size / self._chunk_name(row, column))

    def flush(self) -> None:
        """See `Sink.flush`."""
        with self._lock:
            written = self._written
            self._written = set()
        with system_errors(self.path, self.part):
            folders = {self.store}
            for file in written:
                if file.exists():  # a chunk of zeros has no file
                    _sync(file)
                folders |= {folder for folder in file.parents if self.store in folder.parents}
            for folder in folders:
                if folder.exists():
                    sync_folder(folder)

    def finish(self, progress: Progress | None = None) -> None:
        """See `Sink.finish`."""
        with system_errors(self.path, self.part):
            if not self.store.exists() and self._published():
                return
            if not self.overwrite and os.path.lexists(self.target):
                raise already_exists(self.path)
            zarr = import_zarr(self.path)
            self._make_levels(zarr, progress)
            node = zarr.open(store=str(self.store), mode="r+")
            # Checksums before the store is called complete: a lost chunk would read as zeros.
            files = sorted(self.store.rglob("*"))
            checksums = {"files": digest(self.store, files)}
            node.attrs["diinn_fast"] = self._state(complete=True) | checksums
            # All of it must be on the disk before the rename that makes it the output.
            for file in files:
                if file.suffix == ".partial":  # of a chunk that a killed process was writing
                    file.unlink()
                elif file.is_dir():
                    sync_folder(file)
                else:
                    _sync(file)
            self._publish()

    def close(self) -> None:
        """See `Sink.close`."""
        self.array = None

    @property
    def _full_size(self) -> Path:
        """The folder of the array of the picture's own size."""
        return self.store

    def _create(self, zarr: Any) -> None:
        attributes = self._attributes(complete=False)
        self.array = self._create_array(zarr, self.store, self.layout, attributes)

    def _open(self, zarr: Any) -> None:
        try:
            self.array = zarr.open_array(store=str(self._full_size), mode="r+")
        except (FileNotFoundError, ValueError, KeyError):
            raise self._nothing_to_resume() from None
        if self.array.shape != self._shape(self.layout) or self.array.dtype != self.layout.stored:
            raise self._nothing_to_resume()

    def _make_levels(self, zarr: Any, progress: Progress | None) -> None:
        """Nothing: one array has no levels."""

    def _shape(self, layout: Layout) -> tuple[int, ...]:
        return layout.shape if layout.channels > 1 else layout.shape[:2]

    def _chunk_name(self, row: int, column: int) -> str:
        return f"c/{row}/{column}" + ("/0" if self.layout.channels > 1 else "")

    def _put(self, array: Any, y: int, x: int, samples: np.ndarray) -> None:
        values = samples if self.layout.channels > 1 else samples[..., 0]
        array[y : y + samples.shape[0], x : x + samples.shape[1]] = values

    def _dimensions(self, layout: Layout) -> list[str]:
        return ["y", "x", "c"][: len(self._shape(layout))]

    def _create_array(
        self, zarr: Any, store: Path, layout: Layout, attributes: dict[str, Any]
    ) -> Any:
        shape = self._shape(layout)
        names = self._dimensions(layout)
        # The smaller side of a chunk never exceeds the picture's, or raw chunks would be mostly
        # padding.
        return zarr.create_array(
            store=str(store),
            shape=shape,
            dtype=layout.stored,
            chunks=tuple(
                side if name == "c" else min(CHUNK, side)
                for side, name in zip(shape, names, strict=True)
            ),
            compressors=zarr.codecs.ZstdCodec(level=3) if self.options.compress else None,
            fill_value=0,
            zarr_format=3,
            dimension_names=names,
            attributes=attributes,
            overwrite=True,
        )

    def _state(self, *, complete: bool) -> dict[str, Any]:
        metadata = replace(self.layout.metadata, attributes=None)
        state: dict[str, Any] = {"complete": complete, "job": self.layout.job}
        if said := as_json(metadata):
            state["metadata"] = said
        # As it is read from a file, so that it can be compared with what a file says.
        return dict(json.loads(json.dumps(state)))

    def _attributes(self, *, complete: bool) -> dict[str, Any]:
        """Those of the input, and our own."""
        given = json.loads(self.layout.metadata.attributes or "{}")
        result: dict[str, Any] = given | {"diinn_fast": self._state(complete=complete)}
        return result

    def _published(self) -> bool:
        state = zarr_attributes(self.target).get("diinn_fast", {})
        if not isinstance(state, dict) or state.pop("files", None) != digest(self.target):
            return False
        return bool(state == self._state(complete=True))

    def _publish(self) -> None:
        """Rename the store; a folder cannot be replaced in one step, so the old one moves aside
        first.
        """
        if os.path.lexists(self.target):
            if self.target.exists() and not zarr_attributes(self.target, any_version=True):
                raise ImageError(f"{self.path} exists and is no Zarr store: choose another name.")
            old = self.part / "final.old"
            _remove(old)
            os.rename(self.target, old)
        os.rename(self.store, self.target)
        sync_folder(self.target.parent)

    def _nothing_to_resume(self) -> ImageError:
        return ImageError(
            f"{self.part} holds no samples of this output: delete it and start again without "
            "resuming."
        )


def import_zarr(path: Path) -> Any:
    """The package zarr; ImageError, which names the remedy, if it is absent."""
    try:
        import zarr
        import zarr.codecs
    except ImportError:
        raise ImageError(f"{path} needs the package zarr: pip install 'diinn_fast[big]'.") from None
    return zarr


def zarr_attributes(store: Path, *, any_version: bool = False) -> dict[str, Any]:
    """Attributes of a store's root, read without zarr; empty if it has none or is no Zarr v3 store.

    With `any_version`, something not empty for every store, of Zarr v2 too.
    """
    if any_version and any(
        (store / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")
    ):
        return {"zarr": True}
    with suppress(OSError, ValueError, RecursionError):
        attributes = json.loads((store / "zarr.json").read_bytes()).get("attributes", {})
        return attributes if isinstance(attributes, dict) else {}
    return {}


def zarr_job(store: Path) -> str | None:
    """See `Format.read_job`."""
    state = zarr_attributes(store).get("diinn_fast")
    if not isinstance(state, dict) or not state.get("complete"):
        return None
    if state.get("files") != digest(store):
        return None
    return str(state.get("job") or "") or None


def digest(store: Path, files: Iterable[Path] | None = None) -> str:
    """Of the names and contents of all files but the root's metadata, which keeps it: a chunk that
    is lost would be read as zeros. ``files``: all of them, sorted.
    """
    found = hashlib.sha256()
    for file in sorted(store.rglob("*")) if files is None else files:
        name = file.relative_to(store).as_posix()
        if name == "zarr.json" or file.suffix == ".partial" or not file.is_file():
            continue
        checksum = 0
        with open(file, "rb") as opened:
            while block := opened.read(_BLOCK):
                checksum = zlib.crc32(block, checksum)
        found.update(f"{name} {file.stat().st_size} {checksum}\n".encode())
    return found.hexdigest()


def zarr_size(layout: Layout, *, multiscale: bool, compress: bool) -> int:
    """Most bytes of the store: noise grows a little, each chunk has a file; raw chunks at the
    border are whole.
    """
    size = 2**20 + 2 * layout.metadata.nbytes
    for level in [layout, *(levels_below(layout, SMALLEST_LEVEL) if multiscale else [])]:
        # Chunks down and across; a picture smaller than a chunk has chunks of its own size.
        rows = -(-level.height // min(CHUNK, level.height))
        columns = -(-level.width // min(CHUNK, level.width))
        whole = (
            min(CHUNK, level.height)
            * min(CHUNK, level.width)
            * level.channels
            * level.stored.itemsize
        )
        samples = level.nbytes if compress else rows * columns * whole
        size += int(samples * 1.002) + 2**13 * rows * columns
    return size


def zarr_bytes(layout: Layout) -> int:
    """Most bytes that `finish` holds: 1.1 x the most measured, chunks read, halved and
    compressed.
    """
    return 8 * CHUNK * CHUNK * layout.channels * layout.stored.itemsize + 2**25


def _sync(file: Path) -> None:
    with open(file, "r+b") as opened:
        os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
