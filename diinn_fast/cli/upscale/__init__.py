"""``diinn-fast upscale``: pictures, folders and globs of them."""

from __future__ import annotations

import argparse
import logging
import sys

from diinn_fast.cli.common import Refused, messages
from diinn_fast.cli.upscale.arguments import parse
from diinn_fast.cli.upscale.batch import run_batch
from diinn_fast.cli.upscale.jobs import make_batch
from diinn_fast.inference import Upscaler
from diinn_fast.inference.devices import pick_device
from diinn_fast.loading import load_weights


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    with messages(level):
        try:
            return run(options)
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:
                raise
            print(f"diinn-fast: {interrupt}", file=sys.stderr)  # what is kept
            return 130


def run(options: argparse.Namespace) -> int:
    """Upscale what the options name; returns the exit status."""
    batch = make_batch(options)
    model = options.weights
    if options.mode is not None:
        # The mode is a property of the file, hence given where it is read.
        model = load_weights(model, mode=options.mode)
    upscaler = Upscaler(
        model,
        device=pick_device(options.device),
        precision=options.precision,
        backend=options.backend,
        self_ensemble=options.self_ensemble,
    )
    if batch.folder is not None and not options.dry_run:
        # Folders in it are made too, of a tree that is mirrored.
        for folder in sorted({job.target.parent for job in batch.jobs}):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Refused(
                    f"folder {folder} cannot be made ({error.strerror}): choose another one"
                ) from None
    return run_batch(upscaler, batch, options)
