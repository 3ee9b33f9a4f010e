"""`write_image`: float samples to a file of the format that its name asks for."""

from __future__ import annotations

import logging
import math
import os
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from diinn_fast.errors import ImageError
from diinn_fast.files import atomic_file, explain
from diinn_fast.imageio.formats import Image, check_writable, format_of, stored_layout
from diinn_fast.imageio.layout import Layout
from diinn_fast.imageio.png import write_png
from diinn_fast.imageio.tiff import write_tiff

_log = logging.getLogger(__name__)

_BAND_PIXELS = 2**20
_MAX_DPI = 60_000  # fits the 16-bit field of JPEG; beyond it the value says nothing about a picture


def write_image(
    path: str | os.PathLike[str], image: Image, *, overwrite: bool = False, quality: int = 95
) -> None:
    """Write `image` to `path`, complete or not at all.

    Samples are clamped to [0, 1] and rounded half up, floor(x * (2**bits - 1) + 0.5). PNG and TIFF
    are lossless (Deflate) and keep `image.bits`; JPEG (4:4:4, no chroma subsampling) and WebP
    (lossy colour, lossless alpha, colour kept under transparent pixels) have 8 bits. WebP has
    neither grey nor resolution: grey is written as RGB, without a profile that describes grey.
    16-bit grey + alpha in a TIFF becomes RGB + alpha, because few readers know it.

    Args:
        path: output file; its extension picks the format (.png, .jpg, .jpeg, .tif, .tiff, .webp).
        image: the picture; any floating-point dtype and device.
        overwrite: replace an existing file.
        quality: 1 to 100, for JPEG and WebP only.

    Raises:
        ImageError: everything that `check_writable` refuses; NaN or infinity among the samples;
            wrong shapes, bits or quality; a full disk or another refusal of the system. The old
            file is then intact.
    """
    path = Path(path)
    kind = format_of(path)
    _check_image(path, image)
    if not 1 <= quality <= 100:
        raise ImageError(f"{path} cannot be written with quality {quality}: choose 1 to 100.")
    check_writable(path, *image.rgb.shape[1:], overwrite=overwrite, like=image)
    channels, bits = stored_layout(kind, image)
    samples = _quantise(path, image, channels, bits)
    icc = fitting_profile(path, image.icc, channels)
    dpi = usable_dpi(image.dpi)
    try:
        with atomic_file(path, overwrite=overwrite) as file:
            if kind in ("PNG", "TIFF"):
                layout = Layout(
                    samples.shape[0], samples.shape[1], channels, samples.dtype.name, icc, dpi
                )
                write = write_png if kind == "PNG" else write_tiff
                write(file, layout, partial(_window, samples))
            else:
                file.write(_encode_with_pillow(path, kind, samples, icc, dpi, quality))
    except OSError as error:
        raise ImageError(explain(path, error)) from error


def _window(samples: np.ndarray, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    return samples[y0:y1, x0:x1]


def _check_image(path: Path, image: Image) -> None:
    if image.bits not in (8, 16):
        raise ImageError(
            f"{path} cannot be written with {image.bits} bits per sample: choose 8 or 16."
        )
    shape = tuple(image.rgb.shape)
    if len(shape) != 3 or shape[0] != 3 or not image.rgb.is_floating_point():
        raise ImageError(
            f"{path} needs floating-point rgb of shape [3, h, w]: got {shape} {image.rgb.dtype}."
        )
    if image.alpha is not None and tuple(image.alpha.shape) != (1, *shape[1:]):
        raise ImageError(
            f"{path} needs alpha of shape [1, h, w] as rgb {shape}: got {tuple(image.alpha.shape)}."
        )


def _quantise(path: Path, image: Image, channels: int, bits: int) -> np.ndarray:
    """Samples [h, w, c] of uint8 or uint16, made in row bands so that no second float picture is
    needed.
    """
    _, height, width = image.rgb.shape
    samples = np.empty((height, width, channels), np.uint16 if bits == 16 else np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = image.rgb[:, top : top + rows].detach().to("cpu", torch.float32)
        if image.grey:
            band = band.mean(0, keepdim=True).expand(3 if channels >= 3 else 1, -1, -1)
        if image.alpha is not None:
            alpha = image.alpha[:, top : top + rows].detach().to("cpu", torch.float32)
            band = torch.cat([band, alpha])
        if not bool(torch.isfinite(band).all()):
            raise ImageError(
                f"{path} was not written, the picture has NaN or infinite values: check the model."
            )
        levels = band.clamp(0, 1) * (2**bits - 1) + 0.5
        samples[top : top + rows] = levels.permute(1, 2, 0).numpy().astype(samples.dtype)
    return samples


def fitting_profile(path: Path, icc: bytes | None, channels: int) -> bytes | None:
    """The ICC profile, unless it describes grey and the file gets three channels, which readers
    reject.
    """
    if icc is not None and icc[16:20] == b"GRAY" and channels >= 3:
        _log.warning("%s is written as RGB without the grey ICC profile of the input.", path)
        return None
    return icc


def usable_dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """The resolution, unless it is nothing that a picture can have."""
    if dpi is None or not all(math.isfinite(value) and 1 <= value <= _MAX_DPI for value in dpi):
        return None
    return dpi


def _encode_with_pillow(
    path: Path,
    kind: str,
    samples: np.ndarray,
    icc: bytes | None,
    dpi: tuple[float, float] | None,
    quality: int,
) -> bytes:
    """Encode in memory: Pillow ignores a short write to a nearly full disk, `file.write` does
    not.
    """
    picture = PIL.Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    options: dict[str, object] = {"icc_profile": icc}
    if dpi is not None and kind != "WebP":
        options["dpi"] = dpi
    if kind == "JPEG":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    elif kind == "WebP":
        options |= {"quality": quality, "method": 4, "alpha_quality": 100, "exact": True}
    encoded = BytesIO()
    try:
        picture.save(encoded, kind, **options)
    except (
        OSError,
        ValueError,
    ) as error:  # for example WebP's limit on how much detail one picture holds
        raise ImageError(
            f"{path} could not be encoded as {kind} ({error}): write PNG or TIFF."
        ) from error
    return encoded.getvalue()
