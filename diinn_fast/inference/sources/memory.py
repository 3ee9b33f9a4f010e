"""Pictures that are in memory as a whole: arrays, tensors, and files that are decoded at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import bands_of_array, bands_of_channels
from diinn_fast.formats.image import Image
from diinn_fast.formats.missing import Missing
from diinn_fast.formats.sample_range import FULL
from diinn_fast.formats.sources import ArraySource, check_array, check_inside
from diinn_fast.inference.kinds import as_request, check_plain


class ImageSource:
    """An `Image`: float samples, on any device."""

    range = FULL
    missing: Missing | None = None
    is_array = False

    def __init__(self, image: Image) -> None:
        self._image = image
        self.height, self.width = image.rgb.shape[1:]
        self.grey = image.grey
        self.alpha = image.alpha is not None
        self.masked = self.alpha
        self.bits = image.bits
        self.dtype = image.dtype
        self.metadata = image.metadata
        colours = 1 if image.grey else 3
        self.bands = self.each = bands_of_channels(colours + self.alpha)
        planes = [image.rgb] if image.alpha is None else [image.rgb, image.alpha]
        self.resident_bytes = sum(
            plane.untyped_storage().nbytes() for plane in planes if plane.device.type == "cpu"
        )
        self.identity = digest(*(plane.detach().float().cpu().numpy() for plane in planes))

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor | None]:
        """See `Source.read`."""
        check_inside(self, y0, y1, x0, x1)
        rgb = self._image.rgb
        alpha = self._image.alpha
        return _window(rgb, y0, y1, x0, x1), None if alpha is None else _window(
            alpha, y0, y1, x0, x1
        )

    def planes(self, y0: int, y1: int, x0: int, x1: int, channels: Sequence[int]) -> Tensor:
        """See `SampleSource.planes`."""
        rgb, alpha = self.read(y0, y1, x0, x1)
        seen = rgb[:1] if self.grey else rgb
        return (seen if alpha is None else torch.cat([seen, alpha]))[list(channels)]

    def changed(self) -> bool:
        """Never."""
        return False

    def close(self) -> None:
        """Nothing to release."""


def memory_source(picture: Any, *, any_range: bool = False) -> ArraySource | ImageSource:
    """Of an array, a tensor, an Image or a PIL image; UpscaleError or ImageError for what is
    none.
    """
    if isinstance(picture, np.ndarray) and picture.dtype.kind == "u":
        check_plain(picture)
        check_array("the picture", picture.shape, picture.dtype)
        samples = np.atleast_3d(picture)
        return ArraySource(samples, digest(picture), each=bands_of_array(samples.shape[2]))
    request = as_request(picture, any_range=any_range)
    if len(request.images) != 1:
        raise ImageError(
            f"the picture is a batch of {len(request.images)}: give the pictures one by one."
        )
    # Floats give floats: an array of them must not come back as bytes.
    source = ImageSource(request.images[0])
    if not isinstance(picture, Image) and request.dtype.is_floating_point:
        source.dtype = "float32"
    return source


def _window(planes: Tensor, y0: int, y1: int, x0: int, x1: int) -> Tensor:
    return planes[:, y0:y1, x0:x1].detach().cpu().float().contiguous()


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of shapes, types and values, row by row: an array may be a view of any strides."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        for row in array:
            digest.update(np.ascontiguousarray(row).data)
    return digest.hexdigest()
