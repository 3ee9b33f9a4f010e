"""A photograph from file to file, with the bundled model's encoder and decoder."""

from __future__ import annotations

import pytest

from bench import photo
from bench.cases import Case
from bench.conftest import Report
from bench.timing import REPLAY

pytestmark = pytest.mark.benchmark(timer=REPLAY)

MEGAPIXEL = (816, 1224)


def cases(full: bool) -> list[Case]:
    sizes = [(96, 144), MEGAPIXEL] if full else [(96, 144)]
    return [Case("photo", lr, s, encoder="edsr-baseline") for lr in sizes for s in (2, 4)]


def peer_names(case: Case, full: bool) -> list[str]:
    found = photo.names(case)
    if case.lr != MEGAPIXEL:
        return found
    return [name for name in found if name not in ("official", "liif")]  # a quarter of an hour each


def test_photo(speed: Report, case: Case, peer: str) -> None:
    speed(case, peer)
