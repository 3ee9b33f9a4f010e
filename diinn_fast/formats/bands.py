"""Samples that are no grey or RGB with or without alpha: bands of a satellite, fluorescence
channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from diinn_fast.errors import ImageError, UpscaleError

PREMULTIPLIED = 1
STRAIGHT = 2
"""Kinds of alpha in TIFF's tag ExtraSamples; 0 stands for anything else."""

EACH = "each"
"""Every band is upscaled as a grey picture of its own."""


@dataclass(frozen=True)
class Bands:
    """What the samples of a pixel are.

    Attributes:
        colours: 3 if the first ones are red, green and blue, 1 if the first one is grey or unknown.
        extra: of each further one, its meaning in TIFF's tag ExtraSamples.
    """

    colours: int
    extra: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Samples of a pixel."""
        return self.colours + len(self.extra)

    @property
    def alpha(self) -> int | None:
        """Which sample is alpha, None if there is none."""
        found = [n for n, kind in enumerate(self.extra) if kind in (PREMULTIPLIED, STRAIGHT)]
        return self.colours + found[0] if found else None

    @property
    def is_picture(self) -> bool:
        """Grey or RGB, with or without alpha."""
        return self.extra in ((), (STRAIGHT,))


def bands_of_channels(channels: int) -> Bands:
    """Of 1 to 4 channels: grey or RGB, and alpha as the second or fourth one; of more, of which
    nothing is known: bands.
    """
    if channels > 4:
        return bands_of_array(channels)
    return Bands(3 if channels > 2 else 1, (STRAIGHT,) if channels in (2, 4) else ())


def bands_of_array(channels: int) -> Bands:
    """Of an array that is asked for band by band: it does not say that any is alpha."""
    colours = 3 if channels == 3 else 1
    return Bands(colours, (0,) * (channels - colours))


def check_asked(asked: str | None) -> bool:
    """Whether each band is asked for; UpscaleError for what cannot be."""
    if asked not in (None, EACH):
        raise UpscaleError(f'bands must be "each", or be left out, got {asked!r}')
    return asked == EACH


def check_picture(name: str, bands: Bands, array: tuple[int, int, int] | None = None) -> None:
    """ImageError for bands that are no picture, and were not asked for; ``array``: the shape of
    what is an array.
    """
    if bands.is_picture:
        return
    advice = 'upscale each of them (--bands each, bands="each")'
    if array is not None:
        raise ImageError(
            f"{name} holds an array {list(array)}: give one of [h, w] or [h, w, 1 to 4], or of "
            f"{bands.count} bands {advice}."
        )
    kind = "RGB" if bands.colours == 3 else "grey"
    raise ImageError(
        f"{name} has {bands.count} channels, which are not {kind} with or without alpha: {advice}, "
        "or save the bands as pictures of their own."
    )
