"""Zarr (v2 and v3 read, v3 written): one array, a folder of chunks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from diinn_fast.formats.base import Format
from diinn_fast.formats.layout import Layout
from diinn_fast.formats.sinks import Sink, SinkOptions, SinkTarget
from diinn_fast.formats.sources import Source
from diinn_fast.formats.zarr_source import METADATA, ZarrSource
from diinn_fast.formats.zarr_store import (
    CHUNK,
    ZarrSink,
    import_zarr,
    zarr_bytes,
    zarr_job,
    zarr_size,
)
from diinn_fast.metadata.value import ENTRIES


class Zarr(Format):
    """One array [H, W] or [H, W, C] in chunks of 512 x 512 pixels."""

    key = "zarr"
    name = "Zarr"
    suffixes = (".zarr",)
    streams = True
    dtypes = ("uint8", "uint16", "float32")
    bands = True
    folders = True
    unit = (CHUNK, CHUNK)
    holds = frozenset(ENTRIES) | {"note"}
    sink_class: ClassVar[type[ZarrSink]] = ZarrSink

    def prepare(self, path: Path) -> None:
        """See `Format.prepare`."""
        import_zarr(path)

    def recognises_folder(self, path: Path) -> bool:
        """See `Format.recognises_folder`."""
        return any(os.path.exists(path / name) for name in METADATA)

    def open_folder(self, path: Path, max_bytes: int | None = None) -> Source:
        """See `Format.open_folder`."""
        return ZarrSource(path, max_bytes)

    def sink(self, target: SinkTarget) -> Sink:
        """See `Format.sink`."""
        return self.sink_class(target)

    def disk_bytes(self, layout: Layout, options: SinkOptions) -> tuple[int, int]:
        """See `Format.disk_bytes`."""
        multiscale = self.sink_class.multiscale
        return 0, zarr_size(layout, multiscale=multiscale, compress=options.compress)

    def finish_bytes(self, layout: Layout) -> int:
        """See `Format.finish_bytes`."""
        return zarr_bytes(layout)

    def read_job(self, path: Path) -> str | None:
        """See `Format.read_job`."""
        return zarr_job(path)
