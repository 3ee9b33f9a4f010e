"""Picture files: one file per format, and reading and writing without losing what a file says.

Bit depth (8 or 16), grey, alpha, ICC profile and resolution are kept; EXIF orientation is applied
on read. What cannot be kept or read faithfully is refused with an `ImageError` of one sentence.
"""

from diinn_fast.formats.base import Format
from diinn_fast.formats.image import Image
from diinn_fast.formats.read import quality_of, read_image
from diinn_fast.formats.registry import (
    FORMATS,
    by_content,
    by_folder,
    by_suffix,
    output_name,
    readable_suffixes,
    streamed_suffixes,
    writable_suffixes,
)
from diinn_fast.formats.write import check_writable, write_image

__all__ = [
    "FORMATS",
    "Format",
    "Image",
    "by_content",
    "by_folder",
    "by_suffix",
    "check_writable",
    "output_name",
    "quality_of",
    "read_image",
    "readable_suffixes",
    "streamed_suffixes",
    "writable_suffixes",
    "write_image",
]
