"""Steps of a GPU run as processes: each with a time limit, none beyond its parent's life, and a
backend that hung or died left out of everything later.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
GRACE = 3.0
"""Seconds that a step stopped at its limit has to say where it was."""


@dataclass(frozen=True)
class Step:
    """A command with a time limit (seconds).

    ``subject``: the backend, or variant of one, whose kernels it runs; "" if none of ours.
    ``check``: if it fails, so does the run. ``decides``: if it fails, its subject is left out of
    every later step; otherwise only if it hangs or dies. ``needs``: other subjects that must not be
    left out for it to be worth its time.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    subject: str = ""
    needs: tuple[str, ...] = ()
    check: bool = False
    decides: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    step: Step
    state: str  # ok, failed, died (by a signal), stopped (at its limit), left out, not run
    seconds: float = 0.0
    last: str = ""  # the last line that it printed, or why it did not run
    log: Path | None = None


class LeftOut:
    """Subjects that no step runs any more, and why: a file each, so that a later command into the
    same folder knows them too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "left_out"

    def add(self, subject: str, why: str) -> None:
        """Leave a subject out from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / subject).write_text(why + "\n")

    def why(self, subject: str) -> str | None:
        """None if it takes part."""
        path = self.folder / subject
        return path.read_text().strip() if path.is_file() else None

    def all(self) -> dict[str, str]:
        """What is left out, and why."""
        paths = sorted(self.folder.glob("*")) if self.folder.exists() else []
        return {path.name: path.read_text().strip() for path in paths}

    def clear(self) -> None:
        """Leave nothing out."""
        for name in self.all():
            (self.folder / name).unlink()


# -- processes that end with their parent ----------------------------------------------------------

_running: dict[subprocess.Popen[bytes], Step] = {}
_told: list[int] = []
"""Signals that told this process to end."""


def stop_all() -> None:
    """Kill every step that is still running, with its children."""
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader: children of a step that died may still hold the device.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _running.pop(process, None)


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Inside, steps are killed when this process is told to end, and when it leaves."""

    # It only notes the signal: an exception could come from within `subprocess`, which would keep
    # its lock for ever, or before it has said that a process was begun.
    def end(number: int, frame: FrameType | None) -> None:
        _told.append(number)

    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    before = {number: signal.signal(number, end) for number in numbers}
    atexit.register(stop_all)
    try:
        yield
    finally:
        stop_all()
        atexit.unregister(stop_all)
        for number, handler in before.items():
            signal.signal(number, handler)
        _end_if_told()


def _end_if_told() -> None:
    if _told:
        number = _told[0]
        _told.clear()
        raise SystemExit(128 + number)


# -- stages ----------------------------------------------------------------------------------------


def run_stage(
    steps: Sequence[Step],
    logs: Path,
    left_out: LeftOut,
    environment: Mapping[str, str],
    workers: int,
    end: float,
    least: float = 5.0,
) -> Iterator[Outcome]:
    """Run steps side by side, ``workers`` at a time, none beyond its limit or ``end``; yield them
    as they finish.

    A step that would have less than ``least`` seconds is not run, nor one whose subject is left
    out.
    """
    waiting = list(steps)
    begun: dict[subprocess.Popen[bytes], tuple[float, float]] = {}
    try:
        while waiting or begun:
            _end_if_told()
            while waiting and len(begun) < workers:
                step = waiting.pop(0)
                limit = min(step.limit, end - time.monotonic())
                if why := next(filter(None, map(left_out.why, (step.subject, *step.needs))), None):
                    yield Outcome(step, "left out", last=why)
                elif limit < least:
                    yield Outcome(step, "not run", last="no time was left")
                else:
                    begun[_start(step, logs, environment)] = time.monotonic(), limit
            for process, (begin, limit) in list(begun.items()):
                spent = time.monotonic() - begin
                if process.poll() is None and spent < limit:
                    continue
                del begun[process]
                outcome = _finish(process, spent, logs)
                exclude(outcome, left_out)
                yield outcome
            time.sleep(0.05)
    finally:
        for process in list(begun):
            _kill(process)


def _start(step: Step, logs: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (logs / f"{step.name}.log").open("w") as log:
        # A session of its own, so that children of the step can be killed with it.
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**environment, **step.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _running[process] = step
    return process


def _finish(process: subprocess.Popen[bytes], spent: float, logs: Path) -> Outcome:
    """What became of a step that ended or is at its limit; nothing of it runs on."""
    step = _running[process]
    if process.returncode is None:
        # Python's fault handler answers this signal with the place where every thread is.
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        state = "stopped"
    else:
        state = "ok" if process.returncode == 0 else "failed" if process.returncode > 0 else "died"
    _kill(process)
    log = logs / f"{step.name}.log"
    return Outcome(step, state, spent, last_line(log), log)


def exclude(outcome: Outcome, left_out: LeftOut) -> None:
    """Leave the step's subject out of all that follows if this outcome says that it is not safe."""
    step = outcome.step
    unsafe = outcome.state in ("died", "stopped") or (step.decides and outcome.state == "failed")
    if step.subject and unsafe:
        left_out.add(step.subject, f"{step.name} {outcome.state}: {outcome.last}")


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:100]


def tail(log: Path, lines: int = 30) -> str:
    """The end of a log, indented, to be shown when its step fails."""
    found = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join("    " + line[:160] for line in found)


def pack(folder: Path) -> Path:
    """All results as one file, ``results.tar`` in their folder; whole at every moment."""
    path = folder / "results.tar"
    partial = folder / "results.partial"
    with tarfile.open(partial, "w") as tar:
        for entry in sorted(folder.iterdir()):
            if entry not in (path, partial):
                tar.add(entry, entry.name)
    partial.replace(path)
    return path
