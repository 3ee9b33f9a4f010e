"""The server's tiles, and 50 clients at once: ``python -m bench.serve``, ``python -m bench.serve
load``. Writes bench/results/MACHINE/serve.json. On a busy machine, `chrt -r 5` in front gives the
latencies the cores as an idle machine would.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np
import PIL.Image
import psutil

from bench import machine
from diinn_fast.inference import Upscaler
from diinn_fast.serve import Picture, make_app

PICTURE = machine.ROOT / "examples" / "coffee.png"
TILE = 256

LATENCIES = list(itertools.product(("fp32", "int8"), (2, 4, 16, 64), (1, 4)))
"""Precision, scale and clients at a time of each measurement."""


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["latency", "load"], default="latency")
    parser.add_argument("--seconds", type=float, default=60, help="of load")
    parser.add_argument("--clients", type=int, default=50, help="of load")
    options = parser.parse_args()
    if options.what == "latency":
        found: Any = [
            asyncio.run(latency(precision, scale, clients))
            for precision, scale, clients in LATENCIES
        ]
    else:
        found = load(options.clients, options.seconds)
    target = machine.ROOT / "bench" / "results" / machine.slug("cpu") / "serve.json"
    target.parent.mkdir(exist_ok=True)
    record = json.loads(target.read_text()) if target.exists() else {}
    record[options.what] = {
        "command": " ".join([*machine.quiet(), "python -m bench.serve", *sys.argv[1:]]),
        **machine.facts("cpu"),
        "load_average": round(os.getloadavg()[0], 1),
        "found": found,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")


async def latency(precision: str, scale: int, clients: int) -> dict[str, Any]:
    """Seconds until each of ``clients`` has its tile of 256 pixels: cold, then with features."""
    samples = np.tile(np.asarray(PIL.Image.open(PICTURE)), (2, 2, 1))
    view = Upscaler(device="cpu", precision=precision).open(samples)
    app = make_app([Picture("coffee", view)], hosts=["*"])
    step = TILE * 64 // scale
    places = [(0, 0), (step, 0), (0, step), (step, step)][:clients]
    found: dict[str, Any] = {"precision": precision, "scale": scale, "clients": clients}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
        # Another name of the same quality is decoded again, with the features kept.
        for kind, quality in (("bicubic", "bicubic"), ("cold", "default"), ("warm", "color")):
            start = time.perf_counter()
            cpu = time.process_time()

            async def ask(x: int, y: int, quality: str = quality, start: float = start) -> float:
                url = f"/iiif/coffee@64/{x},{y},{step},{step}/{TILE},{TILE}/0/{quality}.png"
                (await client.get(url)).raise_for_status()
                return time.perf_counter() - start

            seconds = await asyncio.gather(*(ask(*place) for place in places))
            found[kind] = {
                "mean_seconds": round(sum(seconds) / clients, 3),
                "most_seconds": round(max(seconds), 3),
                "cpu_seconds_per_tile": round((time.process_time() - cpu) / clients, 3),
            }
    view.close()
    print(json.dumps(found), flush=True)
    return found


def load(clients: int, seconds: float) -> dict[str, Any]:
    """What clients that ask for random tiles, one after the other, are answered in that time."""
    command = [sys.executable, "-m", "diinn_fast", "serve", PICTURE, "--port", "8765"]
    bounds = ["--max-cache", "64MiB", "--max-features", "256MiB"]
    with subprocess.Popen([*map(str, command), *bounds], cwd=machine.ROOT) as server:
        try:
            return asyncio.run(_load(psutil.Process(server.pid), clients, seconds))
        finally:
            server.terminate()


async def _load(server: psutil.Process, clients: int, seconds: float) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    qualities: Counter[str] = Counter()
    waits: list[float] = []
    limits = httpx.Limits(max_connections=clients)
    base = "http://127.0.0.1:8765"
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=600) as client:
        while True:
            try:
                await client.get("/pictures.json")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.5)
        before = server.memory_info().rss
        end = time.perf_counter() + seconds

        async def visit(number: int) -> None:
            draw = random.Random(number)
            while time.perf_counter() < end:
                step = 2 ** draw.randrange(0, 6) * TILE
                x = draw.randrange(0, 300 * 64 // step) * step
                y = draw.randrange(0, 200 * 64 // step) * step
                quality = draw.choice(["bicubic"] * 3 + ["default"])
                region = f"{x},{y},{step},{step}"
                start = time.perf_counter()
                url = f"/iiif/coffee@64/{region}/{TILE},{TILE}/0/{quality}.png"
                statuses[(await client.get(url)).status_code] += 1
                qualities[quality] += 1
                waits.append(time.perf_counter() - start)

        most = before
        visits = [asyncio.ensure_future(visit(n)) for n in range(clients)]
        while time.perf_counter() < end:
            most = max(most, server.memory_info().rss)
            await asyncio.sleep(0.2)
        for task in visits:  # what waits yet is given up, as by a client that leaves
            task.cancel()
        ended = await asyncio.gather(*visits, return_exceptions=True)
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": dict(qualities),
        "statuses": dict(statuses),
        "errors": [repr(error) for error in ended if isinstance(error, Exception)],
        "median_wait_seconds": round(sorted(waits)[len(waits) // 2], 3),
        "longest_wait_seconds": round(max(waits), 3),
        "resident_mib_at_start": before >> 20,
        "resident_mib_at_most": most >> 20,
        "bounds_mib": {"answers": 64, "features": 256},
    }


if __name__ == "__main__":
    main()
