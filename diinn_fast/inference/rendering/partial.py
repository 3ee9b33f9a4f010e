"""OUT.part, the folder of an unfinished output: its possible states, and what to do in each."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from diinn_fast.errors import UpscaleError
from diinn_fast.formats.image import already_exists
from diinn_fast.inference.rendering.journal import JournalError, State, read_journals
from diinn_fast.inference.rendering.lock import FileLock, is_locked
from diinn_fast.inference.sinks import read_job

OWN_NAMES = ("journal-", "lock", "final", "samples")
"""How the names of all that is in OUT.part begin."""

MOST_NAME_BYTES = 255
"""Of the usual file systems."""


class Part(Enum):
    """States of OUT.part."""

    EMPTY = auto()  # there is none, or nothing is recorded in it
    NOT_OURS = auto()
    UNREADABLE = auto()  # of another version, or damaged
    OTHER_JOB = auto()
    BEGUN = auto()  # some blocks of this job
    MADE = auto()  # all blocks of this job
    PUBLISHED = auto()  # this job's output has taken its name; the folder was to be removed


class Out(Enum):
    """States of the output's path."""

    ABSENT = auto()
    DONE = auto()  # the output of this very job
    OTHER = auto()


class Decision(Enum):
    """What a run does about them."""

    START = auto()
    CONTINUE = auto()
    NOTHING = auto()  # the output is there
    REFUSE_NOT_OURS = auto()
    REFUSE_EXISTING = auto()
    REFUSE_UNREADABLE = auto()
    REFUSE_OTHER_JOB = auto()
    REFUSE_UNFINISHED = auto()


def decide(part: Part, out: Out, *, resume: bool, overwrite: bool) -> Decision:
    """The table of all cases; nothing is lost unless ``overwrite`` says so."""
    if part is Part.NOT_OURS:
        return Decision.REFUSE_NOT_OURS
    if part is Part.PUBLISHED and out is Out.ABSENT:
        part = Part.EMPTY  # somebody has removed the output since
    if resume and (decision := _resumed(part, out, overwrite)) is not None:
        return decision
    # Without anything to resume, what is there is replaced only if the user has said so.
    if overwrite:
        return Decision.START
    if out is not Out.ABSENT:
        return Decision.REFUSE_EXISTING
    return _started(part, resume)


def _resumed(part: Part, out: Out, overwrite: bool) -> Decision | None:
    """What can be resumed, and None if nothing can."""
    if out is Out.DONE or part is Part.PUBLISHED:
        return Decision.NOTHING
    if part is Part.MADE:
        return Decision.CONTINUE  # giving the name refuses what may not be replaced
    if part is Part.BEGUN and (out is Out.ABSENT or overwrite):
        return Decision.CONTINUE
    return None


def _started(part: Part, resume: bool) -> Decision:
    """Whether a new output can begin, where no file has its name."""
    if part is Part.UNREADABLE:
        return Decision.REFUSE_UNREADABLE
    if part is Part.OTHER_JOB and resume:
        return Decision.REFUSE_OTHER_JOB
    return Decision.START if part is Part.EMPTY else Decision.REFUSE_UNFINISHED


class PartialOutput:
    """OUT.part of an output and a job.

    Attributes:
        folder: OUT.part.
        state: what its journals say, if it is of this job.
        part, out: what there is, since `look`.
    """

    def __init__(self, out: Path, job: str) -> None:
        self.final = out
        self.job = job
        self.folder = part_of(out)
        self._locks: list[FileLock] = []
        self.look()

    def look(self) -> None:
        """See what there is."""
        self.state: State | None = None
        self._unreadable = ""
        self.part = self._part()
        self.out = self._out()

    def decide(self, *, resume: bool, overwrite: bool) -> Decision:
        """What to do; raises what refuses."""
        decision = decide(self.part, self.out, resume=resume, overwrite=overwrite)
        if decision is Decision.REFUSE_EXISTING:
            raise already_exists(self.final)
        if decision.name.startswith("REFUSE"):
            raise UpscaleError(f"{self.folder} {self._reason(decision)}")
        return decision

    def check_free(self) -> None:
        """Refuse a folder that a process, of this job or another, is writing to."""
        if self.part is not Part.NOT_OURS and os.path.isdir(self.folder):
            own = {lock.path for lock in self._locks}
            others = (path for path in self.folder.glob("lock-*") if path not in own)
            if any(is_locked(path) for path in others):
                raise self._busy()

    def claim(self, rank: int) -> None:
        """Make the folder if it is not there, and lock it for process ``rank`` of the job."""
        lock = FileLock(self.folder / f"lock-{rank}")
        while True:
            try:
                # Another process may remove its finished folder between these two calls.
                self.folder.mkdir(exist_ok=True)
                free = lock.acquire()
            except FileNotFoundError:
                if os.path.isdir(self.folder.parent):
                    continue  # whoever had it has removed it just now
                raise
            break
        if not free:
            raise self._busy()
        self._locks.append(lock)
        if rank == 0:
            self.check_free()

    def release(self) -> None:
        """Let others have it; a folder without any work vanishes."""
        held = bool(self._locks)
        names = [path.name for path in self.folder.glob("*")] if held else []
        if held and all(name.startswith("lock-") for name in names):
            self.remove()
        for lock in self._locks:
            lock.release()
        self._locks.clear()

    def clear(self) -> None:
        """Delete what is in it but the locks, the journals last: a kill on the way leaves what says
        how far it was. Something that is not ours stays.
        """
        if self.part is Part.NOT_OURS or not os.path.isdir(self.folder):
            return
        for path in sorted(self.folder.iterdir(), key=lambda p: p.name.startswith("journal-")):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            elif not path.name.startswith("lock-"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete it, while the lock is held."""
        self.clear()
        if self.part is Part.NOT_OURS or not os.path.isdir(self.folder):
            return
        own = {lock.path for lock in self._locks}
        for path in self.folder.glob("lock-*"):
            if path not in own:
                path.unlink(missing_ok=True)
        for lock in self._locks:
            lock.remove()
        self._locks.clear()
        with suppress(OSError):  # another process may have begun with it already
            self.folder.rmdir()

    def _busy(self) -> UpscaleError:
        return UpscaleError(
            f"{self.folder} is being written by another process: wait for it, or choose another "
            "name"
        )

    def _part(self) -> Part:
        folder = self.folder
        if not os.path.lexists(folder):
            return Part.EMPTY
        if os.path.islink(folder) or not os.path.isdir(folder):
            return Part.NOT_OURS
        # A folder of the user's that happens to have this name is never written to.
        try:
            names = os.listdir(folder)
        except OSError:
            return Part.NOT_OURS
        if not all(name.startswith(OWN_NAMES) for name in names):
            return Part.NOT_OURS
        try:
            state = read_journals(folder)
        except JournalError as error:
            self._unreadable = str(error)
            return Part.UNREADABLE
        if state is None:
            return Part.EMPTY
        if state.job != self.job:
            return Part.OTHER_JOB
        self.state = state
        if state.published:
            return Part.PUBLISHED
        return Part.MADE if state.complete else Part.BEGUN

    def _out(self) -> Out:
        if not os.path.lexists(self.final):
            return Out.ABSENT
        return Out.DONE if read_job(self.final) == self.job else Out.OTHER

    def _reason(self, decision: Decision) -> str:
        return {
            Decision.REFUSE_NOT_OURS: "is in the way and not ours: move it, or choose another name",
            Decision.REFUSE_UNREADABLE: f"{self._unreadable}: pass --overwrite to begin anew",
            Decision.REFUSE_OTHER_JOB: "is of another job: pass --overwrite to begin anew; if only "
            "the machine or the version is another, --precision fp32 or int8 continues it",
            Decision.REFUSE_UNFINISHED: "is of an interrupted run: pass --resume to continue it or "
            "--overwrite to begin anew",
        }[decision]


def part_of(out: Path) -> Path:
    """The folder that holds an output while it is made: beside the file that a link leads to, which
    may lie on another file system; of a name that leaves no room for the ending, one of its own.
    """
    if os.path.islink(out):
        out = Path(os.path.realpath(out))
    name = out.name + ".part"
    if len(os.fsencode(name)) > MOST_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(out.name)).hexdigest()
        name = f"diinn-fast-{digest[:24]}.part"
    return out.with_name(name)
