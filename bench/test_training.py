"""A training step of the decoder: batch 4 of 48x48 features, x4, forward and backward."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.conftest import Report
from bench.timing import REPLAY

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def cases(full: bool) -> list[Case]:
    return [Case("training", (48, 48), s, batch=4) for s in ((2, 3, 4) if full else (4,))]


def test_training(speed: Report, case: Case, peer: str) -> None:
    speed(case, peer)
