"""The record of a render's finished blocks, in OUT.part: one file per process, one JSON document
per line.

The first line says which format, job and plan; every further one lists blocks whose samples are on
the disk, and the last one says that the output has taken its name. A process may be killed at any
moment: the last line may be torn, and then it does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diinn_fast.errors import UpscaleError
from diinn_fast.files import sync_folder
from diinn_fast.inference.plan import Plan
from diinn_fast.version import __version__

FORMAT = "diinn_fast journal 1"

Block = tuple[int, int]
"""Number of a tile, number of a block in it."""


class JournalError(UpscaleError):
    """A journal that this version did not write, or that is damaged."""


@dataclass
class State:
    """What the journals of a folder say."""

    job: str
    plan: Plan
    done: set[Block]
    published: bool = False

    @property
    def complete(self) -> bool:
        """Whether all blocks are done."""
        return all(
            (t, b) in self.done
            for t, tile in enumerate(self.plan.tile_windows())
            for b in range(len(self.plan.blocks(tile)))
        )


def read_journals(part: Path) -> State | None:
    """The state of all processes' journals; None if none has a whole first line.

    Raises JournalError for a journal of another format or version, and for a damaged one: nobody
    knows what such a folder holds.
    """
    state: State | None = None
    for file in sorted(part.glob("journal-*.jsonl")):
        lines = _lines(file)
        if not lines:
            continue
        own = _read(file, lines)
        if state is None:
            state = own
        elif (own.job, own.plan) == (state.job, state.plan):
            state.done |= own.done
            state.published |= own.published
    return state


def _read(file: Path, lines: list[dict[str, Any]]) -> State:
    header = lines[0]
    found = header.get("format"), header.get("version")
    if found != (FORMAT, __version__):
        raise JournalError(f"was written by diinn_fast {header.get('version') or '0.1 or older'}")
    try:
        state = State(str(header["job"]), Plan.from_json(header["plan"]), set())
        for line in lines[1:]:
            state.done |= {(int(t), int(b)) for t, b in line.get("done", ())}
            state.published |= bool(line.get("published"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JournalError(f"has a damaged journal ({file.name})") from error
    return state


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, up to the first that is torn."""
    found: list[dict[str, Any]] = []
    try:
        data = file.read_bytes()
    except FileNotFoundError:  # whoever wrote it is done
        return found
    except OSError as error:
        raise JournalError(f"cannot be read ({error.strerror})") from error
    for line in data.split(b"\n")[:-1]:
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            if not found:
                raise JournalError(f"has a damaged journal ({file.name})")
            break
        found.append(fields)
    return found


class Journal:
    """The journal of one process, open for appending."""

    def __init__(self, part: Path, rank: int, job: str, plan: Plan) -> None:
        path = part / f"journal-{rank}.jsonl"
        lines = _lines(path) if path.exists() else []
        self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        if lines and lines[0].get("job") == job:
            whole = path.read_bytes().split(b"\n")[: len(lines)]
            self._file.seek(sum(len(line) + 1 for line in whole))
            self._file.truncate()  # a torn line
        else:
            self._file.truncate(0)
            header = {"format": FORMAT, "version": __version__, "job": job, "plan": plan.as_json()}
            self._append(header)
            sync_folder(part)

    def add(self, blocks: Iterable[Block]) -> None:
        """Say that blocks are done; returns when that survives a power cut."""
        if done := [list(block) for block in blocks]:
            self._append({"done": done})

    def publish(self) -> None:
        """Say that the output has taken its name."""
        self._append({"published": True})

    def _append(self, line: dict[str, Any]) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        while data:
            data = data[os.write(self._file.fileno(), data) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file. Can be called twice."""
        self._file.close()
