"""Outputs in a memory bound: peak memory of many runs, what tiling and writing cost, and long runs.

    python -m bench.bounded peaks                   # 18 runs of small pictures under bounds
    python -m bench.bounded cost                    # against pure decoding in memory
    python -m bench.bounded long out.tif out.zarr   # 2048x2048 to 16384x16384 within 1.5 GiB

Each run is a process of its own whose peak is the kernel's high-water mark of resident memory, read
by that process itself. Results go to results/<device>/bounded-<what>.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from bench.machine import ROOT, facts, slug
from bench.memory import status_bytes

MIB = 1 << 20
LR = (320, 400)
FILES = ("a.npy", "a.tif", "a.zarr")
"""What `cost` enlarges, into what."""
IMPORT = (
    "import torch; print(*(line.split()[1] for line in open('/proc/self/status') if "
    "line.startswith('VmHWM')))"
)


def photo(height: int, width: int) -> np.ndarray:
    """examples/coffee.png mirrored to any size, with noise so that it does not compress like a
    pattern.
    """
    tile = np.asarray(PIL.Image.open(ROOT / "examples" / "coffee.png").convert("RGB"))
    tile = np.concatenate([tile, tile[::-1]])
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    repeats = -(-height // tile.shape[0]), -(-width // tile.shape[1]), 1
    noise = np.random.default_rng(0).integers(-3, 4, (height, width, 1), np.int16)
    result: np.ndarray = np.clip(np.tile(tile, repeats)[:height, :width] + noise, 0, 255).astype(
        np.uint8
    )
    return result


def save_photo(path: Path, height: int, width: int) -> None:
    """Write a picture of that size with a photograph's detail."""
    PIL.Image.fromarray(photo(height, width)).save(path)


def child(case: dict[str, Any]) -> dict[str, Any]:
    """One render in this process; runs in a fresh one."""
    from diinn_fast import DIINN
    from diinn_fast.inference import Upscaler, rendering

    model = case.get("weights")
    if model is None:
        torch.manual_seed(0)
        model = DIINN(mode=case.get("mode", 3), encoder=case["encoder"]).eval()
    start = time.perf_counter()
    upscaler = Upscaler(model, device="cpu", precision="fp32")
    spec = rendering.prepare(
        upscaler, case["picture"], case["out"], scale=case["scale"], max_memory=case["bound"]
    )
    plan = rendering.make_plan(spec)
    predicted = rendering.predicted_peak(spec, plan)
    encoded = plan.encoded_pixels(upscaler.model.decoder) / (spec.lr[0] * spec.lr[1])
    rendering.run(spec, overwrite=True)
    seconds = time.perf_counter() - start
    peak = status_bytes("VmHWM")
    return {
        "peak": peak,
        "bound": case["bound"],
        "predicted": predicted,
        "held": peak <= case["bound"],
        "tiles": list(plan.tiles),
        "encoded": encoded,
        "seconds": seconds,
        "pixels": spec.hr[0] * spec.hr[1],
    }


def fresh(case: dict[str, Any], what: str = "child") -> dict[str, Any]:
    """`child` (or `times`) in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.bounded", what, json.dumps(case)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{case} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def imported_bytes() -> int:
    """Peak memory of a process that imports torch and does nothing."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    return int(done.stdout) * 1024


def peaks(folder: Path) -> dict[str, Any]:
    """Peak memory against its bound, of several pictures and encoders."""
    imported = imported_bytes()
    edsr = imported + 400 * MIB
    gib = 1024 * MIB
    cases = [
        ("edsr-baseline", (500, 540), 1.3, edsr, "a.npy"),
        ("edsr-baseline", (500, 540), 1.1, edsr, "a.tif"),
        ("edsr-baseline", (480, 540), 1.5, edsr, "a.zarr"),
        ("edsr-baseline", (200, 300), 4, edsr, "a.png"),
        ("edsr-baseline", (400, 500), 1.5, edsr, "a.ome.zarr"),
        ("edsr-baseline", (30, 9000), 1.2, edsr, "a.tif"),
        ("edsr-baseline", (700, 700), 1, edsr + 200 * MIB, "a.tif"),
        ("edsr-baseline", (800, 850), 1, gib, "a.zarr"),
        ("edsr-baseline", (1000, 1200), 0.5, int(1.5 * gib), "a.png"),
        ("edsr-baseline", (1300, 1300), 0.3, 2 * gib, "a.npy"),
        ("edsr-baseline", (1000, 1100), 0.5, edsr, "a.tif"),  # six tiles
        ("carn", (330, 400), 1, edsr, "a.npy"),
        ("carn", (300, 300), 1.5, gib, "a.tif"),
        ("rdn", (100, 130), 1.5, gib, "a.npy"),
        ("rdn", (60, 200), 2, gib, "a.zarr"),
        ("rdn", (160, 180), 1, gib, "a.tif"),
        ("rdn", (130, 140), 1, int(1.5 * gib), "a.png"),
        ("rdn", (24, 3000), 0.5, 448 * MIB, "a.tif"),  # near the least that works
        ("rdn", (24, 12000), 0.5, gib, "a.npy"),  # the smallest that must be cut
        ("rdn", (160, 180), 0.5, 2 * gib, "a.zarr"),
    ]
    runs = []
    for encoder, size, scale, bound, name in cases:
        picture = folder / "in.png"
        out = folder / name
        save_photo(picture, *size)
        case = {
            "encoder": encoder,
            "picture": str(picture),
            "out": str(out),
            "scale": scale,
            "bound": bound,
        }
        run = {"encoder": encoder, "lr": list(size), "scale": scale, "file": name, **fresh(case)}
        runs.append(run)
        mib = {name: f"{run[name] / MIB:.0f}" for name in ("peak", "predicted", "bound")}
        print(
            f"{encoder:14} {size} x{scale} {name:10} tiles {run['tiles']} {mib} MiB "
            f"{'' if run['held'] else 'EXCEEDED'} {run['seconds']:.0f} s",
            flush=True,
        )
    return {"import_torch": imported, "runs": runs, "all_held": all(run["held"] for run in runs)}


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds of the clock, of this process's CPU), the latter less disturbed on a busy
    machine.
    """
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def times(case: dict[str, Any]) -> dict[str, list[float]]:
    """(Seconds of the clock, of CPU) in this process: in memory if there is no bound, else into
    each kind of file.

    Not of warming up and planning. ``encoded``: LR pixels encoded, of those that there are.
    """
    from diinn_fast.inference import Upscaler, rendering
    from diinn_fast.model import DEFAULT_WEIGHTS

    picture = photo(*LR)
    upscaler = Upscaler(DEFAULT_WEIGHTS, device="cpu", precision="fp32")
    if case["bound"] is None:
        rgb = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        upscaler(picture[:64, :64], scale=2)
        whole = timed(lambda: upscaler(picture, scale=4))
        return {"memory": [*whole], "encode": [*timed(lambda: upscaler.encode(rgb))]}
    found = {}
    for name in FILES:
        spec = rendering.prepare(
            upscaler, picture, Path(case["folder"]) / name, scale=4, max_memory=case["bound"]
        )
        plan = rendering.make_plan(spec)
        encoded = plan.encoded_pixels(upscaler.model.decoder) / (LR[0] * LR[1])
        found[name] = [*timed(lambda: rendering.run(spec, overwrite=True)), encoded]  # noqa: B023
    return found


def cost(folder: Path) -> dict[str, Any]:
    """Rendering within bounds against `upscale` in memory, which writes nothing; alternately,
    medians of three.

    In processes of their own, for a bound changes how memory is allocated from then on.
    """
    bounds = (None, "450MiB", "640MiB")
    runs = [
        {str(b): fresh({"bound": b, "folder": str(folder)}, "times") for b in bounds}
        for _ in range(3)
    ]
    found: dict[str, Any] = {}

    def median(bound: str, name: str, n: int) -> float:
        return float(sorted(run[bound][name][n] for run in runs)[1])

    for bound, name in itertools.product(("450MiB", "640MiB"), FILES):
        entry = found.setdefault(bound, {})[name] = {"encoded": median(bound, name, 2)}
        for n, clock in enumerate(("clock", "cpu")):
            memory = median("None", "memory", n)
            encode = median("None", "encode", n)
            render = median(bound, name, n)
            over = entry[f"over_decoding_{clock}"] = (
                render - (entry["encoded"] - 1) * encode
            ) / memory - 1
            print(
                f"{bound} {name} x4, {clock}: in memory {memory:.2f} s, rendered {render:.2f} "
                "s, encoded "
                f"{entry['encoded']:.2f} times, beyond the halo {100 * over:+.1f} %",
                flush=True,
            )
    return {**found, "lr": list(LR), "seconds_clock_and_cpu_and_encoded": runs}


def long(outputs: list[str]) -> dict[str, Any]:
    """One large picture into each of the outputs: time and peak."""
    runs = []
    for out in outputs:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "in.png"
            save_photo(picture, 2048, 2048)
            bound = int(1.5 * 1024 * MIB)
            case = {
                "weights": "edsr-baseline-mode3",
                "picture": str(picture),
                "out": out,
                "scale": 8,
                "bound": bound,
            }
            run = {
                "lr": [2048, 2048],
                "hr": [16384, 16384],
                "file": "".join(Path(out).suffixes),
                **fresh(case),
            }
        runs.append(run)
        print(
            f"{out}: peak {run['peak'] / MIB:.0f} MiB, {run['seconds']:.0f} s, tiles "
            f"{run['tiles']}",
            flush=True,
        )
    return {"runs": runs}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["peaks", "cost", "long", "child", "times"])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    if options.what in ("child", "times"):
        work = {"child": child, "times": times}[options.what]
        print(json.dumps(work(json.loads(options.arguments[0]))))
        return
    folder = Path(tempfile.mkdtemp(prefix="bounded-"))
    try:
        found = (
            long(options.arguments)
            if options.what == "long"
            else {"peaks": peaks, "cost": cost}[options.what](folder)
        )
    finally:
        shutil.rmtree(folder)
    target = ROOT / "bench" / "results" / slug("cpu") / f"bounded-{options.what}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {**facts("cpu"), "command": f"python -m bench.bounded {options.what}", **found}
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
