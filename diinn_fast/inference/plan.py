"""How an output of any size is made within a memory bound: which tiles, which blocks, what it will
hold and take.

A *tile* is a window of the HR grid whose LR pixels are encoded at once, with as many LR pixels
around them as the encoder's receptive radius (the halo), so that its features are those of the
whole image. A tile is written in *blocks*, and a block is decoded in *strips* of rows whose content
is small. Tiles and blocks begin and end at multiples of the sink's unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import nn

from diinn_fast.decoder import ImplicitDecoder
from diinn_fast.encoders import Cost, cost_of
from diinn_fast.encoders.convolutions import with_halo
from diinn_fast.errors import UpscaleError
from diinn_fast.files import size_text
from diinn_fast.geometry import Window, split
from diinn_fast.inference.memory import MIB

BLOCK_PIXELS = 1 << 20
"""Most output pixels of a block, unless the sink's unit is larger: about a second's work of a
CPU.
"""
STRIP_BYTES = 32 * MIB
"""Most content and temporaries of a strip."""
QUEUE = 2
"""Blocks that may wait for the writer; one more is being written, and one made."""
SPREAD_BYTES = 8 * MIB
"""How far what two runs hold at their start may differ: the bound that one of them names must do
for the other.
"""
MARGIN = 2
"""LR pixels that the decoder looks at beyond a window."""
MOST_TILES = 1024
"""Most tiles along an axis that are considered."""


@dataclass(frozen=True)
class Task:
    """What a plan is made for: everything but the bound."""

    encoder: nn.Module
    decoder: ImplicitDecoder
    lr: tuple[int, int]
    hr: tuple[int, int]
    pixel_bytes: int  # of an output pixel
    unit: tuple[int, int] = (1, 1)
    halo: int | None = None  # LR pixels; None: exact
    workers: int = 1  # processes that share the tiles
    item: int = 4  # bytes of a number in the encoder's dtype
    wraps: bool = False  # what lies beyond an edge is read from the opposite one
    bands: int = 1  # pictures of one size that are made side by side
    finishing: int = 0  # bytes that turning blocks into the file holds, after the work

    @cached_property
    def axes(self) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]:
        """See `_axis`."""
        return _axis(self, 0), _axis(self, 1)

    @cached_property
    def cost(self) -> Cost:
        """What the encoder needs."""
        return cost_of(self.encoder)

    @cached_property
    def radius(self) -> int | None:
        """LR pixels read around a tile; None: not known, the image must be encoded in one piece."""
        exact = getattr(self.encoder, "receptive_radius", None)
        return exact if exact is None or self.halo is None else min(self.halo, exact)


@dataclass(frozen=True)
class Plan:
    """The tiling parameters; equal parameters give equal tiles in every process."""

    lr: tuple[int, int]
    hr: tuple[int, int]
    unit: tuple[int, int]
    radius: int  # LR pixels read around a tile
    tiles: tuple[int, int]  # count down and across
    block: tuple[int, int]  # most HR rows and columns
    strip: int  # HR rows decoded at a time
    work_bytes: int  # what an encoder that takes it may hold beside its features (see Cost)
    peak_bytes: int  # beyond what the process held before

    def tile_windows(self) -> list[Window]:
        """The tiles, HR windows that cover the output, row by row."""
        rows, columns = (cuts(*axis) for axis in zip(self.hr, self.unit, self.tiles, strict=True))
        return [Window(y0, y1, x0, x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(columns)]

    def blocks(self, tile: Window) -> list[Window]:
        """The blocks of a tile, row by row."""
        return list(split(tile, *self.block))

    def region(self, needed: Window) -> Window:
        """LR rows and columns to encode for the features of the LR window ``needed``."""
        return with_halo(needed, self.lr, self.radius)

    def encoded_pixels(self, decoder: ImplicitDecoder) -> int:
        """LR pixels encoded in all, halos included."""
        regions = (
            self.region(decoder.lr_window(tile, self.lr, self.hr)) for tile in self.tile_windows()
        )
        return sum(r.shape[0] * r.shape[1] for r in regions)

    def as_json(self) -> dict[str, Any]:
        """The plan as a journal stores it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self.__dict__.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Plan:
        """The plan of a journal."""
        values: Any = {
            name: tuple(v) if isinstance(v, list) else int(v) for name, v in fields.items()
        }
        return cls(**values)


def cuts(length: int, unit: int, count: int) -> list[int]:
    """``[0, ..., length]``: ``count`` nearly equal parts that begin at multiples of ``unit``."""
    units = -(-length // unit)
    return [min(length, unit * (units * n // count)) for n in range(count + 1)]


def make_plan(task: Task, free: int) -> Plan:
    """The plan that encodes the fewest pixels and holds at most ``free`` bytes beyond what the
    process has now.

    An example: EDSR-baseline, 2048x2048 at x8, 3 bytes per output pixel, 1136 MiB free.

    1. Blocks of a megapixel; up to 4 of them wait or are in work: 4 * 3 MiB = 12 MiB.
    2. 1124 MiB are left. Encoding takes 272 floats per LR pixel and its features 64, and a strip of
       8 LR rows 28 MiB: at most min(1124 MiB / (272 * 4), (1124 - 28) MiB / (64 * 4)) = 1.08
       million LR pixels at a time.
    3. Of all cuts whose largest tile, with 34 + 1 LR pixels around it, is no larger, the one that
       encodes the fewest pixels has 2 x 3 tiles: 1094x753 pixels at most, 11 % more in all than
       the picture has.
    4. A tile of 8192 x 5462 output pixels is cut in blocks of 373 x 2731, decoded in strips of 75
       rows, as many as take 32 MiB.
    5. It holds at most 12 + max(829 for encoding, 195 for features + a strip) = 841 MiB.

    An encoder that can do with less memory by computing more (`Cost.shares`) gives a candidate for
    each share. Raises UpscaleError if there is no plan.
    """
    shares = task.cost.shares or (0.0,)
    found = [_candidate(task, free, share) for share in shares] if task.finishing <= free else []
    candidates = [candidate for candidate in found if candidate is not None]
    if not candidates:
        raise UpscaleError("too little memory")
    return min(candidates, key=lambda candidate: (candidate.cost, candidate.count)).plan


@dataclass(frozen=True)
class _Candidate:
    """A plan, the LR pixels that it encodes (weighted by what they cost), and how many tiles."""

    plan: Plan
    cost: float
    count: int


def _candidate(task: Task, free: int, share: float) -> _Candidate | None:
    """The best plan in which an encoder's ``work_bytes`` take a share of the memory, if any."""
    # Blocks on their way to the disk come first; tiles take what they leave.
    most, columns, least_strip = _blocks(task, free)
    blocks_bytes = most * task.pixel_bytes * (QUEUE + 2)
    left = free - blocks_bytes
    work = int(left * share)
    found = _fewest_pixels(task, _most_pixels(task, left, work, least_strip))
    if found is None:
        return None
    encoded, tiles, largest = found
    # Strips are as high as the features of the largest tile leave room for.
    high, wide = _largest_tile(task, tiles)
    block = _block(task, high, wide, most, columns)
    features = _features(task, largest)
    strip_budget = min(STRIP_BYTES, left - features)
    strip, strip_bytes = _strip(task, (block[0], min(block[1], wide)), strip_budget)
    # Encoding and decoding do not overlap, and finishing the file comes after both.
    working = max(_encoding(task, largest, work), features + strip_bytes)
    peak = max(blocks_bytes + working, task.finishing)
    plan = Plan(task.lr, task.hr, task.unit, task.radius or 0, tiles, block, strip, work, peak)
    return _Candidate(plan, encoded * task.cost.extra(largest, work), tiles[0] * tiles[1])


def smallest_bound(task: Task, base: int) -> int:
    """Fewest bytes, in steps of 16 MiB, for which there is a plan, given that the process holds
    ``base``.
    """
    # no plan with low * step, a plan with high
    low = 0
    high = 1 << 50
    while high - low > 16 * MIB:
        middle = (low + high) // 2
        try:
            make_plan(task, middle)
            high = middle
        except UpscaleError:
            low = middle
    return -(-(base + high) // (16 * MIB)) * 16 * MIB


def plan_within(task: Task, base: int, bound: int) -> Plan:
    """The plan for a process that holds ``base`` bytes and may hold ``bound``; UpscaleError says
    what would do.
    """
    try:
        return make_plan(task, bound - base)
    except UpscaleError:
        least = smallest_bound(task, base + SPREAD_BYTES)
        raise UpscaleError(
            f"this upscale cannot be done within {size_text(bound)} of memory: the smallest bound "
            "that works is "
            f"{least // MIB} MiB (--max-memory {least // MIB}MiB)"
        ) from None


# -- blocks ----------------------------------------------------------------------------------------


def _blocks(task: Task, free: int) -> tuple[int, int, int]:
    """Most pixels of a block, its most columns, and bytes of a strip of 8 LR rows and so many
    columns.
    """
    height, width = task.hr
    unit_y, unit_x = task.unit
    most = max(unit_y * unit_x, min(BLOCK_PIXELS, free // (12 * task.pixel_bytes * (QUEUE + 2))))
    budget = min(STRIP_BYTES, max(free // 4, MIB))
    rows = max(1, 8 * height // task.lr[0])
    columns = min(width, max(1, most // max(unit_y, 256)))
    while columns > 256 and _strip_bytes(task, rows, columns) > budget:
        columns = columns * 3 // 4
    columns = max(1, columns // unit_x) * unit_x
    most = min(most, _whole(height, unit_y) * _whole(width, unit_x))
    return most, columns, _strip(task, (rows, columns), budget)[1]


def _block(task: Task, high: int, wide: int, most: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the blocks of a tile: few and alike, of at most so many pixels and
    columns.
    """
    unit_y, unit_x = task.unit
    columns = _whole(-(-wide // -(-wide // columns)), unit_x)
    rows = max(1, most // min(columns, wide) // unit_y) * unit_y
    return _whole(-(-high // -(-high // rows)), unit_y), columns


def _whole(length: int, unit: int) -> int:
    """The least multiple of ``unit`` that is not below."""
    return -(-length // unit) * unit


def _strip(task: Task, block: tuple[int, int], budget: int) -> tuple[int, int]:
    """(Rows, bytes) of the highest equal strips of a block that take ``budget``, or of one row."""
    # that many strips take too much, or are one; that many do
    low = 1
    high = block[0]
    while low < high:
        middle = (low + high) // 2
        if _strip_bytes(task, -(-block[0] // middle), block[1]) > budget:
            low = middle + 1
        else:
            high = middle
    rows = -(-block[0] // low)
    return rows, _strip_bytes(task, rows, block[1])


def _strip_bytes(task: Task, rows: int, columns: int) -> int:
    """What decoding so many HR rows and columns holds beside the features: content, and the output
    a few times.
    """
    h, w = task.lr
    height, width = task.hr
    decoder = task.decoder
    rows = min(rows, height)
    columns = min(columns, width)
    lr_rows, lr_columns = (
        min(n, math.ceil(m * n / out) + 1) for m, n, out in ((rows, h, height), (columns, w, width))
    )
    # Features with a border of one, and once more with their channels last.
    floats = 3 * (lr_rows + 2) * (lr_columns + 2) * decoder.in_channels
    form = decoder.formulation.form(task.lr, height * width)
    if form != "direct":
        # Projected content, of which modes 1 and 2 hold up to three while they make it.
        content = lr_rows * lr_columns * len(decoder.K) * decoder.width
        floats += content * (3 if form == "modulation" else 1)
    taps = 3 * 27 if decoder.formulation.needs_grid else 0
    return 4 * (floats + rows * columns * (5 * 3 + taps))


# -- tiles -----------------------------------------------------------------------------------------


def _encoding(task: Task, pixels: int, work: int) -> int:
    """Bytes that encoding so many LR pixels holds at most, ``work`` of them by `Cost.shares`, and
    the features of other bands.
    """
    others = (task.bands - 1) * _feature_bytes(task)
    return int(pixels * (task.cost.floats_bounded * task.item + others)) + work


def _features(task: Task, pixels: int) -> int:
    """Bytes that the features of so many LR pixels take."""
    return pixels * task.bands * _feature_bytes(task)


def _feature_bytes(task: Task) -> int:
    """Of one pixel of one picture."""
    return task.decoder.in_channels * max(task.item, 4)


def _most_pixels(task: Task, free: int, work: int, strip_bytes: int) -> int:
    """LR pixels that can be encoded at once."""
    per_pixel = _encoding(task, 1, 0)
    return int(min((free - work) / per_pixel, (free - strip_bytes) / _features(task, 1)))


def _largest_tile(task: Task, tiles: tuple[int, int]) -> tuple[int, int]:
    """HR rows of the highest tile, columns of the widest."""
    axes = zip(task.hr, task.unit, tiles, strict=True)
    high, wide = (max(stop - start for start, stop in pairwise(cuts(*axis))) for axis in axes)
    return high, wide


def _fewest_pixels(task: Task, most: int) -> tuple[float, tuple[int, int], int] | None:
    """(LR pixels encoded in all, tiles down and across, pixels of the largest), or None if no cut
    is small enough.
    """
    if task.radius is None:
        pixels = task.lr[0] * task.lr[1]
        return (pixels, (1, 1), pixels) if pixels <= most else None
    shared = 2 * task.workers if task.workers > 1 else 1
    return _fewest_of_at_least(task, most, shared) or _fewest_of_at_least(task, most, 1)


def _fewest_of_at_least(
    task: Task, most: int, wanted: int
) -> tuple[float, tuple[int, int], int] | None:
    """The same, of cuts into ``wanted`` tiles or more."""
    rows, columns = task.axes
    best: tuple[float, int, tuple[int, int], int] | None = None
    for down, (high, tall) in rows.items():
        for across, (wide, broad) in columns.items():
            if tall * broad > most or down * across < wanted:
                continue
            candidate = high * wide, down * across, (down, across), tall * broad
            if best is None or candidate < best:
                best = candidate
    return best and (best[0], *best[2:])


def _axis(task: Task, axis: int) -> dict[int, tuple[int, int]]:
    """LR pixels along an axis by number of tiles: (all regions together, longest)."""
    length = task.hr[axis]
    n = task.lr[axis]
    unit = task.unit[axis]
    found = {}
    units = -(-length // unit)
    for count in _counts(min(units, n, MOST_TILES)):
        regions = [
            _extent(task, axis, start, stop) for start, stop in pairwise(cuts(length, unit, count))
        ]
        found[count] = sum(regions), max(regions)
    return found


def _counts(most: int) -> Sequence[int]:
    """1, 2, 3, ... and above 32 in steps of a sixteenth."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, counts[-1] // 16)))
    return counts


def _extent(task: Task, axis: int, start: int, stop: int) -> int:
    """LR pixels along an axis that a tile from ``start`` to ``stop`` encodes."""
    window = [0, 1, 0, 1]
    window[2 * axis : 2 * axis + 2] = start, stop
    needed = task.decoder.lr_window(window, task.lr, task.hr)[2 * axis : 2 * axis + 2]
    radius = task.radius or 0
    if task.wraps:
        # No edge cuts the halo, nor what the decoder looks at beyond the window.
        return needed[1] - needed[0] + 2 * (radius + MARGIN)
    return min(needed[1] + radius, task.lr[axis]) - max(needed[0] - radius, 0)
