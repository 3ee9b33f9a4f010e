"""OME-Zarr 0.5: a group of Zarr arrays with metadata, each half the one before.

Source: OME-Zarr 0.5 specification (ngff.openmicroscopy.org), sections 2.3 to 2.6.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from diinn_fast.formats.bands import Bands
from diinn_fast.formats.layout import Layout, Progress, halve, levels_below
from diinn_fast.formats.zarr import Zarr
from diinn_fast.formats.zarr_store import CHUNK, SMALLEST_LEVEL, ZarrSink
from diinn_fast.metadata import Space

_COLOURS = {
    "grey": "FFFFFF",
    "alpha": "FFFFFF",
    "red": "FF0000",
    "green": "00FF00",
    "blue": "0000FF",
}


class OmeZarrSink(ZarrSink):
    """OME-Zarr 0.5: a group of arrays [C, H, W], each half the one before, until both sides are at
    most 256.

    A level is the mean of 2 x 2 samples of the one before (`layout.halve`).
    """

    multiscale = True

    def _create(self, zarr: Any) -> None:
        attributes = self._attributes(complete=False)
        zarr.create_group(
            store=str(self.store), zarr_format=3, attributes=attributes, overwrite=True
        )
        self.array = self._create_array(zarr, self._full_size, self.layout, {})
        # The specification wants every level that the metadata names to exist, even before it has
        # its samples.
        levels = levels_below(self.layout, SMALLEST_LEVEL)
        for number, level in enumerate(levels, 1):
            self._create_array(zarr, self.store / str(number), level, {})
        group = zarr.open_group(store=str(self.store), mode="r+")
        group.attrs["ome"] = self._ome(1 + len(levels))

    @property
    def _full_size(self) -> Path:
        return self.store / "0"

    def _make_levels(self, zarr: Any, progress: Progress | None) -> None:
        levels = levels_below(self.layout, SMALLEST_LEVEL)
        rows = sum(level.height for level in levels)
        done = 0
        above = zarr.open_array(store=str(self._full_size), mode="r")
        full = self.layout
        for number, level in enumerate(levels, 1):
            array = zarr.open_array(store=str(self.store / str(number)), mode="r+")
            # Chunk by chunk, so that no more than five are in memory.
            for y in range(0, level.height, CHUNK):
                for x in range(0, level.width, CHUNK):
                    self._put(array, y, x, self._halved(above, full, level, y, x))
                if progress is not None:
                    progress(done + min(y + CHUNK, level.height), rows)
            done = done + level.height
            above = array
            full = level

    def _halved(self, above: Any, full: Layout, level: Layout, y: int, x: int) -> np.ndarray:
        """One chunk of a level, of four of the level above, one after the other."""
        rows = min(CHUNK, level.height - y)
        columns = min(CHUNK, level.width - x)
        chunk = np.empty((rows, columns, level.channels), level.dtype)
        half = CHUNK // 2
        for row, column in product(range(0, rows, half), range(0, columns, half)):
            top = 2 * (y + row)
            left = 2 * (x + column)
            block = above[
                :, top : min(top + CHUNK, full.height), left : min(left + CHUNK, full.width)
            ]
            chunk[row : row + half, column : column + half] = halve(np.moveaxis(block, 0, 2))
        return chunk

    def _shape(self, layout: Layout) -> tuple[int, ...]:
        return layout.channels, layout.height, layout.width

    def _chunk_name(self, row: int, column: int) -> str:
        return f"c/0/{row}/{column}"

    def _put(self, array: Any, y: int, x: int, samples: np.ndarray) -> None:
        array[:, y : y + samples.shape[0], x : x + samples.shape[1]] = np.moveaxis(samples, 2, 0)

    def _dimensions(self, layout: Layout) -> list[str]:
        return ["c", "y", "x"]

    def _ome(self, count: int) -> dict[str, Any]:
        top = 1 if self.layout.stored.kind == "f" else int(np.iinfo(self.layout.stored).max)
        window = {"min": 0, "max": top, "start": 0, "end": top}
        space = self.layout.metadata.space or Space((1.0, 1.0))
        unit = {"unit": space.unit} if space.unit else {}
        datasets = []
        for level in range(count):
            shift = (2**level - 1) / 2  # of the first sample's centre, in pixels of level 0
            scale = [step * 2**level for step in space.scale]
            start = [
                a + shift * step for a, step in zip(space.translation, space.scale, strict=True)
            ]
            steps: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0, *scale]}]
            if any(start):
                steps.append({"type": "translation", "translation": [0.0, *start]})
            datasets.append({"path": str(level), "coordinateTransformations": steps})
        return {
            "version": "0.5",
            "multiscales": [
                {
                    "name": self.target.name.removesuffix(".ome.zarr"),
                    "axes": [
                        {"name": "c", "type": "channel"},
                        {"name": "y", "type": "space", **unit},
                        {"name": "x", "type": "space", **unit},
                    ],
                    "datasets": datasets,
                    "type": "mean",
                    "metadata": {
                        "description": "mean of 2 x 2 samples of the level before, integers "
                        "rounded half up"
                    },
                }
            ],
            "omero": {
                "channels": [
                    {
                        "label": name,
                        "color": _COLOURS.get(name, "FFFFFF"),
                        "active": name != "alpha",
                        "window": window,
                    }
                    for name in _names(self.layout.bands)
                ],
                "rdefs": {"model": "greyscale" if self.layout.bands.colours == 1 else "color"},
            },
        }


def _names(bands: Bands) -> list[str]:
    """Of channels, for viewers."""
    names = ["red", "green", "blue"] if bands.colours == 3 else ["grey"]
    if not bands.is_picture and bands.colours == 1:
        names = ["band 1"]
    names += [f"band {n + 1}" for n in range(bands.colours, bands.count)]
    if bands.alpha is not None:
        names[bands.alpha] = "alpha"
    return names


class OmeZarr(Zarr):
    """A pyramid of arrays [C, H, W] with the metadata that microscope viewers ask for."""

    key = "ome-zarr"
    name = "OME-Zarr"
    suffixes = (".ome.zarr",)
    sink_class = OmeZarrSink
