"""A large result by two local workers of dask, one of which is killed: ``python -m bench.cluster
OUT.zarr``. Compared afterwards with windows rendered by one process, bit for bit.
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

import dask.array
import numpy as np
import zarr
from dask.distributed import Client, LocalCluster

import diinn_fast
from bench import machine

PICTURE = machine.ROOT / "examples" / "coffee.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a Zarr store to be made")
    parser.add_argument("--scale", type=int, default=24, help="of examples/coffee.png")
    parser.add_argument("--chunk", type=int, help="side of a chunk (default: the view's)")
    parser.add_argument("--windows", type=int, default=64, help="windows of 256 to compare")
    options = parser.parse_args()
    view = diinn_fast.open(PICTURE, device="cpu")
    size = view.shape[0] * options.scale, view.shape[1] * options.scale
    scaled = view.at(size)
    side = options.chunk
    chunks = (side, side, 3) if side else scaled.chunks
    lazy = dask.array.from_array(scaled, chunks=chunks)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        killed = Killed(client, options.out)
        start = time.perf_counter()
        killed.start()
        lazy.to_zarr(str(options.out))
        seconds = time.perf_counter() - start
    found = {
        "command": " ".join(["python -m bench.cluster", *sys.argv[1:]]),
        **machine.facts("cpu"),
        "size": size,
        "chunks": lazy.numblocks,
        "seconds": round(seconds, 1),
        "killed_after_chunks": killed.after,
        "windows_compared": options.windows,
        "samples_that_differ": differing(view, size, options.out, options.windows),
    }
    target = machine.ROOT / "bench" / "results" / machine.slug("cpu") / "cluster.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


class Killed(threading.Thread):
    """Kills one worker by SIGKILL as soon as six chunks of ``out`` are there."""

    def __init__(self, client: Client, out: Path) -> None:
        super().__init__(daemon=True)
        self._pids = list(client.run(os.getpid).values())
        self._out = out
        self.after = 0

    def run(self) -> None:
        while (count := self._chunks()) < 6:
            time.sleep(0.5)
        os.kill(self._pids[0], signal.SIGKILL)
        self.after = count

    def _chunks(self) -> int:
        return sum(1 for path in self._out.glob("c/**/*") if path.is_file())


def differing(view: diinn_fast.View, size: tuple[int, int], out: Path, count: int) -> int:
    """Samples of random windows of 256 x 256 that are not those of one process."""
    array: Any = zarr.open(str(out), mode="r")
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
