"""Pictures that Pillow encodes in memory, 8 bits per sample."""

from __future__ import annotations

from io import BytesIO
from typing import Any, BinaryIO

import PIL.Image

from diinn_fast.errors import ImageError
from diinn_fast.formats.layout import Layout, Read
from diinn_fast.formats.pillow import PillowFormat
from diinn_fast.metadata import Metadata
from diinn_fast.metadata.exif import PREFIX


class EncodedFormat(PillowFormat):
    """A format that is written as a whole, with the options of `encoder`."""

    writes = True
    lossy = True

    def encoder(self, layout: Layout, quality: int | None) -> dict[str, Any]:
        """Options of Pillow's encoder."""
        raise NotImplementedError

    def write(
        self, name: str, file: BinaryIO, layout: Layout, read: Read, *, quality: int | None
    ) -> None:
        """See `Format.write`."""
        # Encoded in memory: Pillow ignores a short write to a nearly full disk, a file does not.
        samples = read(0, layout.height, 0, layout.width)
        picture = PIL.Image.fromarray(samples[..., 0] if layout.channels == 1 else samples)
        encoded = BytesIO()
        options = self.encoder(layout, quality) | self._metadata(layout.metadata)
        try:
            picture.save(encoded, self.key.upper(), **options)
        except (OSError, ValueError) as error:  # such as WebP's limit on detail in one picture
            raise ImageError(
                f"{name} could not be encoded as {self.name} ({error}): write PNG or TIFF."
            ) from error
        file.write(self.completed(encoded.getvalue(), layout.metadata))

    def completed(self, encoded: bytes, metadata: Metadata) -> bytes:
        """The file, with what Pillow's encoder has no option for."""
        return encoded

    def _metadata(self, metadata: Metadata) -> dict[str, Any]:
        """Options of Pillow's encoder."""
        exif = None if metadata.exif is None else PREFIX + metadata.exif.tobytes()
        options = {"icc_profile": metadata.icc, "exif": exif, "xmp": metadata.xmp}
        return {name: value for name, value in options.items() if value is not None}
