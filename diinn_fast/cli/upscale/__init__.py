"""``diinn-fast upscale``: pictures, folders and globs of them."""

from __future__ import annotations

import argparse
import logging
import sys

from diinn_fast import BackendError
from diinn_fast.cli.common import Refused, messages
from diinn_fast.cli.upscale.arguments import parse
from diinn_fast.cli.upscale.jobs import plan
from diinn_fast.cli.upscale.work import upscale_file
from diinn_fast.inference import Upscaler
from diinn_fast.inference.devices import pick_device
from diinn_fast.loading import load_weights


def main(arguments: list[str]) -> int:
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
    pairs = plan(options.paths[:-1], options.paths[-1])
    model = options.weights
    if options.mode is not None:
        model = load_weights(model, mode=options.mode)
    upscaler = Upscaler(
        model,
        device=pick_device(options.device),
        precision=options.precision,
        backend=options.backend,
        self_ensemble=options.self_ensemble,
    )
    if pairs.folder is not None and not options.dry_run:
        try:
            pairs.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"folder {pairs.folder} cannot be made ({error.strerror}): choose another one"
            ) from None
    failures = []
    for source, target in pairs.files:
        try:
            line = upscale_file(upscaler, source, target, options)
        except BackendError:
            raise
        except Exception as error:
            if not pairs.batch or options.debug:
                raise
            failures.append(error)
            continue
        if line and (options.dry_run or not options.quiet):
            print(line, flush=True)
    for failure in failures:
        print(f"diinn-fast: {' '.join(str(failure).split())}", file=sys.stderr)
    if failures:
        print(f"diinn-fast: {len(failures)} of {len(pairs.files)} pictures failed", file=sys.stderr)
    return 1 if failures else 0
