"""Which TIFFs are one picture of a known kind, by their own tags: one rule for all ways of reading.

Source: TIFF revision 6.0, sections 2 to 8 and 18; Adobe's TIFF technical note 3 (float predictor);
DNG specification 1.7, chapter 2 (how camera raws use TIFF).
"""

from __future__ import annotations

import logging
from typing import Any

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import PREMULTIPLIED, Bands

_log = logging.getLogger(__name__)

REDUCED = 1
MASK = 4
"""Bits of the tag NewSubfileType."""

MOST_PAGES = 64
"""Of reduced copies and masks: a pyramid has fewer, and each page takes time to look at."""

WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1
RGB = 2
PALETTE = 3
_RAW_PHOTOMETRICS = (32803, 34892)  # colour filter array, linear raw
_DNG_VERSION = 50706
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1}

UNSIGNED = 1
FLOAT = 3
"""Values of the tag SampleFormat."""


def picture_page(name: str, tiff: Any) -> Any:
    """The page of a `tifffile.TiffFile` that is the picture.

    Raises:
        ImageError: a camera raw, several pages, samples that are neither unsigned integers of 1, 2,
            4, 8 or 16 bits nor floats.
    """
    page = tiff.pages.first
    _refuse_raw(name, page)
    _refuse_pages(name, tiff)
    _refuse_samples(name, page)
    return page


def _refuse_raw(name: str, page: Any) -> None:
    raw = page.photometric in _RAW_PHOTOMETRICS or _DNG_VERSION in page.tags
    if raw or name.lower().endswith((".dng", ".nef", ".nrw", ".cr2", ".arw", ".srw", ".pef")):
        raise ImageError(
            f"{name} is a camera raw file: develop it first, and give the TIFF, PNG or JPEG."
        )
    if page.subfiletype & REDUCED:
        raise ImageError(
            f"{name} begins with a thumbnail, as camera raw files do: develop it first, or save "
            "the picture alone."
        )


def _refuse_pages(name: str, tiff: Any) -> None:
    masked = False
    for number in range(1, MOST_PAGES + 1):
        try:
            # One page after the other: counting all would read every directory of a damaged chain.
            kind = tiff.pages[number].subfiletype
        except IndexError:
            break
        masked |= bool(kind & MASK)
        if not kind & (REDUCED | MASK) or number == MOST_PAGES:
            raise ImageError(
                f"{name} is a TIFF of several pages: split it and give the pages one by one."
            )
    if masked:
        _log.warning("%s has a mask of valid pixels, which is left aside.", name)


def bands_of_page(page: Any) -> Bands | None:
    """What the samples of a pixel are; None for other colour spaces, which are refused, or
    converted, by the decoder.
    """
    colours = _COLOURS.get(page.photometric)
    if colours is None:
        return None
    # One extra channel is alpha only if the file says so; it may as well be infrared.
    meanings = [int(meaning) for meaning in page.extrasamples]
    missing = page.samplesperpixel - colours - len(meanings)
    if missing < 0:
        raise ValueError("it names more samples than it has")
    return Bands(colours, (*meanings, *[0] * missing))


def check_whole(name: str, page: Any) -> None:
    """Refuse bands that are no picture, where samples are not read by region."""
    bands = bands_of_page(page)
    if bands is None or bands.is_picture:
        return
    if bands.extra == (PREMULTIPLIED,) and page.photometric != PALETTE:
        return
    kind = "RGB" if bands.colours == 3 else "grey"
    raise ImageError(
        f"{name} has {bands.count} channels, which are not {kind} with or without alpha: "
        "save the bands as pictures of their own."
    )


def _refuse_samples(name: str, page: Any) -> None:
    bits = page.bitspersample
    if page.photometric == WHITE_IS_ZERO and (
        page.samplesperpixel > 1 or page.sampleformat == FLOAT
    ):
        raise ImageError(
            f"{name} has alpha or floats beside grey of which 0 is white: save it with black as 0."
        )
    if page.sampleformat == FLOAT and bits in (16, 32, 64):
        return
    if page.sampleformat != UNSIGNED:
        raise ImageError(
            f"{name} has signed or complex samples: rescale it to 8- or 16-bit unsigned integers "
            "first."
        )
    if bits not in (1, 2, 4, 8, 16):
        raise ImageError(f"{name} has {bits} bits per sample: convert it to 8 or 16 bits first.")
