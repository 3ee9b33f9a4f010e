"""TIFF or BigTIFF, encoded from the raw samples tile by tile (`imageio.tiff`), with a pyramid if
asked for.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO

from diinn_fast.imageio.layout import Layout, Progress, Read, halve, levels_below
from diinn_fast.imageio.tiff import TILE, write_tiff
from diinn_fast.inference.sinks.base import SampleSink
from diinn_fast.inference.sinks.samples import SampleFile

_BAND = 128


class TiffSink(SampleSink):
    """Software and the fingerprint of the job stand in the tags Software and ImageDescription."""

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        with ExitStack() as stack:
            levels: list[tuple[Layout, Read]] = []
            above = samples
            for layout in tiff_levels(self.layout) if self.options.pyramid else []:
                path = self.part / f"samples.{len(levels) + 1}"
                stack.callback(path.unlink, missing_ok=True)
                above = stack.enter_context(closing(_halved(above, path, layout)))
                levels.append((layout, above.read))
            write_tiff(
                file,
                self.layout,
                samples.read,
                levels=levels,
                compress=self.options.compress,
                progress=progress,
            )


def tiff_levels(layout: Layout) -> list[Layout]:
    return levels_below(layout, TILE)


def _halved(source: SampleFile, path: Path, layout: Layout) -> SampleFile:
    """Raw samples of half the size in a file of their own, made block by block."""
    target = SampleFile(path, layout, create=True)
    full = source.layout
    for y in range(0, layout.height, _BAND):
        for x in range(0, layout.width, 8 * _BAND):
            bottom = min(2 * (y + _BAND), full.height)
            right = min(2 * (x + 8 * _BAND), full.width)
            target.write(y, x, halve(source.read(2 * y, bottom, 2 * x, right)))
    return target
