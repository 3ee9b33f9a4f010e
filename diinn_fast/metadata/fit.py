"""Metadata for a format: what it holds is kept, what it holds in another form is converted, and the
rest is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from diinn_fast.errors import UpscaleError
from diinn_fast.metadata import exif as tags
from diinn_fast.metadata.exif import Exif
from diinn_fast.metadata.microscopy import imagej_resolution, ome_resolution
from diinn_fast.metadata.profiles import adobe_profile, profile_of_chunks
from diinn_fast.metadata.resolution import CENTIMETRE, INCH, UNKNOWN, Resolution, resolution
from diinn_fast.metadata.space import Space
from diinn_fast.metadata.tags import ascii_tag
from diinn_fast.metadata.value import Metadata, Text, describe

_log = logging.getLogger("diinn_fast")

KEEP = "keep"
NONE = "none"
CHOICES = (KEEP, NONE)
"""What may become of metadata."""

Holds = Callable[[str, Any], bool]
"""(name of an entry, value) -> whether a format can hold it."""

_KEYWORDS = {
    "Description": tags.DESCRIPTION,
    "Title": tags.DESCRIPTION,
    "Author": tags.ARTIST,
    "Copyright": tags.COPYRIGHT,
    "Software": tags.SOFTWARE,
}
"""PNG's keywords that EXIF has tags for."""

MAKER_NOTE = "the maker note"

_HDR = ("cICP", "mDCV", "cLLI")

_UNIT_NUMBERS = {UNKNOWN: 1, INCH: 2, CENTIMETRE: 3}
"""Of EXIF's and TIFF's tag ResolutionUnit."""


def fitted(metadata: Metadata, holds: Holds, channels: int) -> tuple[Metadata, list[str]]:
    """(what a format holds of it, names of all that is not kept)."""
    lost = list(metadata.lost)
    metadata = _fitted_colour(metadata, holds, channels, lost)
    metadata = _fitted_size(metadata, holds)
    metadata = _fitted_words(metadata, holds)
    # Maker notes hold offsets into their file: they can stay only where nothing moves.
    exif = metadata.exif
    if exif is not None and exif.has_note and holds("exif", exif) and not holds("note", exif):
        metadata = replace(metadata, exif=exif.without_note())
        lost.append(MAKER_NOTE)
    kept = {}
    for name, value in metadata.entries():
        if holds(name, value):
            kept[name] = value
        else:
            lost += describe(name, value)
    return Metadata(**kept), list(dict.fromkeys(lost))


def chosen(metadata: Metadata, choice: str) -> Metadata:
    """ "keep": all of it; "none": only what the values of pixels mean (profile, colour chunks).

    Raises:
        UpscaleError: any other choice.
    """
    if choice not in CHOICES:
        raise UpscaleError(f"metadata must be {' or '.join(CHOICES)}, got {choice!r}")
    return metadata if choice == KEEP else metadata.colours_alone()


def warn_of_lost(name: str | Path, lost: Iterable[str]) -> None:
    """One warning that names what an output does not keep, nothing if it keeps all."""
    if lost := list(lost):
        _log.warning("%s does not keep of the input: %s.", name, ", ".join(lost))


def _fitted_colour(metadata: Metadata, holds: Holds, channels: int, lost: list[str]) -> Metadata:
    """With one of profile and chunks, whichever the format holds."""
    grey = channels < 3
    if metadata.icc is not None and metadata.icc[16:20] == b"GRAY" and not grey:
        lost.append("the grey ICC profile, of what becomes RGB")
        metadata = replace(metadata, icc=None)
    if metadata.colour and not holds("colour", metadata.colour):
        return _with_profile_for_chunks(metadata, holds, grey)
    bare = metadata.icc is None and not metadata.colour
    if bare and metadata.exif is not None and metadata.exif.adobe_rgb:
        return replace(metadata, icc=adobe_profile(grey))
    return metadata


def _with_profile_for_chunks(metadata: Metadata, holds: Holds, grey: bool) -> Metadata:
    """With a profile that says what the chunks say, which the format does not hold."""
    icc = metadata.icc
    if icc is None and (made := profile_of_chunks(dict(metadata.colour), grey)):
        icc = made if holds("icc", made) else None
    # Of HDR, a profile is at best a part of what is said.
    said = [chunk for chunk in metadata.colour if chunk[0] in _HDR[1:] or icc is None]
    said += [chunk for chunk in metadata.colour if chunk[0] == "cICP" and metadata.icc is not None]
    return replace(metadata, icc=icc, colour=tuple(said))


def _fitted_size(metadata: Metadata, holds: Holds) -> Metadata:
    """With the size of a pixel in the form that the format has."""
    stored = metadata.resolution
    if stored is not None:
        stored = resolution(stored.horizontal, stored.vertical, stored.unit)
    known = _known_resolution(metadata, stored)
    space = metadata.space or (Space.of(known) if known is not stored else None)
    if space is not None and holds("space", space):
        metadata = replace(metadata, space=space)
    elif metadata.space is not None and metadata.space.resolution is not None:
        known = metadata.space.resolution
        metadata = replace(metadata, space=None)
    # The size stays in the form that says it best; other formats get it as their resolution.
    if known is not None and not (stored is not None and _said_in_words(metadata, holds)):
        stored = known
    return _with_size(replace(metadata, resolution=stored), stored, holds)


def _known_resolution(metadata: Metadata, stored: Resolution | None) -> Resolution | None:
    """What says it best: ImageJ's description, then OME-XML, then the stored one."""
    known = stored
    if metadata.ome is not None:
        known = ome_resolution(metadata.ome) or known
    if metadata.imagej is not None:
        known = imagej_resolution(metadata.imagej, known)
    return known


def _said_in_words(metadata: Metadata, holds: Holds) -> bool:
    """Whether the format's description says the size."""
    ome = bool(metadata.ome) and holds("ome", metadata.ome)
    return ome or (bool(metadata.imagej) and holds("imagej", metadata.imagej))


def _with_size(metadata: Metadata, stored: Resolution | None, holds: Holds) -> Metadata:
    """With the resolution as EXIF's tags where the format has no place of its own for it."""
    if stored is None or stored.says_nothing or holds("resolution", stored):
        return metadata
    exif = _with_resolution(metadata.exif or Exif(), stored)
    if exif is None or not holds("exif", exif):
        return metadata
    return replace(metadata, resolution=None, exif=exif)


def _with_resolution(exif: Exif, stored: Resolution) -> Exif | None:
    """With the tags that TIFF has for it, None where they do not reach."""
    unit = stored.unit if stored.unit in _UNIT_NUMBERS else CENTIMETRE
    numbers = stored.per(unit)
    if not all(1e-9 < number < 2**32 for number in numbers):
        return None
    return exif.with_main(
        exif.rational(tags.X_RESOLUTION, numbers[0]),
        exif.rational(tags.Y_RESOLUTION, numbers[1]),
        exif.short(tags.RESOLUTION_UNIT, _UNIT_NUMBERS[unit]),
    )


def _fitted_words(metadata: Metadata, holds: Holds) -> Metadata:
    """With comment and texts in the form that the format has."""
    words = _Words(metadata.comment, list(metadata.texts), metadata.exif or Exif())
    if words.comment is not None and not holds("comment", words.comment):
        words = _with_comment_elsewhere(words, words.comment, holds)
    for text in list(words.texts):
        if not holds("texts", (text,)):
            words = _with_text_elsewhere(words, text, holds)
    exif = None if words.exif.empty else words.exif
    return replace(metadata, texts=tuple(words.texts), comment=words.comment, exif=exif)


class _Words(NamedTuple):
    comment: str | None
    texts: list[Text]
    exif: Exif


def _with_comment_elsewhere(words: _Words, comment: str, holds: Holds) -> _Words:
    """With the comment as a text, else as EXIF's description, else where it is."""
    text = Text("Comment", comment)
    if holds("texts", (text,)):
        return words._replace(comment=None, texts=[*words.texts, text])
    if holds("exif", words.exif) and words.exif.text(tags.DESCRIPTION) is None:
        exif = words.exif.with_main(ascii_tag(tags.DESCRIPTION, comment))
        return words._replace(comment=None, exif=exif)
    return words


def _with_text_elsewhere(words: _Words, text: Text, holds: Holds) -> _Words:
    """With a text as the comment, else as EXIF's tag of its keyword, else where it is."""
    others = [other for other in words.texts if other is not text]
    if text.keyword == "Comment" and words.comment is None and holds("comment", text.text):
        return words._replace(comment=text.text, texts=others)
    code = _KEYWORDS.get(text.keyword)
    if code is None:
        return words
    there = words.exif.text(code)
    if there is None and holds("exif", words.exif):
        exif = words.exif.with_main(ascii_tag(code, text.text))
        return words._replace(texts=others, exif=exif)
    return words._replace(texts=others) if there == text.text else words
