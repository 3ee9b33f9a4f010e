"""Where the samples of an output go while it is made, and how they become a file: chosen by the file's name.

    sink = open_sink("big.tif", layout, part=Path("big.tif.part"), resume=False)
    sink.write(y, x, samples)   # disjoint windows, any order, threads and processes
    sink.finish()               # now there is a big.tif
    sink.close()

The data lives in the folder `part` (made by the caller beside the output, removed by the caller after `finish`).
"""

from __future__ import annotations

import os
from pathlib import Path

from diinn_fast.imageio import ImageError
from diinn_fast.inference.sinks.base import SampleSink
from diinn_fast.inference.sinks.layout import Layout, Progress, Sink, SinkOptions
from diinn_fast.inference.sinks.npy import NpySink, npy_header

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
    """ "png", "tiff", "npy", "zarr" or "ome-zarr", as the file name says; None: no format that is streamed."""
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
        part: existing folder on the same file system; names that begin with "final" or "samples" in it are the
            sink's.
        resume: open what is there (also: join another process); False starts anew.
        options: see `SinkOptions`.
        overwrite: `finish` may replace an existing output.

    Raises:
        ImageError: a name or layout that no format takes, nothing to resume, a missing package, the system's refusal.
    """
    path, options = Path(path), options or SinkOptions()
    kind = _check_kind(path, layout)
    return _SINKS[kind](path, layout, options, part=part, resume=resume, overwrite=overwrite)


def disk_bytes(path: PathLike, layout: Layout, options: SinkOptions | None = None) -> tuple[int, int]:
    """Worst case in bytes: (what `part` holds beside the final form, the final form)."""
    kind = _check_kind(Path(path), layout)
    if kind == "npy":
        return 0, layout.nbytes + len(npy_header(layout))
    raise NotImplementedError


def finish_bytes(path: PathLike, layout: Layout, options: SinkOptions | None = None) -> int:
    """Most memory in bytes that `Sink.finish` holds, whatever the size of the picture."""
    _check_kind(Path(path), layout)
    return 0


def read_job(path: PathLike) -> str | None:
    """Fingerprint of the job (`Layout.job`) found in a finished output; None if it has none or cannot be read."""
    return None


_SINKS: dict[str, type[SampleSink]] = {"npy": NpySink}


def _check_kind(path: Path, layout: Layout) -> str:
    kind = sink_kind(path)
    if kind is None:
        raise ImageError(f"{path} is no format that can be streamed: name it .png, .tif, .npy, .zarr or .ome.zarr.")
    if kind == "png" and layout.dtype == "float32":
        raise ImageError(f"{path} cannot hold floats, PNG has 8 or 16 bits: write .tif, .npy or .zarr.")
    return kind
