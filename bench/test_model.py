"""The whole model, LR image to RGB: the paper's runtime table (48x48 input), with both encoders."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.conftest import Report
from bench.timing import REPLAY

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def cases(full: bool) -> list[Case]:
    found = [
        Case("model", (48, 48), s, encoder=e)
        for e in ("rdn", "edsr-baseline")
        for s in (2, 3, 4, 6, 8)
    ]
    return found + (
        [Case("model", (128, 128), 4, encoder=e) for e in ("rdn", "edsr-baseline")] if full else []
    )


def test_model(speed: Report, case: Case, peer: str) -> None:
    speed(case, peer)
