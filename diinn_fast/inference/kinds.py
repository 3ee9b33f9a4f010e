"""The kinds of picture that `upscale` takes, and how each is given back: path, Image, PIL, array,
tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.formats import Image, read_image
from diinn_fast.formats.heard import without_warnings
from diinn_fast.formats.image import check_unit, finite_ends
from diinn_fast.formats.info import info_of, metadata_of
from diinn_fast.formats.pillow import ORIENTATION
from diinn_fast.formats.read import CONTENTS
from diinn_fast.metadata import KEEP, Metadata, chosen, warn_of_lost

KINDS = (
    "a path, bytes or an open file, an Image, a PIL image, an array [h, w] or [h, w, 1 to 4], or a "
    "float tensor [3, h, w] or [B, 3, h, w]"
)

PIL_MODES = {
    "1": "L",
    "L": "L",
    "La": "LA",
    "LA": "LA",
    "RGB": "RGB",
    "RGBa": "RGBA",
    "RGBA": "RGBA",
}
PIL_MODES_16BIT = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass
class Request:
    """Pictures to upscale, and what becomes of the outputs.

    Each output is planes ``[C, H, W]`` of ``dtype``: one for grey, three for colour, and alpha if
    there is any. Integer dtypes hold 0 to their maximum, floating-point ones [0, 1], or the
    picture's sample range. ``top`` is what its samples call 1. ``bits`` are those of a channel
    of the output, of an `Image` those that it has in a file.
    """

    images: list[Image]
    dtype: torch.dtype
    finish: Callable[[list[Tensor]], Any]
    bits: int
    top: float = 1.0


def as_request(image: Any, metadata: str = KEEP, *, any_range: bool = False) -> Request:
    """Any kind of picture; UpscaleError (or ImageError, from files) for what is none or holds no
    valid samples. With ``any_range``, floats may lie outside [0, 1].
    """
    if isinstance(image, (str, os.PathLike, *CONTENTS)):
        image = read_image(image, any_range=any_range)
    request = _request(image, metadata)
    for given in request.images:
        if given.rgb.numel() > 0:  # the engine refuses the size
            _check_floats(given, any_range)
    return request


def _check_floats(image: Image, any_range: bool) -> None:
    """The refusals of files, as refusals of a request."""
    missing = image.missing
    seen = image.rgb if missing is None else missing.split(image.rgb, None)[0]
    try:
        if any_range:
            finite_ends(seen)
        else:
            check_unit(seen)
        if image.alpha is not None:
            check_unit(image.alpha)
    except ImageError as error:
        raise UpscaleError(str(error).rstrip(".")) from None


def each_channel(upscale: Callable[[Any], Any], image: Any) -> Any:
    """Every channel of an array [h, w, C] or tensor [..., C, h, w] upscaled as a grey picture."""
    if isinstance(image, Tensor) and image.ndim in (3, 4):
        colours = [band.expand(*image.shape[:-3], 3, -1, -1) for band in image.split(1, -3)]
        return torch.cat([upscale(band)[..., :1, :, :] for band in colours], -3)
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] > 0:
        check_plain(image)
        return np.stack([upscale(band) for band in np.moveaxis(image, 2, 0)], -1)
    raise UpscaleError(
        'bands="each" needs an array [h, w, C] or a tensor [..., C, h, w]: of files, use render '
        "(diinn-fast upscale --bands each)"
    )


def _request(image: Any, metadata: str) -> Request:
    if isinstance(image, Image):
        return _from_image(replace(image, metadata=chosen(image.metadata, metadata)))
    if isinstance(image, PIL.Image.Image):
        return _from_pil(image, metadata)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        check_plain(image)
        return _from_array(image)
    raise UpscaleError(f"an upscale needs {KINDS}, not {type(image).__name__}")


def _from_image(image: Image) -> Request:
    if not isinstance(image.rgb, Tensor) or image.rgb.ndim != 3 or image.rgb.shape[0] != 3:
        raise UpscaleError("an Image needs rgb of shape [3, h, w]: replicate a grey one")
    if image.alpha is not None and tuple(image.alpha.shape) != (1, *image.rgb.shape[1:]):
        raise UpscaleError(
            f"an Image needs alpha of shape [1, h, w], got {list(image.alpha.shape)}"
        )

    # Back to the kind that was given, with its metadata at the new size.
    def finish(outputs: list[Tensor]) -> Image:
        (planes,) = outputs
        rgb = planes[:1].expand(3, -1, -1) if image.grey else planes[:3]
        alpha = None if image.alpha is None else planes[-1:]
        old = image.rgb.shape[1], image.rgb.shape[2]
        metadata = image.metadata.rescaled(old, (rgb.shape[1], rgb.shape[2]))
        return replace(image, rgb=rgb, alpha=alpha, metadata=metadata)

    top = 1.0 if image.bits == 32 else 2.0**image.bits - 1
    return Request([image], torch.float32, finish, image.bits, top)


@without_warnings()
def _from_pil(picture: PIL.Image.Image, choice: str) -> Request:
    info = dict(picture.info)
    # Before the picture is turned: its metadata speak of the stored one.
    metadata = chosen(_metadata(picture), choice)
    try:
        picture = PIL.ImageOps.exif_transpose(picture)
    except Exception as error:  # on damaged files decoders raise nearly every exception there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UpscaleError(
            f"the PIL image cannot be decoded ({reason}): open a whole file again"
        ) from error
    if picture.mode in PIL_MODES_16BIT:
        samples = np.array(picture).astype(np.uint16)
    else:
        if picture.mode in ("P", "PA"):
            mode = "RGBA" if picture.has_transparency_data else "RGB"
        elif picture.mode in PIL_MODES:
            mode = PIL_MODES[picture.mode]
        else:
            raise UpscaleError(
                f"PIL images of mode {picture.mode} are not supported: convert it to RGB or L first"
            )
        # A transparent colour in place of alpha.
        if picture.has_transparency_data and mode in ("L", "RGB"):
            mode += "A"
        samples = np.array(picture.convert(mode))
    request = _from_samples(samples)

    def finish(outputs: list[Tensor]) -> PIL.Image.Image:
        result = PIL.Image.fromarray(request.finish(outputs))
        old = picture.height, picture.width
        kept = metadata.rescaled(old, (result.height, result.width))
        result.info |= info_of(kept, info)
        warn_of_lost("the picture", list(metadata.lost))
        return result

    images = [replace(request.images[0], metadata=metadata)]
    return replace(request, images=images, finish=finish)


def _metadata(picture: PIL.Image.Image) -> Metadata:
    """Of the upright picture."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # on damaged tags Pillow raises nearly every exception there is
        orientation = 1
    return metadata_of(picture).upright(orientation, (picture.height, picture.width))


def _from_array(array: np.ndarray) -> Request:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise UpscaleError(
            f"arrays must be [h, w] or [h, w, 1 to 4], got {list(array.shape)}: for other channels "
            'give bands="each"'
        )
    return _from_samples(array)


def check_plain(array: np.ndarray) -> None:
    """UpscaleError for arrays that mean more than their samples, and would be taken for less."""
    if isinstance(array, np.ma.MaskedArray):
        raise UpscaleError("a masked array has missing values: fill them, with array.filled(...)")
    if isinstance(array, np.matrix):
        raise UpscaleError("a matrix always has two axes: give np.asarray(matrix)")


def _from_samples(samples: np.ndarray) -> Request:
    """[h, w] grey, [h, w, 2] grey + alpha, [h, w, 3] RGB, [h, w, 4] RGB + alpha."""
    floats = np.issubdtype(samples.dtype, np.floating)
    if not floats and samples.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UpscaleError(f"arrays must be uint8, uint16 or float in [0, 1], got {samples.dtype}")
    # Doubles are divided as doubles; 16-bit integers are exact in float32.
    work = np.float64 if floats else np.float32
    planes = torch.from_numpy(np.moveaxis(np.atleast_3d(samples), 2, 0).astype(work, order="C"))
    top = 1.0 if floats else float(np.iinfo(samples.dtype).max)
    planes /= top
    planes = planes.float()
    count = planes.shape[0]
    grey = count < 3
    image = Image(
        rgb=planes[:1].expand(3, -1, -1) if grey else planes[:3],
        alpha=planes[-1:] if count in (2, 4) else None,
        grey=grey,
        bits=16 if samples.dtype.itemsize == 2 and not floats else 8,
    )

    def finish(outputs: list[Tensor]) -> np.ndarray:
        (planes,) = outputs
        result = planes.permute(1, 2, 0).contiguous().numpy()
        return (result[..., 0] if samples.ndim == 2 else result).astype(samples.dtype, copy=False)

    integer = torch.uint8 if samples.dtype.itemsize == 1 else torch.uint16
    dtype = torch.float32 if floats else integer
    return Request([image], dtype, finish, 8 * dtype.itemsize, top)


def _from_tensor(tensor: Tensor) -> Request:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        raise UpscaleError("tensors must be dense and hold values: give tensor.to_dense()")
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3 or 0 in tensor.shape:
        raise UpscaleError(f"tensors must be [3, h, w] or [B, 3, h, w], got {list(tensor.shape)}")
    if not tensor.is_floating_point():
        raise UpscaleError(
            f"tensors must be floating point in [0, 1], got {tensor.dtype}: divide by the maximum"
        )
    # The pictures of a batch one by one, each within the memory of one.
    images = [Image(rgb) for rgb in tensor.detach().reshape(-1, *tensor.shape[-3:]).float()]

    def finish(outputs: list[Tensor]) -> Tensor:
        result = outputs[0] if tensor.ndim == 3 else torch.stack(outputs)
        return result.to(tensor.device, tensor.dtype)

    return Request(images, torch.float32, finish, bits=32)
