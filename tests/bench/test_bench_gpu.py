"""The GPU benchmark program, as far as it does not need a GPU: its plan, its processes, its files,
its verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_peers, gpu_promises, gpu_steps
from bench.cases import Case
from bench.gpu_peers import Peer
from bench.timing import summary
from diinn_fast import backends

SMALL = Case("decode", (4, 5), 2.5)


def options(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    values = {
        "device": "cpu",
        "dry": True,
        "full": False,
        "only": [],
        "photos": [],
        "run": "1",
        "out": str(tmp_path),
    }
    return argparse.Namespace(**{**values, **changed})


def test_the_plan_checks_every_mode_and_precision_before_it_measures(tmp_path: Path) -> None:
    stages = gpu.plan(options(tmp_path, device="cuda", dry=False), tmp_path)
    names = [[step.name for step in stage] for stage in stages]
    checks = {f"checks-mode{m}-{p}" for m in (1, 2, 3, 4) for p in gpu.PRECISIONS} | {
        "checks-surroundings",
        "checks-compiled",
    }
    assert names[0] == ["prepare"] and checks < set(names[1])
    # The longest first, and everything that is timed is compiled before.
    assert names[1][:2] == ["checks-compiled", "checks-surroundings"]
    assert names[1][2:5] == ["compile-float16", "compile-bfloat16", "compile-float32"]
    assert names[2:] == [
        [n] for n in ["tune", "large", "training", "memory", "photo", "model", "small", "compiled"]
    ]
    assert {s.name for stage in stages for s in stage if s.check} == checks | {"photo"}
    assert [
        [s.name for s in stage] for stage in gpu.plan(options(tmp_path, only=["tu"]), tmp_path)
    ] == [["tune"]]


def test_the_long_plan_uses_nvidias_tools_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names() -> set[str]:
        stages = gpu.plan(options(tmp_path, full=True), tmp_path)
        return {step.name for stage in stages for step in stage}

    monkeypatch.setattr(gpu, "program", lambda name: None)
    assert "more" in names() and not {
        n for n in names() if n.startswith("sanitizer") or n == "profile"
    }
    monkeypatch.setattr(gpu, "program", lambda name: f"/tools/{name}")
    assert {"sanitizer-memcheck", "sanitizer-racecheck", "sanitizer-initcheck", "profile"} < names()


def program(name: str, code: str, limit: float = 60) -> gpu.Step:
    return gpu.Step(name, (sys.executable, "-c", code), limit)


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    child = f"import time; time.sleep(2); open({str(marker)!r}, 'w')"
    hanging = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    steps = [program("good", "print('fine')"), program("bad", "print('oh'); raise SystemExit(3)")]
    steps += [program("hanging", hanging, limit=1.0)]
    begin = time.monotonic()
    # Limits under five seconds are what is left at the end of a run: let them through here.
    outcomes = {
        o.step.name: o
        for o in gpu.run_stage(steps, tmp_path, dict(os.environ), 2, begin + 60, least=0)
    }
    assert {name: o.state for name, o in outcomes.items()} == {
        "good": "ok",
        "bad": "failed",
        "hanging": "stopped",
    }
    assert (outcomes["good"].last, outcomes["bad"].last) == ("fine", "oh")
    time.sleep(2)
    assert not marker.exists()  # its children were stopped with it


def test_steps_for_which_no_time_is_left_are_said_not_to_have_run(tmp_path: Path) -> None:
    (outcome,) = gpu.run_stage([program("late", "")], tmp_path, {}, 1, time.monotonic() + 1)
    assert outcome.state == "not run" and not (tmp_path / "late.log").exists()


@pytest.mark.parametrize(
    ("state", "check", "code"), [("failed", True, 1), ("stopped", True, 1), ("failed", False, 0)]
)
def test_only_checks_decide_the_exit_code(
    state, check, code, tmp_path, monkeypatch, capsys
) -> None:
    step = gpu.Step("one", (), 1, check)
    monkeypatch.setattr(gpu, "plan", lambda *a: [[step]])
    monkeypatch.setattr(gpu, "run_stage", lambda *a: [gpu.Outcome(step, state, 1.0, "why")])
    assert gpu.main(["--device", "cpu", "--dry", "--out", str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert "why" in printed and "not measured" in printed
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["steps"][0]["state"] == state and stored["promises"]


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_all_peers_compute_the_same() -> None:
    peers = [
        Peer(f, p)
        for f in ("official", "eager", "conv", "cpu")
        for p in ("float32", "exact", "bfloat16")
    ]
    want, *others = (gpu_peers.build(SMALL, peer)() for peer in peers)
    assert isinstance(want, torch.Tensor) and want.shape == (1, 3, 10, 13)
    for peer, got in zip(peers[1:], others, strict=True):
        tolerance = 1e-5 if peer.dtype == torch.float32 else 0.02
        assert (got.float() - want).abs().max() < tolerance, peer.title  # type: ignore[attr-defined]


def test_all_peers_have_the_same_gradients() -> None:
    case = Case("training", (4, 5), 2, batch=2)
    want, *others = (
        gpu_peers.build(case, peer)()
        for peer in (Peer("official", "exact"), Peer("eager", "exact"))
    )
    for got in others:
        for a, b in zip(got, want, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_names_of_peers_are_those_that_tables_compare_with() -> None:
    names = [p.name for p in gpu_peers.peers_of(SMALL) + gpu_peers.compiled_of(SMALL)]
    assert {
        "official",
        "official-bfloat16",
        "eager",
        "conv",
        "official-compiled",
        "conv-compiled",
    } < set(names)
    assert len(set(names)) == len(names)
    assert Peer("triton", "float16", captured=True).name == "triton-float16-graph"


def test_a_run_merges_its_own_records_and_replaces_older_ones(tmp_path: Path, capsys) -> None:
    def book(run: str) -> gpu_steps.Book:
        return gpu_steps.Book(options(tmp_path, run=run))

    def peers(run: str) -> set[str]:
        return set(book(run).record("decode", SMALL)["peers"])

    gpu_steps.time_together(book("1"), "decode", SMALL, [Peer("official", "float32")])
    gpu_steps.time_together(book("1"), "decode", SMALL, [Peer("eager", "exact")])
    assert peers("1") == {"official", "eager-exact"} and peers("2") == set()
    gpu_steps.time_together(
        book("2"), "decode", SMALL, [Peer("conv", "exact"), Peer("nonsense", "float16")]
    )
    assert peers("2") == {"conv-exact"} and "official" not in peers("2")
    assert "unknown backend" in book("2").record("decode", SMALL)["left_out"]["nonsense-float16"]
    content = json.loads((tmp_path / "decode.json").read_text())
    assert (
        content["suite"] == "decode"
        and content["records"][0]["peers"]["conv-exact"]["fraction"]["torch.mm"] > 0
    )


def test_a_backend_that_its_self_check_refuses_is_not_timed_under_its_name(
    tmp_path, monkeypatch
) -> None:
    found = {("cpu", torch.float16): "they differ", ("cpu", torch.float32): None}
    monkeypatch.setattr(backends.load("eager"), "_checked", found, raising=False)
    book = gpu_steps.Book(options(tmp_path))
    gpu_steps.time_together(
        book, "decode", SMALL, [Peer("eager", "float16"), Peer("eager", "exact")]
    )
    record = book.record("decode", SMALL)
    assert set(record["peers"]) == {"eager-exact"} and "they differ" in record["left_out"]["eager"]
    with pytest.raises(RuntimeError, match="they differ"):
        gpu_steps.peak(SMALL, Peer("eager", "float16"), record)


def test_differences_count_levels_of_8_bit() -> None:
    want = torch.full((3, 10, 10), 100 / 255)
    got = want.clone()
    hr = want.clone()
    got[0, 0, :3] += 1.1 / 255
    got[1, 0, 0] += 2 / 255
    found = gpu_steps.differences(got, want, hr + 1 / 255)
    assert found["differ"] == pytest.approx(4 / 300) and found["by more"] == pytest.approx(1 / 300)
    assert found["largest"] == 2 and found["psnr change"] > 0


def test_promises_are_judged_by_our_best_16_bit_peer(tmp_path: Path) -> None:
    def entry(seconds: float) -> dict[str, Any]:
        return {"title": "", **summary([seconds]), "fraction": {"torch.mm": 0.05 / seconds}}

    times = {
        "official": 1.2,
        "official-bfloat16": 0.6,
        "official-compiled": 0.45,
        "eager": 0.25,
        "conv": 0.3,
    }
    times |= {"triton-float16": 0.1, "cuda-bfloat16": 0.08, "triton-exact": 0.01}
    record = {"name": "decode-512x512-x4", "peers": {k: entry(v) for k, v in times.items()}}
    (tmp_path / "decode.json").write_text(json.dumps({"run": "1", "records": [record]}))
    memory = [
        {"name": "decode-1024x1024-x8", "peers": {"triton-float16": {"extra": 4 << 30}}},
        {
            "name": "training-48x48-x4",
            "peers": {"official-bfloat16": {"extra": 80}, "cuda-float16": {"extra": 8}},
        },
    ]
    (tmp_path / "memory.json").write_text(json.dumps({"run": "1", "records": memory}))
    found = {p["what"]: p for p in gpu_promises.judge(tmp_path, "1")}
    first = [p["got"] for what, p in found.items() if what.startswith("decode-512x512-x4")]
    assert first == pytest.approx([0.05 / 0.08, 1.2 / 0.08, 0.45 / 0.08, 0.25 / 0.08])
    assert found["8192x8192 from 1024x1024: GiB beyond the output"]["met"] is False
    assert found["training step: part of the official's memory under autocast"][
        "got"
    ] == pytest.approx(0.1)
    assert found["model-rdn-48x48-x2: x official, its default"]["met"] is None
    assert all(p["got"] is None for p in gpu_promises.judge(tmp_path, "2"))
    assert "MISSED" in gpu_promises.line(found["8192x8192 from 1024x1024: GiB beyond the output"])
