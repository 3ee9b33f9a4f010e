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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from diinn_fast.errors import ImageError
from diinn_fast.formats import Format, by_suffix, streamed_suffixes
from diinn_fast.formats.layout import Layout, Progress
from diinn_fast.formats.sinks import Sink, SinkOptions, SinkTarget
from diinn_fast.metadata import Metadata, fitted

__all__ = [
    "Layout",
    "Progress",
    "Sink",
    "SinkOptions",
    "disk_bytes",
    "finish_bytes",
    "fitted_to",
    "open_sink",
    "output_format",
    "read_job",
    "sink_kind",
]

PathLike = str | os.PathLike[str]


def sink_kind(path: PathLike) -> str | None:
    """Key of the streamed format that the file name asks for, such as "png" or "ome-zarr"; None:
    no format that is streamed.
    """
    form = by_suffix(path)
    return form.key if form is not None and form.streams else None


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
    form = _fitting(path, layout)
    metadata, _ = fitted_to(path, layout.metadata, layout.channels)
    layout = replace(layout, metadata=metadata)
    return form.sink(SinkTarget(path, layout, options or SinkOptions(), part, resume, overwrite))


def fitted_to(path: PathLike, metadata: Metadata, channels: int) -> tuple[Metadata, list[str]]:
    """(what an output of this name holds of it, names of what it does not)."""
    form = by_suffix(path)
    if form is None:
        return metadata, []
    return fitted(metadata, form.can_hold, channels)


def disk_bytes(
    path: PathLike, layout: Layout, options: SinkOptions | None = None
) -> tuple[int, int]:
    """Worst case in bytes: (what `part` holds beside the final form, the final form)."""
    return _fitting(Path(path), layout).disk_bytes(layout, options or SinkOptions())


def finish_bytes(path: PathLike, layout: Layout, options: SinkOptions | None = None) -> int:
    """Most memory in bytes that `Sink.finish` holds; grows with the length of a row at most."""
    return _fitting(Path(path), layout).finish_bytes(layout)


def read_job(path: PathLike) -> str | None:
    """Fingerprint of the job (`Layout.job`) found in a finished output; None if it has none or
    cannot be read.
    """
    form = by_suffix(path)
    with suppress(OSError):
        return None if form is None else form.read_job(Path(path))
    return None


def output_format(path: PathLike) -> Format:
    """The streamed format that the file name asks for; ImageError if there is none."""
    form = by_suffix(path)
    if form is None or not form.streams:
        raise ImageError(
            f"{path} is no format that can be streamed: name it {', '.join(streamed_suffixes())}."
        )
    return form


def _fitting(path: Path, layout: Layout) -> Format:
    form = output_format(path)
    form.check_layout(path, layout)
    return form
