"""Runs a render from beginning to end, in one process or in one of several.

Everything stays in ``OUT.part`` until the output is renamed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from diinn_fast.errors import ImageError, UnfinishedError, UpscaleError
from diinn_fast.files import interruptible, no_folder, size_text
from diinn_fast.formats.sinks import system_errors
from diinn_fast.formats.write import check_name
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.progress import Progress, make_bar
from diinn_fast.inference.rendering.group import Group, join_group
from diinn_fast.inference.rendering.journal import Journal, State, read_journals
from diinn_fast.inference.rendering.loop import render_tiles
from diinn_fast.inference.rendering.partial import Decision, PartialOutput
from diinn_fast.inference.rendering.planning import fits, make_plan
from diinn_fast.inference.rendering.spec import RenderSpec
from diinn_fast.inference.sinks import Sink, disk_bytes, open_sink
from diinn_fast.inference.sizes import warn_of_aspect, warn_of_scale
from diinn_fast.metadata import warn_of_lost

log = logging.getLogger("diinn_fast")


def run(
    spec: RenderSpec, *, resume: bool = False, overwrite: bool = False, progress: Progress = False
) -> bool:
    """Make the output. False if it was there already."""
    group = join_group()
    part = PartialOutput(spec.out, spec.layout.job)
    try:
        state = begin(spec, part, group, resume=resume, overwrite=overwrite)
        if state is None:
            log.info("%s is complete already", spec.out)
            return False
        # One of several processes speaks for all.
        if group.rank == 0:
            warn_of_scale(spec.picture, spec.hr, spec.engine.model.trained_scales)
            warn_of_aspect(spec.picture, spec.hr, spec.target)
            warn_of_lost(spec.out, spec.lost)
        with interruptible(), _kept_on_errors(part), system_errors(spec.out, part.folder):
            _work(spec, part, state, group, overwrite, progress if group.rank == 0 else False)
        return True
    finally:
        part.release()
        group.close()
        spec.source.close()


def begin(
    spec: RenderSpec, part: PartialOutput, group: Group, *, resume: bool, overwrite: bool
) -> State | None:
    """What is to be done, the same in all processes; None if nothing is."""
    if group.rank > 0:
        return _join(spec, part, group)
    try:
        state = _prepare(spec, part, group.world, resume=resume, overwrite=overwrite)
    except (ValueError, OSError) as error:
        group.broadcast({"refused": str(error)})
        raise
    if state is None:
        group.broadcast({"job": None})
    else:
        done = sorted(state.done)
        group.broadcast({"job": state.job, "plan": state.plan.as_json(), "done": done})
    return state


def _join(spec: RenderSpec, part: PartialOutput, group: Group) -> State | None:
    """What the first process has begun."""
    message = group.receive()
    if "refused" in message:
        raise UpscaleError(message["refused"])
    if message["job"] is None:
        return None
    if message["job"] != spec.layout.job:
        raise UpscaleError(f"process {group.rank} was given another job than process 0")
    part.claim(group.rank)
    # Not by the journals of now: others may have begun, and tiles are shared by their number among
    # those that were missing at the start.
    done = {(tile, block) for tile, block in message["done"]}
    return State(message["job"], Plan.from_json(message["plan"]), done)


def _prepare(
    spec: RenderSpec, part: PartialOutput, workers: int, *, resume: bool, overwrite: bool
) -> State | None:
    """Resume or make OUT.part with its sink and journal, in the first process."""
    part.check_free()
    # First without touching anything: a refusal must leave no folder behind.
    decision = part.decide(resume=resume, overwrite=overwrite)
    if decision is Decision.NOTHING and not os.path.exists(part.folder):
        return None
    if not os.path.isdir(spec.out.parent):
        raise ImageError(no_folder(spec.out))
    check_name(spec.out)
    # From here on nobody else writes; what was there may have changed until now.
    try:
        part.claim(0)
    except OSError as error:
        raise ImageError(
            f"{part.folder} cannot be made ({error.strerror}): choose another folder."
        ) from error
    part.look()
    decision = part.decide(resume=resume, overwrite=overwrite)
    if decision is Decision.NOTHING:
        if part.state is not None:
            part.remove()
        return None
    if decision is Decision.CONTINUE and part.state is not None:
        _check_bound(spec, part, part.state.plan)
        check_disk(spec, part)
        return part.state
    plan = make_plan(spec, workers)
    part.clear()
    check_disk(spec, part)
    return _start(spec, part, plan, overwrite)


def _check_bound(spec: RenderSpec, part: PartialOutput, plan: Plan) -> None:
    if spec.bound is not None and not fits(spec, plan):
        raise UpscaleError(
            f"{part.folder} was planned for more memory than {size_text(spec.bound)}: resume it "
            "with what it was started with, or begin anew with --overwrite"
        )


def check_disk(spec: RenderSpec, part: PartialOutput) -> None:
    """Refuse what the disk has no room for, in OUT.part and in its final form together."""
    needed = sum(disk_bytes(spec.out, spec.layout, spec.options))
    if os.path.isdir(part.folder):
        files = (path for path in part.folder.rglob("*") if os.path.isfile(path))
        needed -= sum(path.stat().st_blocks * 512 for path in files)
    free = shutil.disk_usage(part.folder.parent).free
    if needed > free:
        raise UpscaleError(
            f"{spec.out} needs up to {size_text(needed)} of disk and {size_text(free)} are free: "
            "free some space, choose another folder or a smaller size"
        )


def _start(spec: RenderSpec, part: PartialOutput, plan: Plan, overwrite: bool) -> State:
    """Make the sink's files and a journal in which nothing is done."""
    _open_sink(spec, part, resume=False, overwrite=overwrite).close()
    with system_errors(spec.out, part.folder):
        Journal(part.folder, 0, spec.layout.job, plan).close()
    return State(spec.layout.job, plan, set())


def _open_sink(spec: RenderSpec, part: PartialOutput, *, resume: bool, overwrite: bool) -> Sink:
    return open_sink(
        spec.out,
        spec.layout,
        part=part.folder,
        resume=resume,
        options=spec.options,
        overwrite=overwrite,
    )


def _work(
    spec: RenderSpec,
    part: PartialOutput,
    state: State,
    group: Group,
    overwrite: bool,
    progress: Progress,
) -> None:
    sink = _open_sink(spec, part, resume=True, overwrite=overwrite)
    try:
        render_tiles(spec, state, sink, group, progress=progress)
        if group.rank > 0:
            sink.close()
            part.release()
        group.finish()
        if group.rank == 0:
            _finish(spec, part, sink, progress)
    finally:
        sink.close()


def _finish(spec: RenderSpec, part: PartialOutput, sink: Sink, progress: Progress) -> None:
    """Give the output its name, in the first process when the others have done their share."""
    if not os.path.isdir(part.folder):
        raise UnfinishedError(f"{part.folder} has been removed while it was needed: start again")
    state = read_journals(part.folder)
    if state is None or not state.complete:
        raise UnfinishedError(
            f"{spec.out} is not complete, a process has died: run it again with --resume"
        )
    if spec.inputs.changed():
        raise UnfinishedError(
            f"the picture has changed while {spec.out} was made of it: run it again with "
            "--overwrite"
        )
    # A bar of its own on a terminal; for a function, the work is done when the last block is.
    with make_bar(progress is True, spec.hr[0], unit="row") as bar:
        written = [0]

        def told(done: int, rows: int) -> None:
            bar.update(done - written[0])
            written[0] = done

        sink.finish(told)
    sink.close()
    # Said in the journal before the folder goes: a kill in between leaves a finished job.
    journal = Journal(part.folder, 0, state.job, state.plan)
    journal.publish()
    journal.close()
    part.remove()


@contextmanager
def _kept_on_errors(part: PartialOutput) -> Iterator[None]:
    """Say in every error what is kept."""
    kept = f"{part.folder} keeps what is done: run it again with --resume"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted, {kept}") from None
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; {kept}") from error
    # It says already what is kept.
    except UnfinishedError:
        raise
    except (UpscaleError, ImageError) as error:
        raise UnfinishedError(f"{str(error).rstrip('.')}; {kept}") from error
