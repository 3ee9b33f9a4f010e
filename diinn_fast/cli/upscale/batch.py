"""Upscales the pictures of a call one after the other, and reports on every file."""

from __future__ import annotations

import argparse
import os
import sys

from diinn_fast import BackendError
from diinn_fast.cli.upscale.advice import Advice
from diinn_fast.cli.upscale.jobs import Batch, Job
from diinn_fast.cli.upscale.pipes import is_pipe, is_stdout
from diinn_fast.cli.upscale.report import ProgressLines, Tally
from diinn_fast.cli.upscale.work import upscale_job
from diinn_fast.inference import Upscaler
from diinn_fast.inference.progress import Progress
from diinn_fast.inference.rendering.group import first_rank

EXISTS = "exists already"
COMPLETE = "complete already"


def run_batch(upscaler: Upscaler, batch: Batch, options: argparse.Namespace) -> int:
    """Do all jobs; returns the exit code: 1 if one failed."""
    tally = Tally(skipped=list(batch.left_out))
    lines = ProgressLines(len(batch.jobs))
    advice = Advice(options)
    begun = 0
    try:
        for n, job in enumerate(batch.jobs):
            begun = n + 1
            lines.begin(job.source, n, tally.done + tally.failed)
            if options.skip_existing and _exists(job):
                tally.skip(job.target, EXISTS)
                _say(f"{job.target} {EXISTS}: skipped", options, quietly=batch.several)
                continue
            advice.look_at(job.source)
            _do(upscaler, job, batch, options, tally, _progress(options, lines))
    finally:
        # Also on Ctrl-C, so that nobody has to count what is done.
        if batch.several and first_rank():
            _sum_up(tally, len(batch.jobs) - begun, options)
    return 1 if tally.failed else 0


def _do(
    upscaler: Upscaler,
    job: Job,
    batch: Batch,
    options: argparse.Namespace,
    tally: Tally,
    progress: Progress,
) -> None:
    """One job; in a batch its failure is said and counted."""
    try:
        outcome = upscale_job(upscaler, job, options, progress)
    # It would fail for every picture alike.
    except BackendError:
        raise
    except Exception as error:
        if options.skip_existing and _exists(job):
            tally.skip(job.target, EXISTS)  # another process was faster
            return
        if not batch.several or options.debug:
            raise
        # One bad file must not cost the others of a long batch.
        tally.failed += 1
        _say_failure(job, error)
        return
    if outcome.done:
        tally.done += 1
    elif not options.dry_run:
        tally.skip(job.target, COMPLETE)
    # Where the picture itself is stdout, a line of text would damage it.
    stream = sys.stderr if is_stdout(job.target) else sys.stdout
    if outcome.line and (options.dry_run or not options.quiet):
        print(outcome.line, file=stream, flush=True)


def _say_failure(job: Job, error: Exception) -> None:
    """In one line, that names the picture."""
    said = " ".join(str(error).split()) or type(error).__name__
    name = "" if str(job.source) in said or str(job.target) in said else f"{job.source}: "
    print(f"diinn-fast: {name}{said}", file=sys.stderr, flush=True)


def _exists(job: Job) -> bool:
    return not is_pipe(job.target) and os.path.lexists(job.target)


def _progress(options: argparse.Namespace, lines: ProgressLines) -> Progress:
    """A bar on a terminal, lines elsewhere."""
    if options.quiet:
        return False
    return True if sys.stderr.isatty() else lines


def _say(line: str, options: argparse.Namespace, *, quietly: bool) -> None:
    if first_rank() and not options.quiet and not quietly:
        print(line, flush=True)


def _sum_up(tally: Tally, left: int, options: argparse.Namespace) -> None:
    """The last line; on stderr, and whatever ``--quiet`` says, if something failed."""
    if tally.failed or left:
        print(f"diinn-fast: {tally.line(left)}", file=sys.stderr, flush=True)
    elif not options.quiet and not options.dry_run:
        print(tally.line(), flush=True)
