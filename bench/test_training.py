"""A training step, forward and backward: of the decoder (batch 4 of 48x48 features, x4) and, with
``--full``, of the whole model with EDSR-baseline at batch 4 and 16. At 16 the official formulation
needs more than 20 GiB.
"""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.conftest import Report
from bench.timing import REPLAY

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def cases(full: bool) -> list[Case]:
    decoder = [Case("training", (48, 48), s, batch=4) for s in ((2, 3, 4) if full else (4,))]
    return [*decoder, *(whole_model() if full else [])]


def whole_model() -> list[Case]:
    return [Case("training", (48, 48), 4, batch=n, encoder="edsr-baseline") for n in (4, 16)]


def test_training(speed: Report, case: Case, peer: str) -> None:
    speed(case, peer)
