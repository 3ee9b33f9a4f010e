"""OME-Zarr 0.5: a group of Zarr arrays, each half the size of the one before."""

from __future__ import annotations

from diinn_fast.formats.zarr import Zarr
from diinn_fast.formats.zarr_store import OmeZarrSink


class OmeZarr(Zarr):
    """A pyramid of arrays [C, H, W] with the metadata that microscope viewers ask for."""

    key = "ome-zarr"
    name = "OME-Zarr"
    suffixes = (".ome.zarr",)
    sink_class = OmeZarrSink
