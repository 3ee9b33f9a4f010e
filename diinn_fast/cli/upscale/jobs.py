"""Which picture becomes which file."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import NamedTuple

from diinn_fast.cli.common import Refused
from diinn_fast.formats import output_name, readable_suffixes, writable_suffixes
from diinn_fast.inference.sinks import sink_kind

PIECES_ONLY = ("npy", "zarr", "ome-zarr")
"""Kinds of output that are only written piece by piece."""


class Pairs(NamedTuple):
    """Inputs with their outputs, in ``folder`` if one was named; one bad picture does not stop a
    batch.
    """

    files: list[tuple[Path, Path]]
    batch: bool
    folder: Path | None


def plan(inputs: list[str], output: str) -> Pairs:
    """Which picture becomes which file. Refuses collisions and outputs that are inputs, before
    anything is done.
    """
    sources = []
    collective = len(inputs) > 1
    for text in inputs:
        found = _expand(text)
        collective |= found != [Path(text)]
        sources += found
    sources = list({os.path.realpath(p): p for p in reversed(sources)}.values())[
        ::-1
    ]  # each once, in order
    out = Path(output)
    store = (
        sink_kind(out) in PIECES_ONLY
    )  # a Zarr is a folder on the disk, and shells end its name with a slash
    folder = collective or (not store and (out.is_dir() or output.endswith(("/", os.sep))))
    if not folder:
        files = [(sources[0], out)]
    else:
        named = out.exists() or out.suffix.lower() in writable_suffixes()
        if store or (not out.is_dir() and named):
            raise Refused(f"the output of several pictures must be a folder, not {output}")
        files = [(source, out / output_name(source)) for source in sources]
    _refuse_collisions(files)
    return Pairs(files, collective, out if folder else None)


def _expand(text: str) -> list[Path]:
    """The pictures that an input means: those of a folder, those that match a pattern, or the file
    itself.
    """
    path = Path(text)
    if path.is_dir() and path.suffix.lower() != ".zarr":
        found = sorted(
            p for p in path.iterdir() if p.suffix.lower() in readable_suffixes() and p.is_file()
        )
        if not found:
            raise Refused(f"folder {text} has no pictures ({', '.join(readable_suffixes())})")
        return found
    if not path.exists() and glob.has_magic(text):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not found:
            raise Refused(f"nothing matches {text}")
        return found
    return [path]


def _refuse_collisions(files: list[tuple[Path, Path]]) -> None:
    originals = {os.path.realpath(source) for source, _ in files}
    owner: dict[str, Path] = {}
    for source, target in files:
        place = os.path.realpath(target)
        if place in originals:
            raise Refused(f"output {target} is one of the inputs: choose another name or folder")
        if place in owner:
            raise Refused(
                f"{owner[place]} and {source} would both become {target}: upscale them separately"
            )
        owner[place] = source
