"""File to integer samples through Pillow, including the 16-bit colour that Pillow alone cuts to 8
bits.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from diinn_fast.errors import ImageError
from diinn_fast.host import free_bytes
from diinn_fast.imageio.png import PALETTE, PngHeader, check_png

# The plugins rather than PIL.Image.open, which refuses large pictures by a process-wide setting.
_PLUGINS: dict[str, Callable[[BinaryIO], ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": jpeg_factory,
    "TIFF": TiffImageFile,
    "WebP": WebPImageFile,
}

# TIFF tags
_SUBFILE = 254
_BITS = 258
_PHOTOMETRIC = 262
_ORIENTATION = 274
_X_RESOLUTION = 282
_PLANES = 284
_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT = 339

_MAX_DPI = 1e6

MAX_PIXELS = 2**31
"""Largest picture that is read, whatever the memory."""

_READ_BYTES = 28
"""Peak bytes per pixel while reading 16-bit RGB + alpha: integers 8, float32 result 16, one plane
4.
"""

_DECODE_BYTES_8BIT = 22
_DECODE_BYTES_16BIT = 27
"""Peak bytes per pixel of `decode` alone: 1.1 x the most measured (WebP with alpha, 16-bit RGB +
alpha).
"""

_MODES_8BIT = {"1": "L", "L": "L", "La": "LA", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
_MODES_16BIT = {"I;16", "I;16B", "RGB", "RGBA"}


@dataclass
class Decoded:
    """Upright samples [h, w, c] uint8 or uint16, c = grey, grey + alpha, RGB, RGB + alpha; and
    metadata.
    """

    samples: np.ndarray
    icc: bytes | None
    dpi: tuple[float, float] | None


def decode(path: Path, kind: str, file: BinaryIO, *, max_bytes: int | None = None) -> Decoded:
    """Decode the whole picture, by at most `max_bytes` if given (default: by what float samples
    leave free).

    Raises:
        ImageError: anything damaged, cut off, too large or not supported.
    """
    header = check_png(path, file) if kind == "PNG" else None
    with _damage_explained(path, kind):
        picture = _open(kind, file)
    if max_bytes is None:
        _check_size(path, *picture.size)
    _check_kind(path, kind, picture, header)
    if max_bytes is not None:
        _check_bound(path, *picture.size, 16 if _is_16bit(picture, header) else 8, max_bytes)
    icc = picture.info.get("icc_profile")
    orientation = (
        picture.tag_v2.get(_ORIENTATION, 1) if isinstance(picture, TiffImageFile) else None
    )
    huge = math.prod(picture.size) > (PIL.Image.MAX_IMAGE_PIXELS or math.inf)
    with (
        _pillow_limit_lifted() if huge and kind == "TIFF" else nullcontext(),
        _damage_explained(path, kind),
    ):
        samples = _samples(kind, file, picture, header)
    if header is not None and header.transparent is not None and header.colour_type != PALETTE:
        samples = _with_transparent_colour(samples, header)
    if orientation is None:  # Pillow turns TIFFs itself while loading
        orientation = _exif_orientation(picture)
        samples = upright(samples, orientation)
    return Decoded(samples, icc, _dpi(picture, orientation))


@contextmanager
def _damage_explained(path: Path, kind: str) -> Iterator[None]:
    """Make one ImageError of whatever Pillow raises within the block."""
    try:
        yield
    except MemoryError:
        raise ImageError(
            f"{path} does not fit in memory: crop it or use a machine with more."
        ) from None
    except Exception as error:  # on damaged input Pillow raises nearly every exception there is
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(
            f"{path} is a damaged, cut off or unusual {kind} ({reason}): "
            f"export it again as an 8- or 16-bit grey or RGB {kind}."
        ) from error


def _open(kind: str, file: BinaryIO) -> ImageFile:
    file.seek(0)
    try:
        return _PLUGINS[kind](file)
    except PIL.Image.DecompressionBombError:  # the WebP plugin looks at the setting itself
        file.seek(0)
        with _pillow_limit_lifted():
            return _PLUGINS[kind](file)


_limit_lock = threading.Lock()


@contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    """No limit of Pillow's within the block: `_check_size` has the better one."""
    with _limit_lock:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuse before anything of the picture's size is allocated; a small file can declare any
    size.
    """
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{path} declares {width} x {height} pixels, more than 2**31: cut it into parts."
        )
    available = free_bytes()
    if pixels * _READ_BYTES > available:
        raise ImageError(
            f"{path} declares {width} x {height} pixels, which take "
            f"{pixels * _READ_BYTES / 2**30:.1f} GiB "
            f"to read and {available / 2**30:.1f} GiB are free: crop it or use a machine with "
            "more memory."
        )


def decode_bytes(width: int, height: int, bits: int) -> int:
    """Most memory that `decode` takes, its result included."""
    return width * height * (_DECODE_BYTES_16BIT if bits == 16 else _DECODE_BYTES_8BIT)


def _check_bound(path: Path, width: int, height: int, bits: int, max_bytes: int) -> None:
    needed = decode_bytes(width, height, bits)
    if needed > max_bytes:
        raise ImageError(
            f"{path} takes {needed / 2**20:,.0f} MiB to decode {width} x {height} pixels and "
            f"{max_bytes / 2**20:,.0f} "
            "are left within the bound: raise it, or convert the file to a tiled TIFF or Zarr, "
            "read by region."
        )


def _check_kind(path: Path, kind: str, picture: ImageFile, header: PngHeader | None) -> None:
    """Refuse colour spaces, sample types and multiple frames that would give a wrong or partial
    picture.
    """
    if isinstance(picture, TiffImageFile):
        _check_tiff(path, picture)
    elif kind != "JPEG" and getattr(
        picture, "is_animated", False
    ):  # JPEG: previews follow the main picture
        raise ImageError(
            f"{path} is an animated {kind}: extract its frames first and give them one by one."
        )
    supported = _MODES_16BIT if _is_16bit(picture, header) else {*_MODES_8BIT, "P", "PA"}
    if picture.mode not in supported:
        raise ImageError(
            f"{path} has {picture.mode} pixels: convert it to 8- or 16-bit grey or RGB first."
        )


def _check_tiff(path: Path, picture: TiffImageFile) -> None:
    with _damage_explained(path, "TIFF"):
        subfiles = []
        for page in range(1, picture.n_frames):
            picture.seek(page)
            subfiles.append(picture.tag_v2.get(_SUBFILE, 0))
        picture.seek(0)
    if not all(subfile & 1 for subfile in subfiles):  # bit 0: a reduced copy of another page
        raise ImageError(
            f"{path} is a TIFF of several pages: split it and give the pages one by one."
        )
    tags = picture.tag_v2
    bits = tags.get(_BITS, (1,))
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise ImageError(
            f"{path} has float or signed samples: rescale it to 8- or 16-bit unsigned integers "
            "first."
        )
    if len(set(bits)) != 1 or bits[0] not in (1, 2, 4, 8, 16):
        raise ImageError(f"{path} has {bits[0]} bits per sample: convert it to 8 or 16 bits first.")
    if bits[0] == 16 and len(bits) > 1 and tags.get(_PLANES, 1) != 1:
        raise ImageError(
            f"{path} is a 16-bit TIFF with separate planes: save it with interleaved channels."
        )


def _is_16bit(picture: ImageFile, header: PngHeader | None) -> bool:
    if isinstance(picture, TiffImageFile):
        return picture.tag_v2.get(_BITS, (1,))[0] == 16
    return header is not None and header.depth == 16


def _exif_orientation(picture: ImageFile) -> object:
    """EXIF orientation, 1 where there is none or the EXIF block cannot be read (as viewers do)."""
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _dpi(picture: ImageFile, orientation: object) -> tuple[float, float] | None:
    """Resolution (horizontal, vertical) of the upright picture, None if the file states no sensible
    one.
    """
    dpi = picture.info.get("dpi")
    if dpi is None or (isinstance(picture, TiffImageFile) and _X_RESOLUTION not in picture.tag_v2):
        return None  # Pillow says 1 dpi for a TIFF without resolution
    horizontal = float(dpi[0])
    vertical = float(dpi[1])
    if not (0 < horizontal < _MAX_DPI and 0 < vertical < _MAX_DPI):
        return None
    return (vertical, horizontal) if orientation in (5, 6, 7, 8) else (horizontal, vertical)


def _samples(kind: str, file: BinaryIO, picture: ImageFile, header: PngHeader | None) -> np.ndarray:
    if _is_16bit(picture, header):
        return _samples_16bit(kind, file, picture, header)
    return _samples_8bit(picture)


def _samples_8bit(picture: ImageFile) -> np.ndarray:
    picture.load()
    if picture.mode in ("P", "PA"):
        mode = "RGBA" if picture.has_transparency_data else "RGB"
    else:
        mode = _MODES_8BIT[picture.mode]
    converted = picture if picture.mode == mode else picture.convert(mode)
    return _as_array(converted)


def _samples_16bit(
    kind: str, file: BinaryIO, picture: ImageFile, header: PngHeader | None
) -> np.ndarray:
    """Read 16-bit samples that Pillow has no mode for.

    Pillow decompresses 16-bit colour completely and then keeps one byte of each sample, as the byte
    order of the tile's raw mode says. Decoding twice, the second time with the byte order
    exchanged, yields the high and the low bytes; grey + alpha PNG fits whole into a 32-bit raw
    mode.
    """
    if picture.mode.startswith("I;16"):
        samples = _as_array(picture)
        inverted = isinstance(picture, TiffImageFile) and picture.tag_v2.get(_PHOTOMETRIC, 0) == 0
        return 65535 - samples if inverted else samples
    if header is not None and header.colour_type == 4:
        _set_raw_mode(picture, lambda raw_mode: "RGBA")
        return np.ascontiguousarray(_as_array(picture)).view(">u2").astype(np.uint16)
    premultiplied = isinstance(picture, TiffImageFile) and picture.tag_v2.get(
        _EXTRA_SAMPLES, ()
    ) == (1,)
    _set_raw_mode(picture, lambda raw_mode: raw_mode.replace("RGBa", "RGBA"))
    samples = _as_array(picture).astype(np.uint16) << 8
    second = _open(kind, file)
    _set_raw_mode(second, lambda raw_mode: _other_byte(raw_mode.replace("RGBa", "RGBA")))
    samples |= _as_array(second)
    return _divide_out_alpha(samples) if premultiplied else samples


def _set_raw_mode(picture: ImageFile, change: Callable[[str], str]) -> None:
    tiles = []
    for tile in picture.tile:
        args = tile.args
        changed = (change(args[0]), *args[1:]) if isinstance(args, tuple) else change(str(args))
        tiles.append(tile._replace(args=changed))
    picture.tile = tiles


def _other_byte(raw_mode: str) -> str:
    """Raw mode with the other byte order: "RGB;16B" <-> "RGB;16L", "N" is this machine's own."""
    name = raw_mode[:-1]
    order = raw_mode[-1]
    return name + {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[order]


def _as_array(picture: PIL.Image.Image) -> np.ndarray:
    """[h, w, c] in native byte order."""
    array = np.asarray(picture)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[..., None] if array.ndim == 2 else array


def _divide_out_alpha(samples: np.ndarray) -> np.ndarray:
    """RGB / alpha, rounded half up and at most 65535; 0 under fully transparent pixels."""
    alpha = samples[..., 3:].astype(np.float64)
    colour = np.floor(samples[..., :3] * 65535.0 / np.maximum(alpha, 1) + 0.5)
    samples[..., :3] = np.minimum(colour, 65535)
    return samples


def _with_transparent_colour(samples: np.ndarray, header: PngHeader) -> np.ndarray:
    """Append the alpha that tRNS of a grey or RGB PNG stands for: exactly this colour is
    transparent.
    """
    top = np.iinfo(samples.dtype).max
    key = np.frombuffer(header.transparent or b"", ">u2").astype(np.int64)
    if header.depth < 8:
        key = key * 255 // (2**header.depth - 1)  # samples were spread to 0..255 by the decoder
    alpha = np.where((samples == key).all(-1, keepdims=True), 0, top).astype(samples.dtype)
    return np.concatenate([samples, alpha], axis=-1)


def upright(samples: np.ndarray, orientation: object) -> np.ndarray:
    """Undo EXIF orientation 2..8; any other value means upright already."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
