"""What the commands share: parser, common options, messages."""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Refused(Exception):
    """Wrong usage, or something that cannot work: one sentence, exit code 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line by one sentence, in place of argparse's usage text."""
        raise Refused(f"{message}; {self.prog} --help explains")


def make_parser(command: str, usage: str, description: str, example: str) -> Parser:
    """Parser of a command, with an example in its help and the options that every command has."""
    parser = Parser(
        prog=f"diinn-fast {command}",
        usage=f"diinn-fast {command} {usage}",
        description=textwrap.fill(description, 90),
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


@contextmanager
def messages(level: int) -> Iterator[None]:
    """Show the package's log on stderr, from ``level`` up."""
    logger = logging.getLogger("diinn_fast")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("diinn-fast: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
