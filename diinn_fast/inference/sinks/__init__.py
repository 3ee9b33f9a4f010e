"""Where the samples of an output go while it is made, and how they become a file: chosen by the
file's name.

    sink = open_sink("big.tif", layout, part=Path("big.tif.part"), resume=False)
    sink.write(y, x, samples)   # disjoint windows, any order, threads and processes
    sink.finish()               # now there is a big.tif
    sink.close()

The data lives in the folder `part` (made by the caller beside the output, removed by the caller
after `finish`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from diinn_fast.errors import ImageError
from diinn_fast.imageio.layout import Layout, Progress
from diinn_fast.imageio.png import png_bytes, png_job, png_size
from diinn_fast.imageio.tiff import tiff_bytes, tiff_job, tiff_size
from diinn_fast.imageio.write import fitting_profile, usable_dpi
from diinn_fast.inference.sinks.npy import NpySink, npy_header
from diinn_fast.inference.sinks.png import PngSink
from diinn_fast.inference.sinks.protocol import Sink, SinkOptions
from diinn_fast.inference.sinks.tiff import TiffSink, tiff_levels
from diinn_fast.inference.sinks.zarr import OmeZarrSink, ZarrSink, zarr_bytes, zarr_job, zarr_size

__all__ = [
    "Layout",
    "Progress",
    "Sink",
    "SinkOptions",
    "disk_bytes",
    "finish_bytes",
    "open_sink",
    "read_job",
    "sink_kind",
]

PathLike = str | os.PathLike[str]

_KIND_OF_SUFFIX = {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".npy": "npy", ".zarr": "zarr"}


def sink_kind(path: PathLike) -> str | None:
    """ "png", "tiff", "npy", "zarr" or "ome-zarr", as the file name says; None: no format that is
    streamed.
    """
    name = Path(path).name.lower()
    return "ome-zarr" if name.endswith(".ome.zarr") else _KIND_OF_SUFFIX.get(Path(name).suffix)


def open_sink(
    path: PathLike,
    layout: Layout,
    *,
    part: Path,
    resume: bool,
    options: SinkOptions | None = None,
    overwrite: bool = False,
) -> Sink:
    """The sink of an output, by the name of `path`.

    Args:
        path: the output; nothing appears under this name before `Sink.finish`.
        layout: what the output holds.
        part: existing folder on the same file system; names that begin with "final" or "samples" in
            it are the sink's.
        resume: open what is there (also: join another process); False starts anew.
        options: see `SinkOptions`.
        overwrite: `finish` may replace an existing output.

    Raises:
        ImageError: a name or layout that no format takes, nothing to resume, a missing package, the
            system's refusal.
    """
    path = Path(path)
    options = options or SinkOptions()
    kind = _check_kind(path, layout)
    layout = replace(
        layout, icc=fitting_profile(path, layout.icc, layout.channels), dpi=usable_dpi(layout.dpi)
    )
    return _SINKS[kind](path, layout, options, part=part, resume=resume, overwrite=overwrite)


def disk_bytes(
    path: PathLike, layout: Layout, options: SinkOptions | None = None
) -> tuple[int, int]:
    """Worst case in bytes: (what `part` holds beside the final form, the final form)."""
    kind = _check_kind(Path(path), layout)
    options = options or SinkOptions()
    if kind == "npy":
        return 0, layout.nbytes + len(npy_header(layout))
    if kind == "png":
        return layout.nbytes, png_size(layout)
    if kind == "tiff":
        levels = tiff_levels(layout) if options.pyramid else []
        raw = sum(level.nbytes for level in levels)
        return layout.nbytes + raw, sum(tiff_size(level) for level in [layout, *levels])
    return 0, zarr_size(layout, multiscale=kind == "ome-zarr", compress=options.compress)


def finish_bytes(path: PathLike, layout: Layout, options: SinkOptions | None = None) -> int:
    """Most memory in bytes that `Sink.finish` holds; grows with the length of a row at most."""
    kind = _check_kind(Path(path), layout)
    if kind == "npy":
        return 2**16
    if kind == "png":
        return png_bytes(layout)
    return tiff_bytes(layout) if kind == "tiff" else zarr_bytes(layout)


def read_job(path: PathLike) -> str | None:
    """Fingerprint of the job (`Layout.job`) found in a finished output; None if it has none or
    cannot be read.
    """
    path, kind = Path(path), sink_kind(path)
    if kind in ("zarr", "ome-zarr"):
        return zarr_job(path)
    with suppress(OSError), open(path, "rb") as file:
        if kind == "png":
            return png_job(file)
        if kind == "tiff":
            return tiff_job(file)
    return None


_SINKS: dict[str, Callable[..., Sink]] = {
    "npy": NpySink,
    "png": PngSink,
    "tiff": TiffSink,
    "zarr": ZarrSink,
    "ome-zarr": OmeZarrSink,
}


def _check_kind(path: Path, layout: Layout) -> str:
    kind = sink_kind(path)
    if kind is None:
        raise ImageError(
            f"{path} is no format that can be streamed: name it .png, .tif, .npy, .zarr or "
            ".ome.zarr."
        )
    if kind == "png" and layout.dtype == "float32":
        raise ImageError(
            f"{path} cannot hold floats, PNG has 8 or 16 bits: write .tif, .npy or .zarr."
        )
    return kind
