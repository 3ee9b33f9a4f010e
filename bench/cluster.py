"""A large result by two local workers of dask, one of which is killed: ``python -m bench.cluster
OUT.zarr``. Compared afterwards with windows rendered by one process, bit for bit.

The result is written in bands, one row of chunks each. The same command again goes on with the
first band that is not complete.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import PIL.Image
import psutil
import zarr
from dask.distributed import Client, LocalCluster

from bench import machine
from diinn_fast.inference import Upscaler, View

PICTURE = machine.ROOT / "examples" / "coffee.png"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a Zarr store to be made, or gone on with")
    parser.add_argument("--side", type=int, default=625, help="of the LR picture")
    parser.add_argument("--scale", type=int, default=32)
    parser.add_argument("--chunk", type=int, help="side of a chunk (default: the view's)")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--kill-after", type=int, default=6, help="chunks that are there by then")
    parser.add_argument("--windows", type=int, default=64, help="windows of 256 to compare")
    options = parser.parse_args()

    picture = options.out.with_suffix(".png")
    if not picture.exists():
        make_picture(options.side).save(picture)
    view = Upscaler(device="cpu", precision=options.precision).open(picture)
    array = opened(options.out, view, options.side * options.scale, options.chunk)
    make(view, array, options.out, options.kill_after)

    found = {
        "command": " ".join(["python -m bench.cluster", *sys.argv[1:]]),
        **machine.facts("cpu"),
        "precision": options.precision,
        "size": array.shape,
        "chunks": array.cdata_shape,
        **array.attrs,
        "windows_compared": options.windows,
        "samples_that_differ": differing(view, array, options.windows),
    }
    target = machine.ROOT / "bench" / "results" / machine.slug("cpu") / "cluster.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def make_picture(side: int) -> PIL.Image.Image:
    """A square of the example photograph, mirrored at its borders until it is large enough."""
    photo = np.asarray(PIL.Image.open(PICTURE))
    margins = [(0, max(0, side - length)) for length in photo.shape[:2]]
    return PIL.Image.fromarray(np.pad(photo, [*margins, (0, 0)], "symmetric")[:side, :side])


def opened(out: Path, view: View, side: int, chunk: int | None) -> zarr.Array[Any]:
    """The store's array, with what is known of the run as attributes."""
    if out.exists():
        return zarr.open_array(out, mode="r+")
    scaled = view.at((side, side))
    chunks = (chunk, chunk, 3) if chunk else scaled.chunks
    known: Any = {"bands": 0, "seconds": 0.0, "loads": [], "killed_after_chunks": 0}
    return zarr.create_array(
        out, shape=scaled.shape, chunks=chunks, dtype=scaled.dtype, attributes=known
    )


def make(view: View, array: zarr.Array[Any], out: Path, kill_after: int) -> None:
    """Write the bands that are missing."""
    lazy = dask.array.from_array(view.at(array.shape[:2]), chunks=array.chunks)
    # A worker that starts anew on a busy machine takes longer than dask waits by itself, and one
    # whose stack is looked at a hundred times a second lends a third of its core to that.
    waits = {f"distributed.comm.timeouts.{kind}": "600s" for kind in ("connect", "tcp")}
    dask.config.set({**waits, "distributed.worker.profile.enabled": False})
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        killed = Killed(client, out, kill_after)
        if not array.attrs["killed_after_chunks"]:
            killed.start()
        height = array.chunks[0]
        run: dict[str, Any] = dict(array.attrs)
        for band in range(run["bands"], array.cdata_shape[0]):
            start = time.perf_counter()
            rows = slice(band * height, min((band + 1) * height, array.shape[0]))
            lazy[rows].to_zarr(array, region=(rows, slice(None), slice(None)))
            run["bands"] = band + 1
            run["seconds"] = round(run["seconds"] + time.perf_counter() - start, 1)
            run["loads"] = [*run["loads"], round(os.getloadavg()[0], 1)]
            if killed.after:
                run["killed_after_chunks"] = killed.after
                run["chunks_made_again"] = killed.made_again()
            array.attrs.update(run)
            print(json.dumps(run), flush=True)
        resident = client.run(lambda: psutil.Process().memory_info().rss >> 20)
        array.attrs["resident_mib_of_workers"] = list(resident.values())


class Killed(threading.Thread):
    """Kills one worker by SIGKILL as soon as some chunks of ``out`` are there."""

    def __init__(self, client: Client, out: Path, count: int) -> None:
        super().__init__(daemon=True)
        self._pids = list(client.run(os.getpid).values())
        self._out = out
        self._count = count
        self._times: dict[Path, int] = {}
        self.after = 0

    def run(self) -> None:
        """Wait for the chunks, then kill."""
        while len(times := self._chunks()) < self._count:
            time.sleep(0.5)
        os.kill(self._pids[0], signal.SIGKILL)
        self._times = times
        self.after = len(times)

    def made_again(self) -> int:
        """How many of the chunks that were there have been written once more since."""
        now = self._chunks()
        return sum(now[path] != times for path, times in self._times.items())

    def _chunks(self) -> dict[Path, int]:
        files = (path for path in self._out.glob("c/**/*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files}


def differing(view: View, array: zarr.Array[Any], count: int) -> int:
    """Samples of random windows of 256 x 256 that are not those of one process."""
    size = array.shape[:2]
    draw = random.Random(0)
    total = 0
    for _ in range(count):
        y = draw.randrange(size[0] - 256)
        x = draw.randrange(size[1] - 256)
        rendered = view.render((y, y + 256, x, x + 256), size)
        total += int(np.count_nonzero(array[y : y + 256, x : x + 256] != rendered))
    return total


if __name__ == "__main__":
    main()
