"""Which picture becomes which file."""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from diinn_fast.cli.common import Refused
from diinn_fast.cli.upscale.found import Found, LeftOut, Search
from diinn_fast.cli.upscale.pipes import is_pipe
from diinn_fast.formats import by_suffix, output_name, writable_suffixes

log = logging.getLogger("diinn_fast")


@dataclass(frozen=True)
class Job:
    """A picture and the file that is made of it."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Batch:
    """All jobs of a call.

    Attributes:
        jobs: in order.
        left_out: what the inputs' folders hold beside them.
        several: one bad picture does not stop the others.
        folder: of the outputs, if one was named.
    """

    jobs: list[Job]
    left_out: list[LeftOut]
    several: bool
    folder: Path | None


def make_batch(options: argparse.Namespace) -> Batch:
    """The jobs of all inputs. Refuses collisions and outputs that are inputs, before anything is
    done.
    """
    *inputs, output = options.paths
    search = Search(inputs, output, recursive=options.recursive)
    out = Path(output)
    # A Zarr is a folder on the disk, and shells end its name with a slash.
    form = by_suffix(out)
    store = form is not None and form.pieces_only
    into = search.several or (not store and (os.path.isdir(out) or output.endswith(("/", os.sep))))
    if not into:
        if options.format is not None and not is_pipe(out):
            raise Refused(f"--format is for folders and pipes: the name {out} says it already")
        jobs = [Job(search.found[0].path, out)]
    else:
        named = os.path.exists(out) or out.suffix.lower() in writable_suffixes()
        if store or is_pipe(out) or (not os.path.isdir(out) and named):
            raise Refused(f"the output of several pictures must be a folder, not {output}")
        jobs = _into_folder(out, search.found, options.format)
    _refuse_collisions(jobs)
    return Batch(jobs, search.left_out, search.several, out if into else None)


def _into_folder(out: Path, found: list[Found], ending: str | None) -> list[Job]:
    """Outputs in a folder. Where two pictures differ in their endings alone and `--format` takes
    those away, all that would collide keep them: ``a.png`` and ``a.tif`` become ``a.png.jpg`` and
    ``a.tif.jpg``.
    """
    places = [picture.place.with_name(_name(picture, ending)) for picture in found]
    count = Counter(places)
    jobs = []
    for picture, place in zip(found, places, strict=True):
        if ending is not None and count[place] > 1:
            kept = picture.place.with_name(f"{picture.place.name}.{ending}")
            log.warning("%s is not the only one for %s: it becomes %s", picture.path, place, kept)
            place = kept
        jobs.append(Job(picture.path, out / place))
    return jobs


def _name(picture: Found, ending: str | None) -> str:
    name = picture.place.name
    if is_pipe(picture.path):
        return f"{name}.{ending or 'png'}"
    if ending is None:
        return output_name(Path(name))
    form = by_suffix(name)
    own = next((s for s in form.suffixes if name.lower().endswith(s)), "") if form else ""
    return f"{name[: len(name) - len(own)]}.{ending}"


def _refuse_collisions(jobs: list[Job]) -> None:
    # Compared by what they really are, links followed.
    originals = {os.path.realpath(job.source) for job in jobs if not is_pipe(job.source)}
    owner: dict[str, Path] = {}
    for job in jobs:
        if is_pipe(job.target):
            continue
        place = os.path.realpath(job.target)
        if place in originals:
            raise Refused(
                f"output {job.target} is one of the inputs: choose another name or folder"
            )
        if place in owner:
            raise Refused(
                f"{owner[place]} and {job.source} would both become {job.target}: upscale them "
                "separately"
            )
        owner[place] = job.source
