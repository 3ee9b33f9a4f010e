"""Enlarge a real photograph four times with the bundled model, and put it next to bicubic
interpolation.

Writes demo/upscaled.png and demo/comparison.png in the repository, and prints the time and the
backend.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diinn_fast.inference import Upscaler

HERE = Path(__file__).resolve().parent
SCALE = 4
DETAIL = (158, 116, 208, 150)
"""Left, top, right, bottom of the part shown enlarged, in pixels of the input."""
MARGIN = 16
LABEL = 48


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="model to use instead of the bundled one")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "demo", help="folder (default: %(default)s)"
    )
    options = parser.parse_args()

    photo = Image.open(HERE / "coffee.png").convert("RGB")
    upscaler = Upscaler(options.weights)
    start = time.perf_counter()
    large = upscaler(photo, scale=SCALE, progress=sys.stderr.isatty())
    seconds = time.perf_counter() - start

    options.out.mkdir(parents=True, exist_ok=True)
    upscaled = options.out / "upscaled.png"
    comparison = options.out / "comparison.png"
    large.save(upscaled)
    compare(photo, large).save(comparison)
    print(
        f"coffee.png {photo.width}x{photo.height} -> {upscaled} {large.width}x{large.height} "
        f"(x{SCALE}) "
        f"in {seconds:.1f} s, backend {upscaler.used_backend}, "
        f"{large.width * large.height / seconds / 1000:.0f} kpx/s"
    )
    print(f"next to bicubic: {comparison}")


def compare(photo: Image.Image, large: Image.Image) -> Image.Image:
    """A sheet: above, bicubic and DIINN whole; below, a detail of the input, of bicubic, and of
    DIINN.
    """
    bicubic = photo.resize(large.size, Image.Resampling.BICUBIC)
    inside = MARGIN + 2 * large.width
    cell = (inside - 2 * MARGIN) // 3
    below = MARGIN + LABEL + large.height
    left, top, right, bottom = DETAIL
    height = cell * (bottom - top) // (right - left)
    sheet = Image.new(
        "RGB", (inside + 2 * MARGIN, below + MARGIN + LABEL + height + MARGIN), "white"
    )
    place(sheet, bicubic, MARGIN, MARGIN, f"bicubic x{SCALE}")
    place(sheet, large, 2 * MARGIN + large.width, MARGIN, f"DIINN x{SCALE}")
    box = (left * SCALE, top * SCALE, right * SCALE, bottom * SCALE)
    details = {
        "detail: input": photo.crop(DETAIL),
        "bicubic": bicubic.crop(box),
        "DIINN": large.crop(box),
    }
    for n, (name, part) in enumerate(details.items()):
        zoomed = part.resize((cell, height), Image.Resampling.NEAREST)
        place(sheet, zoomed, MARGIN + n * (cell + MARGIN), below + MARGIN, name)
    return sheet


def place(sheet: Image.Image, picture: Image.Image, x: int, y: int, label: str) -> None:
    """Put a picture with its label on the sheet."""
    ImageDraw.Draw(sheet).text((x, y), label, fill="black", font=ImageFont.load_default(size=32))
    sheet.paste(picture, (x, y + LABEL))


if __name__ == "__main__":
    main()
