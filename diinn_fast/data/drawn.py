"""Drawn pictures: text, lines, shapes, stripes and outlined regions, as screens, slides and maps
show them and photographs seldom do; and frames, the lines along the border of scans, video and
screenshots.

A model that has seen photographs alone loses most where a picture is drawn or framed; a few crops
in a hundred are enough to mend it (docs/evaluation.md has the figures).
"""

from __future__ import annotations

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FINER = 3
"""Pictures are drawn this many times as large along each side and reduced: their edges are smooth,
as those of displays and printers are.
"""

LETTERS = string.ascii_letters + string.digits + string.punctuation + " " * 12


def draw_picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A square picture, uint8 ``[side, side, 3]``; it depends on the state of ``rng`` alone."""
    picture = _ground(rng, side * FINER)
    for _ in range(int(rng.integers(1, 5))):
        layer = (_text, _shapes, _stripes, _regions)[int(rng.choice(4, p=(0.4, 0.25, 0.15, 0.2)))]
        picture = layer(rng, picture)
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX))


def add_frame(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A copy of the picture, uint8 ``[h, w, 3]``, with a line of 1 to 4 pixels of one colour, most
    often nearly black, along some of its sides.
    """
    framed = picture.copy()
    width = int(rng.integers(1, 5))
    colour = _colour(rng) if rng.random() < 0.3 else [int(rng.integers(40))] * 3
    for side in np.flatnonzero(rng.random(4) < 0.6):
        # The first rows, the last columns, the last rows, the first columns.
        np.rot90(framed, int(side))[:width] = colour
    return framed


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Often black, white, a full colour or a gray; else any."""
    kind = rng.random()
    if kind < 0.3:
        red, green, blue = rng.choice([0, 255], 3)
    elif kind < 0.5:
        red = green = blue = rng.integers(256)
    else:
        red, green, blue = rng.integers(256, size=3)
    return int(red), int(green), int(blue)


def _ground(rng: np.random.Generator, side: int) -> Image.Image:
    """One colour, most often white, or one that changes from corner to corner."""
    kind = rng.random()
    if kind < 0.3:
        return Image.new("RGB", (side, side), "white")
    if kind < 0.7:
        return Image.new("RGB", (side, side), _colour(rng))
    corners = np.array([_colour(rng) for _ in range(4)], np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


def _text(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Lines of random letters of 6 to 40 pixels."""
    draw = ImageDraw.Draw(picture)
    size = FINER * float(np.exp(rng.uniform(np.log(6), np.log(40))))
    font = ImageFont.load_default(size)
    colour = _colour(rng)
    top, end = np.sort(rng.uniform(-0.2, 1.0, 2)) * picture.height
    left = rng.uniform(-0.2, 0.5) * picture.width
    while top <= end:
        count = int(rng.integers(1, 2 + int(3 * picture.width / size)))
        line = "".join(rng.choice(list(LETTERS), count))
        draw.text((left, top), line, font=font, fill=colour)
        top += size * 1.25
    return picture


def _shapes(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Lines, ellipses, rectangles, triangles and arcs, of strokes of 1 to 12 pixels."""
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 12))):
        points = [tuple(p) for p in rng.uniform(-0.1, 1.1, (3, 2)) * picture.width]
        low, high = np.sort(np.array(points[:2]), axis=0)
        box = (*low.tolist(), *high.tolist())
        fill = _colour(rng) if rng.random() < 0.5 else None
        stroke = _colour(rng)
        width = round(FINER * float(np.exp(rng.uniform(0, 2.5))))
        kind = rng.integers(5)
        if kind == 0:
            draw.line(points[:2], stroke, width)
        elif kind == 1:
            draw.ellipse(box, fill, stroke, width)
        elif kind == 2:
            draw.rectangle(box, fill, stroke, width)
        elif kind == 3:
            draw.polygon(points, fill or stroke)
        else:
            start, end = rng.uniform(0, 360, 2).tolist()
            draw.arc(box, start, end, stroke, width)
    return picture


def _stripes(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Straight or round stripes of two colours, of periods from 2.5 to 30 pixels, in a rectangle
    of the picture.
    """
    (top, left), (bottom, right) = np.sort(rng.integers(picture.width + 1, size=(2, 2)), axis=0)
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    if rng.random() < 0.3:
        cy, cx = rng.uniform(0, picture.width, 2)
        distance = np.hypot(y - cy, x - cx)
    else:
        distance = y * np.sin(angle) + x * np.cos(angle)
    period = FINER * np.exp(rng.uniform(np.log(2.5), np.log(30)))
    first = (distance / period % 1 < rng.uniform(0.2, 0.8))[..., None]
    pixels = np.array(picture)
    pixels[top:bottom, left:right] = np.where(first, _colour(rng), _colour(rng))
    return Image.fromarray(pixels)


def _regions(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Where smooth noise is above a level, another colour; along the level most often an outline
    of 1 to 8 pixels: the curves of maps, cells and wings.
    """
    side = picture.width
    coarse = rng.standard_normal((int(rng.integers(4, 24)),) * 2).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    noise = np.asarray(smooth)
    level = rng.uniform(-1, 1)
    pixels = np.where((noise > level)[..., None], _colour(rng), np.array(picture))
    if rng.random() < 0.75:
        # How far a pixel is from the curve: the value's distance by its slope.
        slope = np.hypot(*np.gradient(noise)) + 1e-6
        width = FINER * np.exp(rng.uniform(0, 2))
        pixels[np.abs(noise - level) / slope < width / 2] = _colour(rng)
    return Image.fromarray(pixels.astype(np.uint8))
