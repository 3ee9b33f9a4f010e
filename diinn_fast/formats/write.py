"""`write_image`: float samples to a file of the format that its name asks for."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diinn_fast.errors import ImageError
from diinn_fast.files import atomic_file, explain, no_folder
from diinn_fast.formats.base import Format
from diinn_fast.formats.image import Image, already_exists, check_unit
from diinn_fast.formats.layout import Layout
from diinn_fast.formats.registry import by_suffix, writable_suffixes
from diinn_fast.metadata import fitted, warn_of_lost

_STRIP_PIXELS = 2**20


def check_writable(
    path: str | os.PathLike[str],
    height: int,
    width: int,
    *,
    overwrite: bool,
    like: Image | None = None,
    lossless: bool = False,
) -> None:
    """Refuse before the work is done whatever `write_image` would refuse after it.

    Args:
        path: output file; its extension picks the format.
        height, width: size of the output in pixels.
        overwrite: an existing file may be replaced.
        like: picture whose alpha, grey and bits the output will have (for example the input of an
            upscale); without it an opaque 8-bit RGB output is assumed.
        lossless: the output is to be without loss.

    Raises:
        ImageError: unknown extension, missing or unwritable folder, existing output without
            `overwrite`, size beyond the format's limit, alpha in a JPEG.
    """
    path = Path(path)
    form = format_of(path)
    _check_place(path, overwrite)
    # In the order in which a user would set it right: size, loss, range, alpha.
    if height < 1 or width < 1:
        raise ImageError(f"{path} would have {width} x {height} pixels: ask for at least 1 x 1.")
    if max(height, width) > form.max_side:
        raise ImageError(
            f"{path} would have {width} x {height} pixels and {form.name} ends at "
            f"{form.max_side:,} a side: "
            f"write {'TIFF' if form.key == 'png' else 'PNG or TIFF'} or choose a smaller scale."
        )
    if lossless and not form.lossless:
        raise ImageError(f"{path} cannot be without loss, {form.name} never is: write PNG or WebP.")
    if like is not None and like.bits == 32 and "float32" not in form.dtypes:
        _check_unit(path, like)
    if not form.alpha and like is not None and like.alpha is not None:
        raise ImageError(
            f"{path} cannot hold the alpha channel, {form.name} has none: write PNG, TIFF or WebP."
        )


def _check_unit(path: Path, image: Image) -> None:
    """Refuse floats that integers cannot stand for."""
    try:
        check_unit(image.rgb)
    except ImageError:
        raise ImageError(
            f"{path} cannot hold floats beyond [0, 1]: write .tif, .npy or .zarr."
        ) from None


def write_image(
    path: str | os.PathLike[str],
    image: Image,
    *,
    overwrite: bool = False,
    quality: int = 95,
    lossless: bool = False,
) -> None:
    """Write `image` to `path`, complete or not at all.

    Samples are clamped to [0, 1] and rounded half up, floor(x * (2**bits - 1) + 0.5). PNG and TIFF
    are lossless (Deflate) and keep `image.bits`; JPEG (4:4:4, no chroma subsampling) and WebP
    (lossy colour, lossless alpha, colour kept under transparent pixels) have 8 bits. A picture from
    a lossless WebP stays without loss in a WebP. WebP has
    no grey: it is written as RGB, without a profile that describes grey. What the format does not
    hold of `image.metadata` is named in one warning.
    16-bit grey + alpha in a TIFF becomes RGB + alpha, because few readers know it.

    Args:
        path: output file; its extension picks the format (.png, .jpg, .jpeg, .tif, .tiff, .webp).
        image: the picture; any floating-point dtype and device.
        overwrite: replace an existing file.
        quality: 1 to 100, for JPEG and WebP only.
        lossless: WebP without loss; refused for JPEG, which never is.

    Raises:
        ImageError: everything that `check_writable` refuses; NaN or infinity among the samples;
            wrong shapes, bits or quality; a full disk or another refusal of the system. The old
            file is then intact.
    """
    path = Path(path)
    form = format_of(path)
    _check_image(path, image)
    if not 1 <= quality <= 100:
        raise ImageError(f"{path} cannot be written with quality {quality}: choose 1 to 100.")
    check_writable(path, *image.rgb.shape[1:], overwrite=overwrite, like=image, lossless=lossless)
    # What the format holds may differ from what the picture has: channels, bits, metadata.
    planes = (1 if image.grey else 3) + (image.alpha is not None)
    channels, bits = form.stored(planes, image.bits)
    samples = _quantise(path, image, channels, bits)
    height, width = samples.shape[:2]
    metadata, lost = fitted(image.metadata, form.can_hold, channels)
    layout = Layout(height, width, channels, samples.dtype.name, metadata)
    try:
        with atomic_file(path, overwrite=overwrite) as file:
            whole = lossless or (image.lossless and form.lossless)
            read = partial(_window, samples)
            form.write(str(path), file, layout, read, quality=None if whole else quality)
    except OSError as error:
        raise ImageError(explain(path, error)) from error
    warn_of_lost(path, lost)


def format_of(path: Path) -> Format:
    """Format that the file name asks for; ImageError for one that is not written from memory."""
    form = by_suffix(path)
    if form is None or not form.writes:
        known = ", ".join(writable_suffixes())
        raise ImageError(f"{path} has no known image extension: name it with one of {known}.")
    return form


def _window(samples: np.ndarray, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    return samples[y0:y1, x0:x1]


def _check_image(path: Path, image: Image) -> None:
    if image.bits not in (8, 16, 32):
        raise ImageError(
            f"{path} cannot be written with {image.bits} bits per sample: choose 8, 16, or 32 for "
            "floats."
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
    """Samples [h, w, c] of uint8 or uint16, made in row strips so that no second float picture is
    needed.
    """
    _, height, width = image.rgb.shape
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    samples = np.empty((height, width, channels), dtype)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.rgb[:, top : top + rows].detach().to("cpu", torch.float32)
        missing = torch.zeros(strip.shape[1:], dtype=torch.bool)
        if image.missing is not None:
            missing = image.missing.find(strip)
        if image.grey:
            # Equal values are not mixed: their mean may be another one by rounding.
            equal = (strip == strip[:1]).all(0) | missing
            mean = torch.where(equal, strip[:1], strip.mean(0, keepdim=True))
            strip = mean.expand(3 if channels >= 3 else 1, -1, -1)
        if image.alpha is not None:
            alpha = image.alpha[:, top : top + rows].detach().to("cpu", torch.float32)
            strip = torch.cat([strip, alpha])
        if not bool((torch.isfinite(strip) | missing).all()):
            raise ImageError(
                f"{path} was not written, the picture has NaN or infinite values: check the model."
            )
        # Half up, the same for every format, so that two formats never differ by a level.
        levels = strip if bits == 32 else strip.clamp(0, 1) * (2**bits - 1) + 0.5
        samples[top : top + rows] = levels.permute(1, 2, 0).numpy().astype(samples.dtype)
    return samples


def check_name(path: Path) -> None:
    """Refuse a name that the file system does not take, such as one that is too long."""
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ImageError(explain(path, error)) from None


def _check_place(path: Path, overwrite: bool) -> None:
    folder = path.parent
    if not os.path.isdir(folder):
        raise ImageError(no_folder(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ImageError(
            f"{path} cannot be written, {folder} is write-protected: choose another folder."
        )
    check_name(path)
    # A dangling link counts as existing: writing through it would make a file elsewhere.
    if not os.path.lexists(path):
        return
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path} exists and is not a plain file: choose another name.")
    if not overwrite:
        raise already_exists(path)
