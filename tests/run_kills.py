"""Kill, race and starve renders: nothing is lost, and nothing broken or mixed bears a final name.

    python -m tests.run_kills --kills 200 --races 100 --disks 50

Half of the kills come at a random moment, half before or after a random call to the system that
makes, writes, names or removes a file. Each job is a process of its own, forked from one that has
loaded everything and computed nothing. A killed or starved job must leave no output or a whole one,
and ``--resume`` must end with the very pixels of an undisturbed run. Of two jobs at once, the
output must be that of one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diinn_fast.cli import main as command
from diinn_fast.inference import engine, rendering
from diinn_fast.inference.plan import Plan, Task
from diinn_fast.inference.rendering import planning, writer
from diinn_fast.inference.sources import open_source
from tests.helpers.small_models import small_model

NAMES = ("out.png", "out.tif", "out.npy", "out.zarr", "out.ome.zarr")
PICTURES = ("a.npy", "b.npy")
SIZE = (24, 30)
MODEL = small_model()


def many_tiles(task: Task, base: int, bound: int) -> Plan:
    """Six tiles of several blocks each, so that there is much to interrupt."""
    return Plan(task.lr, task.hr, task.unit, task.radius or 0, (2, 3), (12, 12), 8, 1 << 16, 0)


CALLS = (
    *("open", "write", "pwrite", "fsync", "ftruncate", "mkdir"),
    *("link", "replace", "rename", "unlink", "rmdir"),
)
"""Functions of `os` at which a job is killed."""


def start(
    folder: Path,
    picture: str,
    out: str,
    *options: str,
    bytes_left: int = -1,
    dies_at: int = 0,
    counted: Path | None = None,
) -> int:
    """A job in a process of its own; its number.

    With ``bytes_left``, the disk is then full. With ``dies_at`` n it kills itself before its nth
    call of `CALLS`, with -n behind it. ``counted``: a file for the number of its calls.
    """
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        planning.plan_within = many_tiles
        planning.measure_rates = lambda *_: (1e-6, 1e-6)  # type: ignore[assignment]
        engine.load_weights = lambda *_: MODEL
        writer.FLUSH_SECONDS = 0.0
        if bytes_left >= 0:
            fill_disk(bytes_left)
        calls = count_calls(dies_at)
        words = ["--scale", "2", "--device", "cpu", "--max-memory", "4GiB"]
        code = command(["upscale", picture, out, *words, *options])
        if counted is not None:
            counted.write_text(str(calls[0]))
    finally:
        os._exit(code)


def fill_disk(bytes_left: int) -> None:
    """Let writes fail with ENOSPC once so many bytes are written."""
    left = [bytes_left]
    real = os.pwrite, os.write

    def limited(write: Callable[[], int], data: Any) -> int:
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return write()

    os.pwrite = lambda file, data, place: limited(lambda: real[0](file, data, place), data)
    os.write = lambda file, data: limited(lambda: real[1](file, data), data)


def count_calls(dies_at: int) -> list[int]:
    """Count calls of `CALLS`, and die at one of them."""
    count = [0]

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **named)
            if count[0] == -dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    return count


def end(process: int) -> int:
    """Exit code of a job; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def pixels(path: Path) -> str:
    """Digest of all samples of an output; raises if it cannot be read."""
    source = open_source(path)
    rgb, _ = source.read(0, source.height, 0, source.width)
    source.close()
    return hashlib.sha256(rgb.numpy().tobytes()).hexdigest()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Trial:
    """A folder with two pictures, and what their outputs are."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.names = names
        self.faults: list[str] = []
        for n, name in enumerate(PICTURES):
            samples = np.random.default_rng(n).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
            np.save(folder / name, samples)
        self.right: dict[tuple[str, str], str] = {}
        self.calls: dict[str, int] = {}
        times = []
        for out in names:
            for picture in PICTURES:
                began = time.monotonic()
                if end(start(folder, picture, out, counted=folder / "calls")) != 0:
                    raise SystemExit(f"an undisturbed job into {out} fails")
                times.append(time.monotonic() - began)
                self.calls[out] = int((folder / "calls").read_text())
                self.right[picture, out] = pixels(folder / out)
                remove(folder / out)
        self.seconds = sorted(times)[len(times) // 2]

    def fault(self, said: str) -> None:
        """Say and keep what must not be."""
        self.faults.append(said)
        print(f"  {said}", flush=True)

    def check(self, out: str, allowed: list[str], what: str) -> None:
        """The output is that of one of the pictures, or not there."""
        path = self.folder / out
        if not path.exists():
            return
        try:
            found = pixels(path)
        except Exception as error:
            self.fault(f"{what}: {out} is broken ({error})")
            return
        if found not in [self.right[picture, out] for picture in allowed]:
            self.fault(f"{what}: {out} has other pixels")

    def finish(self, out: str, allowed: list[str], what: str) -> None:
        """Resuming ends with the output of one of the pictures, and with nothing beside it."""
        part = rendering.part_of(self.folder / out)
        codes = []
        for picture in allowed:
            codes.append(end(start(self.folder, picture, out, "--resume")))
            if codes[-1] == 0:
                break
        if 0 not in codes or part.exists() or not (self.folder / out).exists():
            self.fault(f"{what}: resuming {out} ends with {codes}, part {part.exists()}")
        self.check(out, allowed, f"{what}, resumed")
        remove(self.folder / out)
        remove(part)

    def kill(self, chance: random.Random) -> None:
        """Kill a job at a random moment, or at a random call."""
        out = chance.choice(self.names)
        how = "killed"
        if chance.random() < 0.5:
            process = start(self.folder, "a.npy", out)
            time.sleep(chance.uniform(0, 1.1 * self.seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        else:
            call = chance.choice([1, -1]) * chance.randint(1, self.calls[out])
            how = f"killed at call {call}"
            process = start(self.folder, "a.npy", out, dies_at=call)
        end(process)
        self.check(out, ["a.npy"], how)
        self.finish(out, ["a.npy"], how)

    def race(self, chance: random.Random) -> None:
        """Two jobs for one output, of one picture or of two."""
        out = chance.choice(self.names)
        second = chance.choice(PICTURES)
        option = chance.choice([[], ["--resume"], ["--overwrite"]])
        first = start(self.folder, "a.npy", out)
        time.sleep(chance.uniform(0, self.seconds))
        other = start(self.folder, second, out, *option)
        codes = [end(first), end(other)]
        both = list(dict.fromkeys(["a.npy", second]))
        if 0 not in codes:
            self.fault(f"race: both end with {codes}")
        self.check(out, both, "race")
        winner = [p for p in both if self._is_of(out, p)] or both
        self.finish(out, winner, "race")

    def starve(self, chance: random.Random) -> None:
        """A disk that is full at a random moment."""
        out = chance.choice(self.names)
        process = start(self.folder, "a.npy", out, bytes_left=chance.randrange(12_000))
        code = end(process)
        if code not in (0, 1, 2):
            self.fault(f"full disk: {out} ends with {code}")
        self.check(out, ["a.npy"], "full disk")
        self.finish(out, ["a.npy"], "full disk")

    def _is_of(self, out: str, picture: str) -> bool:
        try:
            return pixels(self.folder / out) == self.right[picture, out]
        except Exception:
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, count in (("kills", 200), ("races", 100), ("disks", 50)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--names", nargs="+", default=NAMES, help="of outputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="diinn-kills-") as folder:
        trial = Trial(Path(folder), options.names)
        print(f"an undisturbed job takes {trial.seconds:.1f} s, calls {trial.calls}", flush=True)
        for count, name in ((options.kills, "kill"), (options.races, "race")):
            for _ in range(count):
                getattr(trial, name)(chance)
            print(f"{name}: {count} tried, {len(trial.faults)} faults", flush=True)
        for _ in range(options.disks):
            trial.starve(chance)
        print(f"full disk: {options.disks} tried, {len(trial.faults)} faults")
    return 1 if trial.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
