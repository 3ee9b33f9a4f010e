"""Milliseconds from the click to the first paint of the page: ``python -m bench.first_paint``.

Each load is by a browser of its own, so that nothing is in its cache; the server is up and idle.
Needs Chromium. On a busy machine, `chrt -r 5` in front gives server and browser the cores as an
idle machine would. Writes bench/results/MACHINE/first_paint.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import machine
from bench.browser import Browser

PICTURE = machine.ROOT / "examples" / "coffee.png"

TIMES = """
(async () => {
  const shown = await new Promise((resolve) => {
    const told = (list) => resolve(list.getEntries().find((e) => e.id === "first"));
    new PerformanceObserver(told).observe({ type: "largest-contentful-paint", buffered: true });
  });
  const tiles = performance.getEntriesByType("resource").filter((e) => e.name.includes("bicubic"));
  return {
    page: performance.getEntriesByType("navigation")[0].responseEnd,
    paint: shown.startTime,
    tile: Math.min(...tiles.map((e) => e.responseEnd)),
  };
})()
"""
"""When the page had arrived, when its bicubic picture was on the screen, and when the first tile of
bicubic was there.
"""


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=9)
    options = parser.parse_args()
    loads = []
    with serving(PICTURE) as address:
        for _ in range(options.loads):
            with Browser(1280, 800) as page:
                time.sleep(1)  # it has started
                page.open(address)
                page.wait("typeof shown !== 'undefined' && shown?.bicubic.getFullyLoaded()", 60)
                loads.append({k: round(v) for k, v in page.run(TIMES).items()})
            print(json.dumps(loads[-1]), flush=True)
            time.sleep(4)  # the server ends the sharp tile that it is at
    found = {
        "command": " ".join([*machine.quiet(), "python -m bench.first_paint", *sys.argv[1:]]),
        **machine.facts("cpu"),
        "load_average": round(os.getloadavg()[0], 1),
        "milliseconds": loads,
        "median": {key: statistics.median(load[key] for load in loads) for key in loads[0]},
    }
    target = machine.ROOT / "bench" / "results" / machine.slug("cpu") / "first_paint.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(found["median"])


@contextmanager
def serving(*words: str | Path) -> Iterator[str]:
    """The address of `diinn-fast serve` with these arguments, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "diinn_fast", "serve", *map(str, words), "--port", str(port)]
    with subprocess.Popen(command, cwd=machine.ROOT, stdout=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}/"
            while not _is_up(address):
                if server.poll() is not None:
                    raise RuntimeError(f"{command} ended with {server.returncode}")
                time.sleep(0.2)
            time.sleep(2)  # its first paint is prepared
            yield address
        finally:
            server.terminate()


def _is_up(address: str) -> bool:
    try:
        urllib.request.urlopen(address).close()
    except urllib.error.URLError:
        return False
    return True


if __name__ == "__main__":
    main()
