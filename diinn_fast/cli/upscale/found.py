"""Finds the pictures that the inputs of a batch name, and what else their folders hold."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diinn_fast.cli.common import Refused
from diinn_fast.cli.upscale.pipes import PIPE
from diinn_fast.files import address
from diinn_fast.formats import by_folder, by_suffix, readable_suffixes

HIDDEN = "hidden"
NO_PICTURE = "no picture that is read"
BROKEN_LINK = "a broken link"
FOLDER = "a folder, which --recursive looks into"
LOOP = "a link back to a folder around it"


class Found(NamedTuple):
    """A picture, and its place below the output's folder."""

    path: Path
    place: Path


class LeftOut(NamedTuple):
    """Something in a folder that is not upscaled."""

    path: Path
    why: str


class Search:
    """The files that inputs name.

    Attributes:
        several: an input stands for more than one file.
        found: the pictures, in order, each path once.
        left_out: what else is in the folders.
    """

    def __init__(self, inputs: list[str], output: str, *, recursive: bool) -> None:
        self._output = os.path.realpath(output)
        self._recursive = recursive
        self.left_out: list[LeftOut] = []
        self.several = len(inputs) > 1
        once: dict[str, Found] = {}
        for text in inputs:
            for found in self._expand(text):
                # Links are pictures of their own: paths are compared, not what they lead to.
                once.setdefault(os.path.abspath(found.path), found)
        self.found = list(once.values())

    def _expand(self, text: str) -> list[Found]:
        path = Path(text)
        if text == PIPE:
            return [Found(path, Path("stdin"))]
        if os.path.isdir(path) and not _is_picture(path):
            self.several = True
            return self._of_folder(path)
        # Shells that expand no patterns leave that to us; a file of that very name comes first.
        if not os.path.lexists(path) and glob.has_magic(text) and not address(text):
            self.several = True
            matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
            found = [match for match in matches if os.path.isfile(match) or _is_picture(match)]
            if not found:
                raise Refused(f"nothing matches {text}")
            return [Found(match, Path(match.name)) for match in found]
        return [Found(path, Path(path.name))]

    def _of_folder(self, folder: Path) -> list[Found]:
        before = len(self.left_out)
        found = list(self._walk(folder, Path(), (os.path.realpath(folder),)))
        if not found:
            inner = any(what.why == FOLDER for what in self.left_out[before:])
            advice = "; --recursive looks into its folders" if inner else ""
            raise Refused(
                f"folder {folder} has no pictures ({', '.join(readable_suffixes())}){advice}"
            )
        return found

    def _walk(self, folder: Path, place: Path, around: tuple[str, ...]) -> Iterator[Found]:
        """Pictures in a folder and, if asked, in those in it; ``around`` are it and all above."""
        try:
            # Sorted, so that every run takes the same order and reports can be compared.
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.left_out.append(LeftOut(folder, f"a folder that cannot be read: {error.strerror}"))
            return
        for entry in entries:
            why = self._why_left_out(entry, around)
            if why is not None:
                self.left_out.append(LeftOut(entry, why))
            elif _is_picture(entry):
                yield Found(entry, place / entry.name)
            elif os.path.realpath(entry) != self._output:
                # Links that lead upwards would never end.
                inner = (*around, os.path.realpath(entry))
                yield from self._walk(entry, place / entry.name, inner)

    def _why_left_out(self, entry: Path, around: tuple[str, ...]) -> str | None:
        """Why an entry is neither a picture nor a folder to look into."""
        if entry.name.startswith("."):
            return HIDDEN
        try:
            entry.stat()
        except FileNotFoundError:
            return BROKEN_LINK
        except OSError as error:
            return f"cannot be looked at ({error.strerror})"
        if _is_picture(entry):
            return None
        if not os.path.isdir(entry):
            return NO_PICTURE
        real = os.path.realpath(entry)
        if real in around:
            return LOOP
        return None if self._recursive or real == self._output else FOLDER


def _is_picture(path: Path) -> bool:
    """Whether a name promises a picture that is read; some are folders."""
    form = by_suffix(path)
    if os.path.isdir(path):
        return (form is not None and form.folders) or by_folder(path) is not None
    return form is not None and form.reads and os.path.isfile(path)
