"""Peak memory beyond inputs and outputs, each peer in a process of its own."""

from __future__ import annotations

from bench import peers
from bench.cases import Case
from bench.conftest import Report
from bench.test_training import whole_model


def cases(full: bool) -> list[Case]:
    sizes = [((48, 48), 4), ((90, 160), 4)]
    if full:
        sizes += [((48, 48), s) for s in (2, 8, 12)] + [
            ((180, 320), 4),
            ((180, 320), 8),
            ((360, 640), 4),
        ]
    found = [*(Case("decode", lr, s) for lr, s in sizes), Case("training", (48, 48), 4, batch=4)]
    return [*found, *(whole_model() if full else [])]


def peer_names(case: Case, full: bool) -> list[str]:
    return [peer for peer in peers.names(case, full) if peer != "bicubic"]


def test_memory(peak: Report, case: Case, peer: str) -> None:
    peak(case, peer)
