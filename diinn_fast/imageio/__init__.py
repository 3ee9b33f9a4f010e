"""Read and write PNG, JPEG, TIFF and WebP without losing what the file says about itself.

Bit depth (8 or 16), grey, alpha, ICC profile and resolution are kept; EXIF orientation is applied
on read. What cannot be kept or read faithfully is refused with an `ImageError` of one sentence.
"""

from diinn_fast.errors import ImageError
from diinn_fast.imageio.bleed import bleed_alpha
from diinn_fast.imageio.formats import MAX_SIDE, Image, check_writable
from diinn_fast.imageio.read import read_image
from diinn_fast.imageio.write import write_image

__all__ = [
    "MAX_SIDE",
    "Image",
    "ImageError",
    "bleed_alpha",
    "check_writable",
    "read_image",
    "write_image",
]
