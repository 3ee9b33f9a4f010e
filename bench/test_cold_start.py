"""From nothing to a picture: a fresh process that imports, sets a decoder up and decodes 48x48
features at x2.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from bench import machine, peers
from bench.cases import Case
from bench.conftest import Board, replay, suite_of
from bench.timing import REPLAY, interleave, summary

pytestmark = pytest.mark.benchmark(timer=REPLAY)

TORCH_ONLY = "import torch"


def cases(full: bool) -> list[Case]:
    return [Case("decode", (48, 48), 2)]


def peer_names(case: Case, full: bool) -> list[str]:
    return [TORCH_ONLY, "official", "eager", *peers.fused(case.device)]


def program(case: Case, peer: str) -> str:
    """What a user's first lines would be."""
    if peer == TORCH_ONLY:
        return TORCH_ONLY
    lines = ["import torch", "from diinn_fast import ImplicitDecoder, reference"]
    lines += [
        f"decoder = ImplicitDecoder(64, mode={case.mode}).to({case.device!r}, torch.{case.dtype})"
    ]
    lines += [
        f"features = torch.rand(1, 64, {case.lr[0]}, {case.lr[1]}).to({case.device!r}, "
        f"torch.{case.dtype})"
    ]
    lines += ["with torch.inference_mode():"]
    if peer == "official":
        lines += [
            f"    out = reference.decode(decoder.state_dict(), features, {case.size}, {case.mode})"
        ]
    else:
        lines += [f"    out = decoder(features, {case.size}, backend={peer!r})"]
    return "\n".join([*lines, "out.sum().item()"])


def test_cold_start(
    board: Board, request: pytest.FixtureRequest, benchmark: Any, case: Case, peer: str
) -> None:
    record = board.record(suite := suite_of(request.node), case)
    record["title"] = "fresh process: import, set-up, first decode (48x48 to 96x96)"
    full = board.full
    if not record["peers"]:

        def start(peer: str) -> None:
            subprocess.run(
                [sys.executable, "-c", program(case, peer)], cwd=machine.ROOT, check=True
            )

        calls = {name: partial(start, name) for name in board.selected(suite, case)}
        samples = interleave(
            calls, lambda call: machine.seconds(call, "cpu"), *((20.0, 10) if full else (1.0, 3))
        )
        for name, values in samples.items():
            title = TORCH_ONLY if name == TORCH_ONLY else peers.title(name)
            record["peers"][name] = {"title": title, **summary(values), "samples": values}
    replay(benchmark, record["peers"][peer]["samples"])
