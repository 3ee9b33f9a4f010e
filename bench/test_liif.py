"""Decoders that DIINN is compared with: LIIF, as its authors write it and projected, and
Meta-SR.
"""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.conftest import Report
from bench.peers import fused
from bench.timing import REPLAY

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def cases(full: bool) -> list[Case]:
    found = [Case("decode", (48, 48), s) for s in ((2, 3, 4, 6, 8) if full else (2, 4))]
    return [*found, Case("training", (48, 48), 2, batch=4)]


def peer_names(case: Case, full: bool) -> list[str]:
    decoders = ["liif-unfolded", "liif"]
    if case.kind == "decode":
        decoders.append("metasr")
    return [*decoders, "eager", *fused(case.device)]


def test_liif(speed: Report, case: Case, peer: str) -> None:
    speed(case, peer)
