"""The GPU benchmark program, as far as it does not need a GPU: its plan, its processes, its files,
its verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_peers, gpu_photo, gpu_plan, gpu_promises, gpu_run, gpu_steps, machine
from bench.cases import Case
from bench.gpu_book import Book
from bench.gpu_peers import Peer
from bench.timing import summary
from diinn_fast import backends
from tests.helpers.faulty_backends import sitecustomize as faults

SMALL = Case("decode", (4, 5), 2.5)


def options(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    values = {
        "device": "cpu",
        "dry": True,
        "only": [],
        "photos": [],
        "run": "1",
        "out": str(tmp_path),
    }
    return argparse.Namespace(**{**values, **changed})


# -- the plan --------------------------------------------------------------------------------------


def names_of(part: str, tmp_path: Path, **changed: Any) -> list[list[str]]:
    stages = gpu_plan.plan(options(tmp_path, **changed), part, tmp_path)
    return [[step.name for step in stage] for stage in stages]


def test_the_first_part_looks_at_every_kernel_alone_before_all_tests(tmp_path: Path) -> None:
    prepare, *quick, checks = names_of("first", tmp_path, device="cuda", dry=False)
    assert {"prepare-cuda", "prepare-cuda-portable", "prepare-triton"} <= set(prepare)
    assert all(len(stage) == 1 for stage in quick)  # they are timed: nothing runs beside them
    assert {"quick-cuda", "quick-cuda-portable", "quick-triton"} < {name for (name,) in quick}
    # What the second part times is compiled beside the checks, the longest first.
    dtypes = ("float16", "bfloat16", "float32", "int8")
    assert checks[:4] == [f"compile-{dtype}" for dtype in dtypes]
    sixteen = {f"mode{m}-{p}" for m in (1, 2, 3, 4) for p in ("float16", "bfloat16")}
    everything = {f"mode{m}-{p}" for m in (1, 2, 3, 4) for p in gpu_plan.PRECISIONS}
    for subject, cases in {
        "triton": everything | {"surroundings"},
        "triton_int8": {c for c in everything if "tf32" not in c} | {"surroundings"},
        "cuda": sixteen | {"surroundings"},
        "cuda_int8": sixteen | {"surroundings"},
        "cuda-portable": sixteen,
    }.items():
        found = {n for n in checks if n.startswith(f"checks-{subject}-")}
        assert {f"checks-{subject}-{case}" for case in cases} <= found


def test_every_step_runs_the_kernels_of_one_backend_at_most(tmp_path: Path) -> None:
    for part in gpu_plan.PARTS:
        for stage in gpu_plan.plan(options(tmp_path), part, tmp_path):
            for step in stage:
                backend = step.subject.partition("-")[0]
                others = set(gpu_plan.fused()) - {backend}
                assert not others & set(step.command), step.name
                assert bool(backend) != step.name.endswith("-plain")


def test_the_second_part_measures_each_backend_in_a_process_of_its_own(tmp_path: Path) -> None:
    _, tune, *stages = names_of("second", tmp_path)
    assert tune == ["tune"] and all(len(stage) == 1 for stage in stages)
    kinds = ["large", "training", "memory", "photo", "model", "small"]
    none = {("photo", "plain"), ("training", "triton_int8"), ("training", "cuda_int8")}
    expected = [
        f"{kind}-{who}"
        for kind in kinds
        for who in ("plain", *gpu_plan.fused())
        if (kind, who) not in none
    ]
    assert [name for (name,) in stages] == expected


def test_nvidias_tools_look_at_every_kernel_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_plan, "program", lambda name: None)
    assert len(names_of("tools", tmp_path)) == 1
    monkeypatch.setattr(gpu_plan, "program", lambda name: f"/tools/{name}")
    found = {name for stage in names_of("tools", tmp_path) for name in stage}
    expected = {"cuda", "cuda-portable", "triton", "triton-ptxas"}
    assert {f"sanitizer-memcheck-{name}" for name in expected} < found
    assert {"profile-cuda", "profile-triton"} < found


def test_steps_can_be_chosen_by_how_their_names_begin(tmp_path: Path) -> None:
    assert names_of("second", tmp_path, only=["tu"]) == [["tune"]]


# -- processes -------------------------------------------------------------------------------------


def program(name: str, code: str, limit: float = 60, **settings: Any) -> gpu_run.Step:
    return gpu_run.Step(name, (sys.executable, "-c", code), limit, **settings)


def run(steps: list[gpu_run.Step], folder: Path, end: float = 60) -> dict[str, gpu_run.Outcome]:
    """Limits under five seconds are what is left at the end of a run: they are let through here."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    left_out = gpu_run.LeftOut(folder)
    end += time.monotonic()
    found = gpu_run.run_stage(steps, folder, left_out, environment, 2, end, least=0)
    return {outcome.step.name: outcome for outcome in found}


@pytest.mark.long
def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    child = f"import time; time.sleep(2); open({str(marker)!r}, 'w')"
    hanging = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    steps = [program("good", "print('fine')"), program("bad", "print('oh'); raise SystemExit(3)")]
    steps += [program("hanging", hanging, limit=1.0)]
    steps += [program("dying", "import os; os.abort()")]
    outcomes = run(steps, tmp_path)
    states = {"good": "ok", "bad": "failed", "hanging": "stopped", "dying": "died"}
    assert {name: o.state for name, o in outcomes.items()} == states
    assert (outcomes["good"].last, outcomes["bad"].last) == ("fine", "oh")
    time.sleep(2)
    assert not marker.exists()  # its children were stopped with it


def test_a_stopped_step_has_said_where_it_was(tmp_path: Path) -> None:
    code = "import time\ndef deep_inside():\n    time.sleep(60)\ndeep_inside()"
    # On a busy machine Python alone may take seconds to get there.
    outcome = run([program("hanging", code, limit=5.0)], tmp_path)["hanging"]
    assert outcome.state == "stopped"
    assert "in deep_inside" in gpu.describe(outcome)


def test_a_subject_that_hung_or_died_is_left_out_of_what_follows(tmp_path: Path) -> None:
    steps = [
        program("hangs", "import time; time.sleep(60)", 1.0, subject="a"),
        program("dies", "import os; os.abort()", subject="b"),
        program("misses a tolerance", "raise SystemExit(1)", subject="c"),
        program("is wrong", "raise SystemExit(1)", subject="d", decides=True),
    ]
    run(steps, tmp_path)
    later = [program(subject, "", subject=subject) for subject in "abcd"]
    later.append(program("builds on a", "", subject="a-tuned", needs=("a",)))
    outcomes = run(later, tmp_path)
    states = {"a": "left out", "b": "left out", "c": "ok", "d": "left out"}
    assert {n: o.state for n, o in outcomes.items()} == {**states, "builds on a": "left out"}
    assert outcomes["d"].last.startswith("is wrong failed")
    left_out = gpu_run.LeftOut(tmp_path)
    assert set(left_out.all()) == {"a", "b", "d"}
    left_out.clear()
    assert run(later, tmp_path)["a"].state == "ok"


def test_steps_for_which_no_time_is_left_are_said_not_to_have_run(tmp_path: Path) -> None:
    left_out = gpu_run.LeftOut(tmp_path)
    soon = time.monotonic() + 1
    (outcome,) = gpu_run.run_stage([program("late", "")], tmp_path, left_out, {}, 1, soon)
    assert outcome.state == "not run" and not (tmp_path / "late.log").exists()


PARENT = """
import os, subprocess, sys
from pathlib import Path
from bench import gpu_run

class Popen(subprocess.Popen):
    "Sends a signal to this process while its lock is held."

    def poll(self):
        lock = self._waitpid_lock
        if NUMBER and lock.acquire(False):
            lock.release()
            self._waitpid_lock = Lock(lock)
        return super().poll()

class Lock:
    def __init__(self, lock):
        self.lock = lock

    def acquire(self, *arguments):
        got = self.lock.acquire(*arguments)
        os.kill(os.getpid(), NUMBER)
        return got

    def release(self):
        self.lock.release()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()

subprocess.Popen = Popen
FOLDER = Path(FOLDER)
step = gpu_run.Step("long", (sys.executable, "-c", STEP), 60)
with gpu_run.ending_with_parent():
    list(gpu_run.run_stage([step], FOLDER, gpu_run.LeftOut(FOLDER), {}, 1, float("inf")))
"""


def begin(folder: Path, within: int = 0) -> subprocess.Popen[bytes]:
    """A run with a step of three seconds, which then writes ``late``. It sends itself the signal
    ``within`` from inside `subprocess`.
    """
    ready, late = str(folder / "ready"), str(folder / "late")
    step = f"import time; open({ready!r}, 'w'); time.sleep(3); open({late!r}, 'w')"
    values = f"NUMBER, FOLDER, STEP = {int(within)}, {str(folder)!r}, {step!r}"
    return subprocess.Popen([sys.executable, "-c", values + PARENT], cwd=gpu_run.ROOT)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_steps_end_with_the_run(number: signal.Signals, tmp_path: Path) -> None:
    process = begin(tmp_path)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    time.sleep(3)
    assert not (tmp_path / "late").exists()


@pytest.mark.long
def test_a_signal_that_comes_while_a_step_is_looked_at_ends_the_run(tmp_path: Path) -> None:
    process = begin(tmp_path, within=signal.SIGTERM)
    try:
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_all_results_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "left_out").write_text("one")
    (tmp_path / "decode.json").write_text("two")
    for _ in range(2):  # again: without itself
        with tarfile.open(gpu_run.pack(tmp_path)) as tar:
            assert set(tar.getnames()) == {"run", "run/left_out", "decode.json"}


# -- the whole -------------------------------------------------------------------------------------


@pytest.fixture
def faulty_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and in those that it starts."""
    folder = str(Path(faults.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(backends, "NAMES", (*faults.NAMES, "eager"))
    for name, module in faults.install().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.long
def test_rehearsal_each_faulty_backend_costs_only_itself(
    faulty_backends: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The program itself, on the CPU, with a backend that is wrong, one that ends its process and
    one that hangs.
    """

    def hurried(options: argparse.Namespace, part: str, out: Path) -> list[list[gpu_run.Step]]:
        def limit(step: gpu_run.Step) -> float:
            return 10.0 if step.name == "quick-hangs" else step.limit

        stages = gpu_plan.plan(options, part, out)
        return [[replace(step, limit=limit(step)) for step in stage] for stage in stages]

    monkeypatch.setattr(gpu, "plan", hurried)
    common = ["--device", "cpu", "--dry", "--out", str(tmp_path)]
    first = gpu.main([*common, "--first", "--only", "prepare", "quick"])
    printed = capsys.readouterr().out
    later = [f"large-{name}" for name in faults.NAMES if name != "sound"]
    second = gpu.main([*common, "--second", "--only", *later])
    printed += capsys.readouterr().out

    def state(step: str) -> str:
        lines = (line for line in printed.splitlines() if f" {step} " in line)
        return next(lines).partition(step)[0].strip()

    assert {name: state(f"prepare-{name}") for name in faults.NAMES} == {
        "sound": "ok",
        "wrong": "failed",
        "crashes": "died",
        "hangs": "ok",
    }
    quick = {"sound": "ok", "wrong": "left out", "crashes": "left out", "hangs": "stopped"}
    assert {name: state(f"quick-{name}") for name in faults.NAMES} == quick
    assert {state(name) for name in later} == {"left out"}
    assert (first, second) == (1, 0)  # the first command's checks failed, the second had none
    assert set(json.loads((tmp_path / "run" / "quick.json").read_text())) == {"sound"}
    assert "is above" in printed


@pytest.mark.parametrize(
    ("state", "check", "code"), [("failed", True, 1), ("stopped", True, 1), ("failed", False, 0)]
)
def test_only_checks_decide_the_exit_code(
    state: str,
    check: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = gpu_run.Step("one", (), 1, check=check)
    monkeypatch.setattr(gpu, "plan", lambda *a: [[step]])
    monkeypatch.setattr(gpu, "run_stage", lambda *a: [gpu_run.Outcome(step, state, 1.0, "why")])
    arguments = ["--device", "cpu", "--dry", "--first", "--out", str(tmp_path)]
    assert gpu.main(arguments) == code
    printed = capsys.readouterr().out
    assert "why" in printed and "not measured" in printed
    (path,) = (tmp_path / "run").glob("summary-*.json")
    stored = json.loads(path.read_text())
    assert stored["steps"][0]["state"] == state and stored["promises"]
    assert (tmp_path / "results.tar").exists()


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_commit_can_be_named_where_there_is_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIINN_FAST_COMMIT", "0123456789ab")
    assert machine.facts("cpu")["commit"] == "0123456789ab"


# -- peers and records -----------------------------------------------------------------------------


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
        assert (got.float() - want).abs().max() < tolerance, peer.title


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
    model = Case("model", (4, 5), 2.5, encoder="rdn")
    plain = gpu_peers.peers_of(SMALL) + gpu_peers.compiled_of(SMALL)
    names = [p.name for p in plain + gpu_peers.peers_of(SMALL, "cpu")]
    assert {"official", "official-bfloat16", "eager", "conv"} < set(names)
    assert {"official-compiled", "conv-compiled", "cpu-exact"} < set(names)
    assert len(set(names)) == len(names)
    assert Peer("triton", "float16", captured=True).name == "triton-float16-graph"
    assert "conv" not in [p.name for p in gpu_peers.peers_of(model)]


@pytest.mark.long
def test_every_peer_is_written_at_once_and_merged_with_earlier_runs(tmp_path: Path) -> None:
    def book(run: str) -> Book:
        return Book(options(tmp_path, run=run))

    def runs() -> dict[str, str]:
        peers = book("").record("decode", SMALL)["peers"]
        return {name: entry["run"] for name, entry in peers.items()}

    def measure(run: str, form: str) -> str | None:
        return gpu_steps.time_peer(book(run), "decode", SMALL, Peer(form, "exact"))

    assert measure("1", "eager") is None and runs() == {"eager-exact": "1"}
    assert measure("1", "conv") is None
    assert measure("2", "conv") is None
    assert runs() == {"eager-exact": "1", "conv-exact": "2"}
    assert "unknown backend" in str(measure("2", "nonsense"))
    assert "unknown backend" in book("3").record("decode", SMALL)["left_out"]["nonsense-exact"]
    content = json.loads((tmp_path / "decode.json").read_text())
    (record,) = content["records"]
    assert content["suite"] == "decode" and record["rates"]
    assert record["peers"]["conv-exact"]["fraction"]["torch.mm"] > 0


def test_records_of_another_device_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Book(options(tmp_path))
    book.add("decode", SMALL, "official", {})
    monkeypatch.setattr(machine, "device_name", lambda device: "another")
    with pytest.raises(SystemExit, match="choose another --out"):
        book.record("decode", SMALL)


def test_a_backend_that_its_self_check_refuses_is_not_timed_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {("cpu", torch.float16): "they differ", ("cpu", torch.float32): None}
    monkeypatch.setattr(backends.load("eager"), "_checked", found, raising=False)
    book = Book(options(tmp_path))
    for precision in ("float16", "exact"):
        gpu_steps.time_peer(book, "decode", SMALL, Peer("eager", precision))
    record = book.record("decode", SMALL)
    assert set(record["peers"]) == {"eager-exact"} and "they differ" in record["left_out"]["eager"]
    with pytest.raises(RuntimeError, match="they differ"):
        gpu_steps.peak(book, SMALL, Peer("eager", "float16"))


def test_differences_count_levels_of_8_bit() -> None:
    want = torch.full((3, 10, 10), 100 / 255)
    got = want.clone()
    hr = want.clone()
    got[0, 0, :3] += 1.1 / 255
    got[1, 0, 0] += 2 / 255
    found = gpu_photo.differences(got, want, hr + 1 / 255)
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
    times |= {"triton_int8-float16": 0.05, "cuda_int8-float16": 0.06}
    record = {"name": "decode-512x512-x4", "peers": {k: entry(v) for k, v in times.items()}}
    (tmp_path / "decode.json").write_text(json.dumps({"records": [record]}))
    memory = [
        {"name": "decode-1024x1024-x8", "peers": {"triton-float16": {"extra": 4 << 30}}},
        {
            "name": "training-48x48-x4",
            "peers": {"official-bfloat16": {"extra": 80}, "cuda-float16": {"extra": 8}},
        },
    ]
    (tmp_path / "memory.json").write_text(json.dumps({"records": memory}))
    found = {p["what"]: p for p in gpu_promises.judge(tmp_path)}
    first = [p["got"] for what, p in found.items() if what.startswith("decode-512x512-x4")]
    assert first == pytest.approx([0.05 / 0.08, 1.2 / 0.08, 0.45 / 0.08, 0.25 / 0.08, 0.08 / 0.05])
    assert found["8192x8192 from 1024x1024: GiB beyond the output"]["met"] is False
    assert found["training step: part of the official's memory under autocast"][
        "got"
    ] == pytest.approx(0.1)
    assert found["model-rdn-48x48-x2: x official, its default"]["met"] is None
    assert all(p["got"] is None for p in gpu_promises.judge(tmp_path / "none"))
    assert "MISSED" in gpu_promises.line(found["8192x8192 from 1024x1024: GiB beyond the output"])
