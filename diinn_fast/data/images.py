"""Images of a data set: where the usual layouts keep them, and decoding with errors that name the
file.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diinn_fast.errors import DataError, ImageError
from diinn_fast.files import address
from diinn_fast.formats.pillow import PillowFormat
from diinn_fast.formats.read import sniff
from diinn_fast.formats.registry import FORMATS

SUFFIXES = frozenset(
    suffix for form in FORMATS if isinstance(form, PillowFormat) for suffix in form.suffixes
)
"""Of file names in a data set: those of all formats that hold photographs."""

_FOLDERS = {
    "train": ["*_train_HR", "train_HR", "HR_train", "*_HR", "train"],
    "valid": ["*_valid_HR", "valid_HR", "HR_valid", "valid", "val"],
}
_HR = ["HR", "GTmod12", "GT", "image_SRF_4", "image_SRF_2", "image_SRF_3", "original"]
"""Folders of HR images: of EDSR's benchmark.tar (``Set5/HR``), MMEditing (``GTmod12``), SelfExSR
(``image_SRF_4``).
"""

Split = Literal["train", "valid"]
T = TypeVar("T")


def find_images(folder: str | Path, split: Split = "train") -> list[Path]:
    """HR images of a data set, by name: those in ``folder``, or else where the usual layouts keep
    them.

    Layouts: ``DIV2K_train_HR/`` and ``DIV2K_valid_HR/`` in the folder or in ``DIV2K/``, and a
        benchmark set's ``HR/``,
    ``GTmod12/``, ``GT/`` or ``image_SRF_*/``. ``split`` matters only where both are there; of a
    ``DIV2K_train_HR`` that holds 0001 to 0900, the last hundred are the "valid" ones, as the
    authors of DIINN split it. Raises DataError if there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(address(folder) or f"{folder} is not a folder: give one that holds images")
    other: Split = "valid" if split == "train" else "train"
    for place in [folder, *_below(folder, split), *_below(folder, other)]:
        if images := _images_in(place):
            return _div2k_split(images, split) if place.name.endswith("_train_HR") else images
    raise DataError(
        f"no images in {folder}: expected files ending in {', '.join(sorted(SUFFIXES))}, "
        "there or in a folder such as HR or DIV2K_train_HR"
    )


def _below(folder: Path, split: Split) -> list[Path]:
    """Folders that may hold the HR images, likeliest first: one level down, then in a folder such
    as ``DIV2K``.
    """
    patterns = [*_FOLDERS[split], *_HR]
    # DIV2K's own folder names, with or without the folder that its archives unpack to.
    levels = [
        "",
        *(
            f"{p.name}/"
            for p in sorted(folder.iterdir())
            if p.is_dir() and re.match(r"D[IF]V?2K", p.name)
        ),
    ]
    return [
        place
        for level in levels
        for p in patterns
        for place in sorted(folder.glob(level + p))
        if place.is_dir()
    ]


def _images_in(folder: Path) -> list[Path]:
    """Image files; where some are marked ``_HR`` (SelfExSR: beside their ``_LR``, ``_bicubic``...),
    only those.
    """
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    return [p for p in images if p.stem.endswith("_HR")] or images


def _div2k_split(images: list[Path], split: Split) -> list[Path]:
    valid = [p for p in images if re.fullmatch(r"0(8\d[1-9]|8[1-9]0|900)", p.stem)]
    if not valid or len(valid) == len(images):
        return images
    return valid if split == "valid" else [p for p in images if p not in valid]


class Photo(NamedTuple):
    """An image file that can be read when wanted: in a folder, or in a training pack (a tar
    file).
    """

    name: str
    read: Callable[[], bytes]
    stamp: tuple[int, int]  # bytes, and time of change in ns


def list_photos(source: str | Path, split: Split = "train") -> list[Photo]:
    """Images of a folder (see ``find_images``) or of a training pack (``.tar``). Raises
    DataError.
    """
    source = Path(source)
    if source.suffix != ".tar":
        return [
            Photo(str(p), p.read_bytes, (p.stat().st_size, p.stat().st_mtime_ns))
            for p in find_images(source, split)
        ]
    try:
        # Places in the pack alone: photographs are read when they are needed.
        with tarfile.open(source, "r:") as pack:
            members = [m for m in pack if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            address(source) or f"training pack {source} cannot be read: {error}"
        ) from error
    if not members:
        raise DataError(f"training pack {source} holds no images")
    changed = source.stat().st_mtime_ns
    return [
        Photo(
            f"{source}:{m.name}",
            partial(_read_part, source, m.offset_data, m.size),
            (m.size, changed),
        )
        for m in sorted(members, key=lambda m: m.name)
    ]


def _read_part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def photo_size(photo: Photo, min_side: int = 1) -> tuple[int, int]:
    """(height, width) from the file's header. Raises DataError for what is no image, too small, or
    not of 8 bits.
    """
    return _opened(photo, min_side, lambda image: (image.height, image.width))


def decode_photo(photo: Photo, min_side: int = 1) -> np.ndarray:
    """RGB pixels, uint8 ``[h, w, 3]``; grey is repeated. Raises DataError as ``photo_size``, and if
    damaged.
    """
    return _opened(photo, min_side, lambda image: np.array(image.convert("RGB")))


def _opened(photo: Photo, min_side: int, use: Callable[[Image.Image], T]) -> T:
    try:
        file = io.BytesIO(photo.read())
        form = sniff(photo.name, file)
        if not isinstance(form, PillowFormat):
            raise DataError(f"{photo.name} holds {form.name}: convert it to an image file")
        file.seek(0)
        with form.plugin(file) as image:
            # Training is on 8 bits; a silent conversion would cut values off.
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{photo.name} has more than 8 bits per channel: convert it to 8 bits"
                )
            if min(image.size) < min_side:
                size = f"{image.width}x{image.height}"
                raise DataError(
                    f"{photo.name} is {size} pixels: at least {min_side} are needed on both sides"
                )
            return use(image)
    except DataError:
        raise
    except (ImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{photo.name} cannot be decoded: remove or repair it ({error})") from error


def load_photos(folder: str | Path, min_side: int = 1, split: Split = "train") -> dict[str, Tensor]:
    """All images of a data set by file name, decoded: uint8 ``[3, h, w]``.

    Raises DataError, naming the file, for one that cannot be decoded or is smaller than
    ``min_side`` pixels.
    """
    return {
        Path(photo.name).name: torch.from_numpy(decode_photo(photo, min_side))
        .permute(2, 0, 1)
        .contiguous()
        for photo in list_photos(folder, split)
    }
