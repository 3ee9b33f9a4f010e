"""Decoder alone, features to RGB, by scale and LR size. The content products are part of it."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.conftest import Report
from bench.timing import REPLAY

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def cases(full: bool) -> list[Case]:
    scales = [1.5, 2, 3, 4, 6, 8, 12]
    sizes = [((48, 48), s) for s in scales] + [((90, 160), 4), ((180, 320), 4), ((180, 320), 8)]
    if full:
        sizes += [((90, 160), s) for s in scales if s != 4]
        sizes += [((180, 320), s) for s in scales if s not in (4, 8)]
    return [Case("decode", lr, scale) for lr, scale in sizes]


def test_decode(speed: Report, case: Case, peer: str) -> None:
    speed(case, peer)
