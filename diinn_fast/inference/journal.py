"""What is done of a render, in OUT.part: one file per process, one JSON document per line.

The first line says which job and which plan; every further one lists blocks whose samples are on
the disk. A process may be killed at any moment: the last line may be torn, and then it does not
count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diinn_fast.files import sync_folder
from diinn_fast.inference.plan import Plan

Block = tuple[int, int]
"""Number of a tile, number of a block in it."""


@dataclass
class State:
    """What the journals of a folder say."""

    job: str
    plan: Plan
    done: set[Block]


def read_journals(part: Path) -> State | None:
    """The state of all processes' journals; None if none has a whole first line."""
    state: State | None = None
    for file in sorted(part.glob("journal-*.jsonl")):
        lines = _lines(file)
        if not lines:
            continue
        header = lines[0]
        with suppress(KeyError, TypeError, ValueError):
            own = State(header["job"], Plan.from_json(header["plan"]), set())
            if state is None:
                state = own
            if (own.job, own.plan) == (state.job, state.plan):
                state.done |= {(int(t), int(b)) for line in lines[1:] for t, b in line["done"]}
    return state


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, up to the first that is torn."""
    found = []
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


class Journal:
    """The journal of one process, open for appending."""

    def __init__(self, part: Path, rank: int, job: str, plan: Plan) -> None:
        path = part / f"journal-{rank}.jsonl"
        lines = _lines(path) if path.exists() else []
        self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        if lines and lines[0].get("job") == job:
            self._file.seek(
                sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[: len(lines)])
            )
            self._file.truncate()  # a torn line
        else:
            self._file.truncate(0)
            self._append({"job": job, "plan": plan.as_json()})
            sync_folder(part)

    def add(self, blocks: Iterable[Block]) -> None:
        """Say that blocks are done; returns when that survives a power cut."""
        if done := [list(block) for block in blocks]:
            self._append({"done": done})

    def _append(self, line: dict[str, Any]) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        while data:
            data = data[os.write(self._file.fileno(), data) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
