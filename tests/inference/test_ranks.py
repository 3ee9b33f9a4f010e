"""Several processes, as torchrun starts them: the same file, and what is left when one dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.inference import Upscaler, rendering
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.rendering import group
from diinn_fast.inference.rendering.execute import begin
from diinn_fast.inference.rendering.journal import Journal, read_journals
from diinn_fast.inference.rendering.partial import PartialOutput
from tests.helpers.small_models import picture, small_model

PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.helpers.small_models import small_model
from diinn_fast.inference import Upscaler, rendering
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.rendering import group, loop, planning, writer
writer.FLUSH_SECONDS, group.SILENCE = 0.0, 5.0
planning.plan_within = lambda t, base, bound: Plan(
    t.lr, t.hr, t.unit, t.radius, {tiles}, {block}, 8, 1 << 16, 0
)
upscaler = Upscaler(small_model(), device="cpu")
spec = rendering.prepare(upscaler, sys.argv[1], sys.argv[2], scale=12.0)
rank = int(__import__("os").environ["RANK"])
died = Path(__file__).with_name("died")
real = loop.render_block
def block(*arguments):
    if rank == {dies}:
        died.touch()
        __import__("os")._exit(9)
    time.sleep(0.05)  # so that no process is done before the others have begun
    result = real(*arguments)
    while {dies} >= 0 and not died.exists():
        time.sleep(0.01)  # or nothing might be left for the process that is to die
    return result
loop.render_block = block
rendering.run(spec, resume=True)
"""


def torchrun(
    tmp_path: Path,
    out: Path,
    count: int,
    tiles: tuple[int, int] = (4, 4),
    block: tuple[int, int] = (40, 60),
    dies: int = -1,
) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    root = Path(__file__).resolve().parents[2]
    program.write_text(PROGRAM.format(root=str(root), tiles=tiles, block=block, dies=dies))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(count), str(program),
         str(tmp_path / "in.npy"), str(out)],
        capture_output=True, text=True, timeout=400, check=False, env={**os.environ,
        "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    result: np.ndarray = Upscaler(small_model(), device="cpu")(picture(40, 60), scale=12.0)
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "in.npy", picture(40, 60))
    return tmp_path / "in.npy"


@pytest.mark.long
def test_three_processes_make_the_file_of_one(
    whole: np.ndarray, source: Path, tmp_path: Path
) -> None:
    done = torchrun(tmp_path, tmp_path / "out.npy", 3)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), whole)
    assert not (tmp_path / "out.npy.part").exists()


@pytest.mark.long
def test_a_dead_process_leaves_what_others_resume(
    whole: np.ndarray, source: Path, tmp_path: Path
) -> None:
    """Process 1 of 2 dies; then four processes, into the chunks of a Zarr, each of which one
    process owns.
    """
    import zarr

    out = tmp_path / "out.zarr"
    done = torchrun(tmp_path, out, 2, tiles=(1, 2), block=(512, 512), dies=1)
    assert done.returncode != 0
    assert "keeps what is done: run it again with --resume" in done.stderr
    state = read_journals(Path(f"{out}.part"))
    assert state is not None and not out.exists()
    done = torchrun(tmp_path, out, 4, tiles=(1, 2), block=(512, 512))
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.asarray(zarr.open(out, mode="r")[:]), whole)


class Store(dict[str, Any]):
    """What the real store does, in this process."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def get(self, key: str) -> bytes:  # type: ignore[override]
        if key not in self:
            raise RuntimeError("wait timeout")
        result: bytes = self[key]
        return result

    def add(self, key: str, n: int) -> int:
        self[key] = self.__dict__.setdefault(key, 0) + n
        self.__dict__[key] = self[key]
        return int(self[key])

    def check(self, keys: list[str]) -> bool:
        return all(k in self for k in keys)

    def set_timeout(self, limit: Any) -> None:
        pass


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[group.TorchrunGroup]]:
    """Both processes' ends of one store."""
    store = Store()
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(
            torch.distributed, "rendezvous", lambda *_, rank=rank, **__: iter([(store, rank, 2)])
        )
        found.append(group.TorchrunGroup())
    yield found
    for end in found:
        end.close()


def test_items_are_shared_once_each(two: list[group.TorchrunGroup]) -> None:
    first, second = (end.share(list(range(7))) for end in two)
    taken = [next(first), next(second), next(second), *first, *second]
    assert sorted(taken) == list(range(7))


def test_silence_of_a_process_is_noticed(
    two: list[group.TorchrunGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "SILENCE", 0.2)
    two[1].close()
    with pytest.raises(UpscaleError, match="process 1 has died: run it again with --resume"):
        two[0].finish()


def test_the_first_process_waits_for_the_others(two: list[group.TorchrunGroup]) -> None:
    two[1].finish()
    two[0].finish()


def test_what_the_first_refuses_all_refuse(
    two: list[group.TorchrunGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler = Upscaler(small_model(), device="cpu")
    spec = rendering.prepare(upscaler, picture(), tmp_path / "nowhere" / "out.npy", scale=2)
    part = PartialOutput(spec.out, spec.layout.job)
    for end, error in zip(two, (ImageError, UpscaleError), strict=True):
        with pytest.raises(error, match="is not a folder"):
            begin(spec, part, end, resume=False, overwrite=False)


def test_a_process_that_hears_nothing_says_so(two: list[group.TorchrunGroup]) -> None:
    with pytest.raises(UpscaleError, match="heard nothing from process 0"):
        two[1].receive()


def test_a_process_that_joins_late_counts_the_tiles_as_the_others_do(tmp_path: Path) -> None:
    """What has been done since the first process spoke does not shift the tiles' numbers."""
    plan = Plan((8, 8), (16, 16), (1, 1), 0, (2, 2), (8, 8), 8, 1 << 16, 0)
    message = {"job": "one", "plan": plan.as_json(), "done": [[0, 0]]}
    journal = Journal(tmp_path, 0, "one", plan)
    journal.add([(1, 0)])
    journal.close()
    part: Any = SimpleNamespace(folder=tmp_path, claim=lambda rank: None)
    first: Any = SimpleNamespace(rank=1, receive=lambda: json.loads(json.dumps(message)))
    spec: Any = SimpleNamespace(layout=SimpleNamespace(job="one"))
    state = begin(spec, part, first, resume=True, overwrite=False)
    assert state is not None and state.done == {(0, 0)}
