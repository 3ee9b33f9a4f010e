"""Says once of a call that its pictures are better served by the other bundled model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from diinn_fast.cli.upscale.pipes import is_pipe
from diinn_fast.errors import ImageError
from diinn_fast.formats import quality_of
from diinn_fast.model import DEFAULT_WEIGHTS

log = logging.getLogger("diinn_fast")

COMPRESSED = 95
"""JPEG quality up to which `photo` is the better model (docs/evaluation.md)."""


class Advice:
    """Looks at pictures before they are enlarged, until there was something to say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._wanted = options.weights == DEFAULT_WEIGHTS and options.mode is None

    def look_at(self, picture: Path) -> None:
        """Say of a JPEG that it is compressed so much that the default model enlarges its blocks.

        A pipe can be read but once: nothing is said of it.
        """
        if not self._wanted or is_pipe(picture):
            return
        try:
            quality = quality_of(picture)
        except ImageError:
            return  # reading it says why
        if quality is None or quality > COMPRESSED:
            return
        self._wanted = False
        log.warning(
            "%s is a JPEG of quality %d or so: --weights photo makes a better picture of it, the "
            "default model enlarges its blocks too",
            picture,
            quality,
        )
