"""Pictures made on the fly, and what a refusal of one looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageCms

from diinn_fast.errors import ImageError, UnfinishedError
from diinn_fast.formats import Image
from diinn_fast.metadata import Metadata, Resolution

CHANNELS = {"grey": 1, "grey+alpha": 2, "rgb": 3, "rgb+alpha": 4}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


def noise(channels: int, bits: int = 8, height: int = 23, width: int = 37) -> np.ndarray:
    """Integers [h, w, c] over the whole range, both ends included."""
    top = 2**bits - 1
    samples = np.random.default_rng(channels + bits).integers(0, top + 1, (height, width, channels))
    samples[0, 0] = 0
    samples[-1, -1] = top
    return samples.astype(np.uint16 if bits == 16 else np.uint8)


def said(
    icc: bytes | None = None, dpi: tuple[float, float] | None = None, **fields: object
) -> Metadata:
    """Metadata of a profile and a resolution."""
    resolution = None if dpi is None else Resolution(*dpi)
    return Metadata(icc=icc, resolution=resolution, **fields)


def to_image(samples: np.ndarray, **fields: object) -> Image:
    """The Image whose file would hold exactly `samples` [h, w, c]."""
    planes = (
        torch.from_numpy(samples.astype(np.float32)).permute(2, 0, 1) / np.iinfo(samples.dtype).max
    )
    channels = samples.shape[2]
    rgb = planes[:3] if channels >= 3 else planes[:1].repeat(3, 1, 1)
    alpha = planes[-1:] if channels in (2, 4) else None
    metadata = said(**fields)
    return Image(rgb, alpha, channels < 3, 8 * samples.itemsize, metadata)


def to_samples(image: Image) -> np.ndarray:
    """Integers [h, w, c] of an image that was read, exact or the test fails."""
    colours = image.rgb[:1] if image.grey else image.rgb
    planes = colours if image.alpha is None else torch.cat([colours, image.alpha])
    levels = planes.permute(1, 2, 0).double().numpy() * (2**image.bits - 1)
    np.testing.assert_allclose(levels, levels.round(), atol=0.005)
    result: np.ndarray = levels.round().astype(np.uint16 if image.bits == 16 else np.uint8)
    return result


def refused(action: Callable[[], Any], *words: str) -> None:
    """`action` raises an error of one sentence that contains all `words`."""
    with pytest.raises((ImageError, UnfinishedError)) as caught:
        action()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    for word in words:
        assert word in message
