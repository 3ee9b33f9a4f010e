"""Pictures that Pillow encodes in memory, 8 bits per sample."""

from __future__ import annotations

from io import BytesIO
from typing import Any, BinaryIO

import PIL.Image

from diinn_fast.errors import ImageError
from diinn_fast.formats.layout import Layout, Read
from diinn_fast.formats.pillow import PillowFormat


class EncodedFormat(PillowFormat):
    """A format that is written as a whole, with the options of `encoder`."""

    writes = True
    lossy = True

    def encoder(self, layout: Layout, quality: int) -> dict[str, Any]:
        """Options of Pillow's encoder."""
        raise NotImplementedError

    def write(self, name: str, file: BinaryIO, layout: Layout, read: Read, *, quality: int) -> None:
        # Encoded in memory: Pillow ignores a short write to a nearly full disk, a file does not.
        samples = read(0, layout.height, 0, layout.width)
        picture = PIL.Image.fromarray(samples[..., 0] if layout.channels == 1 else samples)
        encoded = BytesIO()
        options = {"icc_profile": layout.icc, **self.encoder(layout, quality)}
        try:
            picture.save(encoded, self.key.upper(), **options)
        except (OSError, ValueError) as error:  # such as WebP's limit on detail in one picture
            raise ImageError(
                f"{name} could not be encoded as {self.name} ({error}): write PNG or TIFF."
            ) from error
        file.write(encoded.getvalue())
