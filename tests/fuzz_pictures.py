"""Damaged pictures of every format through the console program: each ends in one sentence.

    python -m tests.fuzz_pictures --seconds 600
    python -m tests.fuzz_pictures --seed 7 --files 1

A file is made, some of its bytes are changed, cut off, doubled or put elsewhere, and it is
upscaled, in memory or piece by piece. Allowed are a picture, and one sentence of ours with exit
code 1 or 2: no traceback, no error that the program does not know, nothing under the output's name
after a failure, and no more than `SECONDS` of processor time. A failure prints the seed that
repeats it alone; exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import tifffile
import torch
import zarr

from diinn_fast.cli import main as command
from diinn_fast.inference import engine
from diinn_fast.inference.rendering import planning
from tests.helpers.small_models import picture, small_model

SECONDS = 30
EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1")
SENTENCE = re.compile(r"diinn-fast: .+")


def tiff(**options: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        channels = int(str(options.pop("channels", 3)))
        samples = picture(20, 24, channels)
        if options.pop("floats", False):
            samples = (samples / 255).astype(np.float32)
        if options.get("planarconfig") == "separate":
            samples = samples.transpose(2, 0, 1)
        kind = "rgb" if channels > 2 else "minisblack"
        stored = samples if channels > 1 else samples[..., 0]
        tifffile.imwrite(path, stored, photometric=kind, metadata=None, **options)

    return make


def pillow(mode: str, **options: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        exif = PIL.Image.Exif()
        exif[271] = "ACME"
        exif[274] = 6
        image = PIL.Image.fromarray(picture(20, 24, 4)).convert(mode)
        image.save(path, exif=exif, **options) if path.suffix in (
            *(".jpg", ".png", ".webp"),
        ) else image.save(path, **options)

    return make


def array(path: Path) -> None:
    np.save(path, picture(20, 24, 3))


def store(path: Path) -> None:
    given = zarr.create_array(str(path), shape=(20, 24, 3), chunks=(16, 16, 3), dtype="uint8")
    given[:] = picture(20, 24, 3)
    given.attrs["diinn_fast"] = {"complete": True, "metadata": {"resolution": [300, 300, "inch"]}}


GEO = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (42113, 2, 2, "0", True)]
KINDS: list[tuple[str, Callable[[Path], None]]] = [
    ("x.png", pillow("RGB", dpi=(300, 300))),
    ("x.png", pillow("P", transparency=3)),
    ("x.png", pillow("LA")),
    ("x.jpg", pillow("RGB", comment="hello", dpi=(72, 72))),
    ("x.webp", pillow("RGBA")),
    ("x.webp", pillow("RGB", lossless=True)),
    ("x.gif", pillow("P")),
    ("x.bmp", pillow("RGB")),
    ("x.ppm", pillow("RGB")),
    ("x.jp2", pillow("RGB")),
    ("x.avif", pillow("RGB")),
    ("x.tif", lambda path: tiff()(path)),
    ("x.tif", lambda path: tiff(compression="zlib", predictor=2)(path)),
    ("x.tif", lambda path: tiff(compression="lzw", tile=(16, 16))(path)),
    ("x.tif", lambda path: tiff(compression="packbits", planarconfig="separate")(path)),
    ("x.tif", lambda path: tiff(channels=1, extratags=GEO)(path)),
    ("x.tif", lambda path: tiff(channels=5, extrasamples=[0, 0], planarconfig="contig")(path)),
    ("x.tif", lambda path: tiff(floats=True, compression="zlib", bigtiff=True)(path)),
    ("x.tif", lambda path: pillow("RGB", compression="jpeg")(path)),
    ("x.npy", array),
    ("x.zarr", store),
]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A file with a few changes, mostly near its beginning, where formats say what they are."""
    broken = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 12])):
        end = max(1, len(broken) if chance.random() < 0.5 else min(len(broken), 300))
        place = chance.randrange(end)
        how = chance.randrange(6)
        if how == 0 and broken:
            broken[place % len(broken)] ^= 1 << chance.randrange(8)
        elif how == 1:
            broken[place : place + 1] = bytes([chance.randrange(256)])
        elif how == 2:
            broken[place : place + 4] = chance.choice(EXTREMES)
        elif how == 3:
            del broken[place : place + chance.randrange(1, 40)]
        elif how == 4:
            broken[place:place] = broken[place : place + chance.randrange(1, 40)]
        else:
            del broken[len(broken) - chance.randrange(len(broken) // 2 + 1) :]
    return bytes(broken)


def try_one(seed: int) -> tuple[str, str]:
    """(what became of one file, what must not be)."""
    chance = random.Random(seed)
    name, make = chance.choice(KINDS)
    shutil.rmtree("work", ignore_errors=True)
    os.mkdir("work")
    source = Path("work", name)
    make(source)
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    chosen = chance.choice(files)
    chosen.write_bytes(damaged(chosen.read_bytes(), chance))
    out = Path("work", chance.choice(["out.png", "out.tif"]))
    words = ["upscale", str(source), str(out), "--scale", "1.3", "--device", "cpu"]
    words += chance.choice([[], ["--max-memory", "4GiB"], ["--bands", "each"], ["--range", "auto"]])
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(20 * SECONDS)
    try:
        with stderr_in(Path("stderr")), contextlib.redirect_stdout(io.StringIO()):
            code = command(words)
    except BaseException as error:
        return name, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return name, fault(code, Path("stderr").read_text(), out)


@contextlib.contextmanager
def stderr_in(path: Path) -> Iterator[None]:
    """What is written to stderr within the block, by libraries in C too."""
    before = os.dup(2)
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def fault(code: int, said: str, out: Path) -> str:
    """What must not be; empty if all is well."""
    lines = said.splitlines()
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "--debug shows where" in said or "Traceback" in said:
        return said
    if not all(SENTENCE.fullmatch(line) for line in lines):
        return f"noise on stderr: {said}"
    if code and not lines:
        return "it failed without a word"
    if code and out.exists():
        return f"it failed, and there is an output: {said}"
    return "" if not code or not out.exists() else said


def too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time, or hanging")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="stop after this time")
    parser.add_argument("--files", type=int, help="try so many files instead")
    parser.add_argument("--seed", type=int, help="of the first file (default: from the clock)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = small_model()
    engine.load_weights = lambda *_: model
    planning.measure_rates = lambda *_: (1e-6, 1e-6)  # type: ignore[assignment]
    signal.signal(signal.SIGPROF, too_slow)
    signal.signal(signal.SIGALRM, too_slow)
    seed = int(time.time() * 1000) % 2**31 if options.seed is None else options.seed
    ends = time.monotonic() + options.seconds
    tried: Counter[str] = Counter()
    faults = 0
    with tempfile.TemporaryDirectory(prefix="diinn-fuzz-") as folder:
        os.chdir(folder)
        while tried.total() < options.files if options.files else time.monotonic() < ends:
            name, wrong = try_one(seed)
            tried[name] += 1
            if wrong:
                faults += 1
                print(f"seed {seed}, {name}: {wrong}", flush=True)
            seed += 1
        os.chdir("/")
    print(f"{tried.total()} files ({dict(tried)}), {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
