"""IIIF Image API 3.0: from the words of a URL to numbers, and what info.json says.

An image service is a grid of ``width`` x ``height`` pixels. A request names a region of that grid
and the size in which it is wanted; everything else (`rotation`, `quality`, `format`) is a word of
a short list. Nothing here reads a picture.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from diinn_fast.errors import Error

TILE = 256
"""Pixels along a side of the tiles that info.json offers."""

CONTEXT = "http://iiif.io/api/image/3/context.json"
PROFILE = "http://iiif.io/api/image/3/level2.json"
FORMATS = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
LONGEST = {"jpg": 65500, "webp": 16383}
"""Most pixels along a side that a format, or its library, holds; PNG's are never reached."""

QUALITIES = ("default", "color", "gray", "bitonal", "bicubic")

_NUMBER = r"[0-9]{1,9}"
_DECIMAL = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"


class BadRequestError(Error):
    """A URL that asks for what the service does not offer: answered with status 400."""


@dataclass(frozen=True)
class Service:
    """The grid of one image service and its limits.

    Attributes:
        width, height: of the grid.
        max_scale: most enlargement of that grid.
        max_area: most pixels of one answer.
    """

    width: int
    height: int
    max_scale: int
    max_area: int

    def info(self, url: str) -> dict[str, Any]:
        """The document info.json of the service at ``url``."""
        # Halves until the whole fits into a tile, so that a viewer can start with one.
        halvings = max(0, math.ceil(math.log2(max(self.width, self.height) / TILE)))
        return {
            "@context": CONTEXT,
            "id": url,
            "type": "ImageService3",
            "protocol": "http://iiif.io/api/image",
            "profile": "level2",
            "width": self.width,
            "height": self.height,
            "maxArea": self.max_area,
            "tiles": [
                {"width": TILE, "height": TILE, "scaleFactors": [2**n for n in range(halvings + 1)]}
            ],
            "extraFormats": ["webp"],
            "extraQualities": ["color", "gray", "bitonal", "bicubic"],
            "extraFeatures": [
                "mirroring",
                "rotationBy90s",
                "regionSquare",
                *(["sizeUpscaling"] if self.max_scale > 1 else []),
            ],
        }


@dataclass(frozen=True)
class ImageRequest:
    """What one URL asks for.

    Attributes:
        region: (x, y, width, height) on the service's grid, inside it.
        size: (width, height) of the answer before it is turned.
        mirror: whether it is mirrored, before it is turned.
        turn: degrees clockwise, a multiple of 90.
        quality: one of `QUALITIES`.
        format: one of `FORMATS`.
    """

    region: tuple[int, int, int, int]
    size: tuple[int, int]
    mirror: bool
    turn: int
    quality: str
    format: str

    def path(self, service: Service) -> str:
        """The request in the canonical form of the specification, without the service's URL."""
        x, y, w, h = self.region
        full = self.region == (0, 0, service.width, service.height)
        region = "full" if full else f"{x},{y},{w},{h}"
        width, height = self.size
        size = "max" if (width, height) == (w, h) else f"{width},{height}"
        enlarged = "^" if width > w or height > h else ""
        turn = f"{'!' if self.mirror else ''}{self.turn}"
        return f"{region}/{enlarged}{size}/{turn}/{self.quality}.{self.format}"


def parse(
    service: Service, region: str, size: str, rotation: str, quality_format: str
) -> ImageRequest:
    """Read the four last parts of a URL.

    Raises:
        BadRequestError: a part that is not of the specification, or outside the service's limits.
    """
    taken = parse_region(service, region)
    wanted = parse_size(service, taken, size)
    turned = re.fullmatch(r"(!?)(0|90|180|270|360)(?:\.0+)?", rotation)
    if not turned:
        raise BadRequestError("rotation must be 0, 90, 180 or 270, with ! in front to mirror")
    quality, _, form = quality_format.rpartition(".")
    if quality not in QUALITIES or form not in FORMATS:
        raise BadRequestError(f"choose a quality of {QUALITIES} and a format of {tuple(FORMATS)}")
    if max(wanted) > LONGEST.get(form, max(wanted)):
        raise BadRequestError(f"{form} has {LONGEST[form]} pixels along a side at most: take png")
    return ImageRequest(taken, wanted, turned[1] == "!", int(turned[2]) % 360, quality, form)


def parse_region(service: Service, text: str) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a region, cut at the grid's right and lower border."""
    width = service.width
    height = service.height
    if text == "full":
        return 0, 0, width, height
    if text == "square":
        side = min(width, height)
        return (width - side) // 2, (height - side) // 2, side, side
    if found := re.fullmatch(rf"pct:{','.join([f'({_DECIMAL})'] * 4)}", text):
        # Exact fractions: rounding must not depend on the machine's floats.
        parts = [Fraction(part) / 100 for part in found.groups()]
        x = round(parts[0] * width)
        y = round(parts[1] * height)
        w = round(parts[2] * width)
        h = round(parts[3] * height)
    elif found := re.fullmatch(",".join([f"({_NUMBER})"] * 4), text):
        x, y, w, h = map(int, found.groups())
    else:
        raise BadRequestError("region must be full, square, x,y,w,h or pct:x,y,w,h")
    # The standard cuts what lies beyond the picture, and refuses what is wholly beyond.
    w = min(w, width - x)
    h = min(h, height - y)
    if w < 1 or h < 1:
        raise BadRequestError("the region is empty or outside the picture")
    return x, y, w, h


def parse_size(service: Service, region: tuple[int, int, int, int], text: str) -> tuple[int, int]:
    """(width, height) of the answer for a region."""
    w, h = region[2:]
    may_enlarge = text.startswith("^")
    # The most that limits allow: area by a square root, enlargement only where ^ asks for it.
    area = math.sqrt(service.max_area / (w * h))
    most = min(area, service.max_scale if may_enlarge else 1)
    width, height = _wanted(text.removeprefix("^"), w, h, most)
    if width < 1 or height < 1:
        raise BadRequestError("the size is less than a pixel")
    if not may_enlarge and (width > w or height > h):
        raise BadRequestError("the size is larger than the region: put ^ in front to enlarge it")
    if width > w * service.max_scale or height > h * service.max_scale:
        raise BadRequestError(f"the region can be enlarged {service.max_scale} times at most")
    if width * height > service.max_area:
        raise BadRequestError(f"an answer has {service.max_area} pixels at most")
    return width, height


def _wanted(text: str, w: int, h: int, most: float) -> tuple[int, int]:
    """Width and height that a size without its ^ says for a region of w x h."""
    if text == "max":
        return _scaled(w, h, most)
    # One form after the other, as the standard lists them.
    if found := re.fullmatch(rf"pct:({_DECIMAL})", text):
        return _rounded(w, Fraction(found[1]) / 100), _rounded(h, Fraction(found[1]) / 100)
    if found := re.fullmatch(rf"({_NUMBER}),", text):
        width = int(found[1])
        return width, _rounded(h, Fraction(width, w))
    if found := re.fullmatch(rf",({_NUMBER})", text):
        height = int(found[1])
        return _rounded(w, Fraction(height, h)), height
    if found := re.fullmatch(rf"({_NUMBER}),({_NUMBER})", text):
        return int(found[1]), int(found[2])
    if found := re.fullmatch(rf"!({_NUMBER}),({_NUMBER})", text):
        return _scaled(w, h, min(most, int(found[1]) / w, int(found[2]) / h))
    raise BadRequestError("size must be max; w, ; ,h ; w,h ; !w,h or pct:n, with ^ to enlarge")


def _scaled(w: int, h: int, scale: float) -> tuple[int, int]:
    """The region scaled, never beyond the scale by rounding, and a pixel at least."""
    if scale <= 0:
        return 0, 0
    return max(1, math.floor(w * scale + 1e-9)), max(1, math.floor(h * scale + 1e-9))


def _rounded(length: int, scale: Fraction) -> int:
    return max(1, math.floor(length * scale + Fraction(1, 2))) if scale else 0
