"""Plans: tiles and blocks that cover the output once, aligned, within the memory that they were
made for.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diinn_fast import DIINN
from diinn_fast.encoders import LEAST_PIXELS
from diinn_fast.encoders.convolutions import with_halo
from diinn_fast.errors import UpscaleError
from diinn_fast.inference import memory, plan
from diinn_fast.inference.plan import Plan, Task, make_plan, plan_within, smallest_bound
from tests.helpers.small_models import small_model

MIB = 1 << 20


@pytest.fixture(scope="module")
def edsr() -> DIINN:
    with torch.device("meta"):
        return DIINN(encoder="edsr-baseline")


@pytest.fixture(scope="module")
def rdn() -> DIINN:
    with torch.device("meta"):
        return DIINN(encoder="rdn")


def task(
    model: DIINN,
    lr: tuple[int, int] = (300, 400),
    hr: tuple[int, int] = (1110, 1480),
    **fields: Any,
) -> Task:
    return Task(model.encoder, model.decoder, lr, hr, **{"pixel_bytes": 3, **fields})


def test_tiles_and_blocks_cover_every_pixel_once_and_are_aligned(
    edsr: DIINN, seed: random.Random
) -> None:
    for _ in range(30):
        lr = seed.randint(1, 300), seed.randint(1, 300)
        hr = tuple(max(2, int(n * seed.uniform(0.3, 4))) for n in lr)
        unit = seed.choice([(1, 1), (16, 16), (64, 32)])
        wanted = task(edsr, lr, hr, unit=unit, workers=seed.choice([1, 1, 3]))
        made = make_plan(wanted, seed.randint(smallest_bound(wanted, 0), 400 * MIB))
        covered = np.zeros(hr, np.uint8)
        for tile in made.tile_windows():
            for y0, y1, x0, x1 in made.blocks(tile):
                covered[y0:y1, x0:x1] += 1
                assert y0 % unit[0] == 0 and x0 % unit[1] == 0
                assert y1 % unit[0] == 0 or y1 == hr[0]
                assert x1 % unit[1] == 0 or x1 == hr[1]
        assert (covered == 1).all(), made


def test_the_halo_is_the_receptive_radius_cut_at_the_image(edsr: DIINN) -> None:
    made = make_plan(task(edsr, (200, 200), (400, 400)), 40 * MIB)
    assert made.radius == 34 and made.tiles != (1, 1)
    assert made.region((50, 100, 0, 60)) == (16, 134, 0, 94)
    assert make_plan(task(edsr, halo=5), 400 * MIB).radius == 5
    assert make_plan(task(edsr, halo=500), 400 * MIB).radius == 34


@pytest.mark.long
@pytest.mark.parametrize("unit", [(1, 1), (256, 256)])
def test_what_is_held_stays_within_the_bound_and_more_memory_means_less_to_encode(
    edsr: DIINN, rdn: DIINN, unit: tuple[int, int]
) -> None:
    for model in (edsr, rdn):
        wanted = task(model, (700, 900), (2800, 3600), unit=unit)
        least = smallest_bound(wanted, 0)
        encoded = []
        for free in (least, 2 * least, 8 * least, 4096 * MIB):
            made = make_plan(wanted, free)
            assert made.peak_bytes <= free
            encoded.append(made.encoded_pixels(model.decoder))
        assert encoded == sorted(encoded, reverse=True)
        assert encoded[-1] == 700 * 900, "with enough memory the image is encoded in one piece"


def test_too_small_a_bound_names_the_smallest_that_works(edsr: DIINN) -> None:
    wanted = task(edsr, (700, 900), (2800, 3600))
    with pytest.raises(
        UpscaleError, match=r"within 301 MiB .* the smallest bound that works is (\d+) MiB"
    ) as caught:
        plan_within(wanted, 300 * MIB, 301 * MIB)
    least = int(str(caught.value).split("--max-memory ")[1].split("MiB")[0]) * MIB
    assert plan_within(wanted, 300 * MIB, least).peak_bytes <= least - 300 * MIB
    with pytest.raises(UpscaleError):
        # It is rounded up twice.
        plan_within(wanted, 300 * MIB, least - 32 * MIB - plan.SPREAD_BYTES)


def test_tiles_are_large_enough_for_the_convolution_library(edsr: DIINN) -> None:
    """Regions smaller than LEAST_PIXELS would be summed in another order."""
    for lr, workers in (((6, 5000), 1), ((30, 60), 8), ((20, 30), 4)):
        wanted = task(edsr, lr, (2 * lr[0], 2 * lr[1]), workers=workers)
        made = make_plan(wanted, smallest_bound(wanted, 0))
        for tile in made.tile_windows():
            rows, columns = made.region(edsr.decoder.lr_window(tile, made.lr, made.hr)).shape
            assert rows * columns >= min(LEAST_PIXELS, lr[0] * lr[1])


def test_a_tiny_window_is_encoded_with_more_around_it() -> None:
    assert with_halo((0, 2, 100, 104), (2, 3000), 5).shape[1] >= LEAST_PIXELS // 2
    assert with_halo((0, 2, 0, 4), (2, 30), 5) == (0, 2, 0, 30)
    assert with_halo((40, 60, 40, 60), (100, 100), 7) == (33, 67, 33, 67)


def test_several_processes_get_tiles_each(edsr: DIINN) -> None:
    assert make_plan(task(edsr), 4096 * MIB).tiles == (1, 1)
    made = make_plan(task(edsr, workers=3), 4096 * MIB)
    assert made.tiles[0] * made.tiles[1] >= 6


def test_an_encoder_of_unknown_radius_is_not_tiled() -> None:
    model = small_model()
    model.encoder = torch.nn.Conv2d(3, 32, 3, padding=1)
    wanted = task(model, (300, 300), (600, 600))
    assert make_plan(wanted, 4096 * MIB).tiles == (1, 1)
    with pytest.raises(UpscaleError):
        make_plan(wanted, 100 * MIB)
    model.encoder.receptive_radius = 1  # type: ignore[assignment]
    assert make_plan(replace(wanted), 100 * MIB).radius == 1


def test_a_plan_survives_json(edsr: DIINN) -> None:
    made = make_plan(task(edsr), 200 * MIB)
    assert Plan.from_json(made.as_json()) == made


def test_gigapixels_are_planned_quickly_and_within_64_bits(edsr: DIINN) -> None:
    made = make_plan(task(edsr, (100_000, 90_000), (800_000, 720_000), unit=(512, 512)), 2048 * MIB)
    tiles = made.tile_windows()
    assert tiles[-1].y1 == 800_000 and tiles[-1].x1 == 720_000
    assert made.encoded_pixels(edsr.decoder) < 2 * 100_000 * 90_000


def test_strips_keep_content_small(edsr: DIINN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "STRIP_BYTES", 8 * MIB)
    made = make_plan(task(edsr, (700, 900), (700, 900)), 2048 * MIB)
    columns = min(made.block[1], 900)
    assert made.strip * columns * 4096 <= 8 * MIB < 4 * (made.strip + 3) * (columns + 3) * 4096


@pytest.mark.parametrize("unit", [(1, 1), (512, 512)])
@pytest.mark.parametrize("free", [64, 80, 128, 512])
def test_strips_are_high_under_tight_bounds_too(
    edsr: DIINN, unit: tuple[int, int], free: int
) -> None:
    """A decode packs the weights anew, which takes as long as about a thousand queries."""
    wanted = task(edsr, (320, 400), (1280, 1600), unit=unit)
    made = make_plan(wanted, free * MIB)
    assert made.strip * min(made.block[1], made.tile_windows()[0].shape[1]) > 60_000
    assert made.strip <= made.block[0] and made.peak_bytes <= free * MIB


FAULTS = """
import resource, torch
from diinn_fast.host import resident_bytes
from diinn_fast.inference import memory

def left():  # bytes that ten tensors of 3 MiB leave behind when they are freed
    before = resident_bytes()
    tensors = [torch.ones(3 << 18) for _ in range(10)]
    del tensors
    return resident_bytes() - before

def faults():  # pages that the system had to provide for five tensors of 3 MiB, one after the other
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(3 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages = (3 << 20) // resource.getpagesize()
memory.give_back_freed_memory()
assert left() < 10 << 20  # a hole or two in the heap may be taken
assert faults() >= 2 * pages
with memory.freed_memory_kept():
    assert left() > 20 << 20
    assert faults() < pages
    held = resident_bytes()
assert resident_bytes() <= held - (20 << 20)
assert left() < 10 << 20
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_used_again_where_that_is_asked_for_and_else_given_back() -> None:
    """In a fresh process, whose heap has no holes."""
    subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, timeout=120, cwd=Path(__file__).parents[2]
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("600MiB", 600 << 20),
        ("1.5GiB", 3 << 29),
        ("2048 KiB", 2 << 20),
        ("3g", 3 << 30),
        ("0.5TB", 1 << 39),
        ("123", 123),
        (77, 77),
    ],
)
def test_memory_sizes(text: str | int, size: int) -> None:
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "1.5.2MiB", "3PiB"])
def test_memory_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UpscaleError, match="write it as 600MiB"):
        memory.parse_size(text)
