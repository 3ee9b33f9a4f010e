"""Read every picture of some folders and compare it with what independent readers make of it.

    python -m tests.run_corpus PATH [PATH ...]

Meant for collections of public test images (PngSuite, and those of Pillow, libtiff, libvips,
image-rs, wuffs), which are not part of this repository. Each file is read by `read_image`, by
libvips, by tifffile if it is a TIFF, and by Pillow, which most of our formats use themselves; in a
process of its own, which other readers may crash, or let take all memory. Exit code 1 if a file is
read differently from all independent readers, or fails without an `ImageError`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile

from diinn_fast.errors import ImageError
from diinn_fast.formats import Image, read_image
from diinn_fast.formats.pillow import upright

try:
    import pyvips
except ImportError:
    pyvips = None

SECONDS = 20
"""After which a reader is given up."""

MOST_MEMORY = 6 * 2**30
"""Of the process that reads one file."""

LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".jp2", ".j2k", ".j2c")
"""Decoders of these may round differently: by `LEVELS` on average."""

LOSSY_IN_TIFF = (6, 7, 33003, 33005, 33007, 34712, 34892, 50001)
"""JPEG, JPEG 2000 and WebP, as a TIFF's tag Compression numbers them."""

LEVELS = 2.0

Reader = Callable[[Path], np.ndarray]
"""Samples [h, w, c] in [0, 1] of an upright picture; any error if it cannot."""


def ours(path: Path) -> np.ndarray:
    image: Image = read_image(path, any_range=True)
    planes = [image.rgb[:1] if image.grey else image.rgb]
    planes += [] if image.alpha is None else [image.alpha]
    return np.concatenate([plane.numpy() for plane in planes]).transpose(1, 2, 0)


def by_libvips(path: Path) -> np.ndarray:
    # A reader that complains of a file is no witness.
    picture = pyvips.Image.new_from_file(str(path), fail_on="error").autorot()
    if picture.interpretation in ("cmyk", "lab", "labs", "scrgb", "xyz"):
        raise ValueError("another colour space")
    return as_unit(np.atleast_3d(picture.numpy()))


def by_tifffile(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        samples = page.asarray()
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            table = np.asarray(page.colormap).T
            samples = (table >> 8 if table.max() > 255 else table).astype(np.uint8)[samples]
        elif page.planarconfig == 2 and samples.ndim == 3:
            samples = samples.transpose(1, 2, 0)
        values = np.atleast_3d(samples)
        if page.bitspersample < 8:
            values = values.astype(np.float64) / (2**page.bitspersample - 1)
        unit = as_unit(values)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            unit = 1 - unit
        if tuple(page.extrasamples) == (tifffile.EXTRASAMPLE.ASSOCALPHA,):
            unit[..., :-1] = np.minimum(unit[..., :-1] / np.maximum(unit[..., -1:], 1e-9), 1)
        return upright(unit, page.tags.valueof(274, 1))


def by_pillow(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        turned = PIL.ImageOps.exif_transpose(picture)
        if turned.mode == "1":
            turned = turned.convert("L")
        elif turned.mode in ("P", "PA"):
            turned = turned.convert("RGBA" if turned.has_transparency_data else "RGB")
        elif turned.has_transparency_data and turned.mode in ("L", "RGB"):
            turned = turned.convert(turned.mode + "A")
        return as_unit(np.atleast_3d(np.asarray(turned)))


def as_unit(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == bool:
        return samples.astype(np.float64)
    kind = samples.dtype.kind
    top = np.iinfo(samples.dtype).max if kind == "u" else 65535 if kind == "i" else 1
    return samples.astype(np.float64) / top


def readers_of(path: Path) -> dict[str, Reader]:
    """Independent ones, and Pillow last."""
    found: dict[str, Reader] = {}
    if stays_ycbcr(path):
        return {"Pillow": by_pillow}
    if pyvips is not None:
        found["libvips"] = by_libvips
    if is_tiff(path):
        found["tifffile"] = by_tifffile
    return found | {"Pillow": by_pillow}


def equal(found: np.ndarray, other: np.ndarray, path: Path) -> bool:
    """Whether two readers agree: on size, alpha, and all samples."""
    if found.shape[:2] != other.shape[:2]:
        return False
    if not np.array_equal(np.isnan(found), np.isnan(other)):
        return False
    found, other = as_rgba(np.nan_to_num(found)), as_rgba(np.nan_to_num(other))
    difference = np.abs(found - other) * 255
    # What lies under transparent pixels, some decoders clear.
    difference[..., :3] *= (found[..., 3:] > 0) & (other[..., 3:] > 0)
    if is_lossy(path):
        return bool(difference.mean() <= LEVELS)
    # One level: premultiplied colours are rounded, and some readers have 8 bits of 16.
    return bool(difference.max() < 1.01)


def is_lossy(path: Path) -> bool:
    """Whether decoders may round differently."""
    if not is_tiff(path):
        return path.suffix.lower() in LOSSY
    return stored_as(path)[0] in LOSSY_IN_TIFF


def is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def stored_as(path: Path) -> tuple[int, int]:
    """(compression, colour space) of a TIFF, as its tags number them; zeros if it is damaged."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return int(page.compression), int(page.photometric)
    except Exception:
        return 0, 0


def stays_ycbcr(path: Path) -> bool:
    """Whether libvips and tifffile give YCbCr as it is stored."""
    if not is_tiff(path):
        return False
    compression, colours = stored_as(path)
    return colours == tifffile.PHOTOMETRIC.YCBCR and compression not in LOSSY_IN_TIFF


def as_rgba(samples: np.ndarray) -> np.ndarray:
    channels = samples.shape[2]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"{channels} channels")
    colours = samples[..., :3] if channels > 2 else samples[..., :1].repeat(3, 2)
    alpha = samples[..., -1:] if channels in (2, 4) else np.ones_like(samples[..., :1])
    return np.concatenate([colours, alpha], 2)


def turned(found: np.ndarray, path: Path) -> bool:
    """Whether libvips, which looks for EXIF's orientation alone, has the same picture turned."""
    try:
        other = within_time(by_libvips, path)
    except Exception:  # it cannot read the file
        return False
    return any(equal(upright(found, orientation), other, path) for orientation in range(2, 9))


def within_time(read: Reader, path: Path) -> np.ndarray:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        return read(path)
    finally:
        signal.alarm(0)


def judge(path: Path, tell: Callable[[str], None], without: set[str]) -> tuple[str, str]:
    """(what became of a file, more about it); ``tell`` hears which reader comes next."""
    tell("ours")
    warned: list[str] = []
    try:
        with warnings_in(warned):
            found = within_time(ours, path)
    except ImageError as error:
        return "refused", str(error)
    except TimeoutError as error:
        return "given up", str(error)
    except Exception as error:
        return "FAILED", f"{type(error).__name__}: {error}"
    agree: list[str] = []
    differ: list[str] = []
    for name, read in readers_of(path).items():
        if name in without:
            continue
        tell(name)
        try:
            other = within_time(read, path)
            if not other.any():  # libvips gives old JPEG in TIFF so
                continue
            (agree if equal(found, other, path) else differ).append(name)
        except Exception:  # it cannot read the file
            continue
    if set(agree) - {"Pillow"}:
        return "equal to an independent reader", ""
    if differ and set(differ) != {"Pillow"} and agree and turned(found, path):
        return "turned as Pillow does, of XMP or a raw profile", ""
    if differ and set(differ) != {"Pillow"} and warned:
        return "different, as a warning says", warned[0]
    if differ and set(differ) != {"Pillow"}:
        return "DIFFERENT", f"{found.shape}: unlike {', '.join(differ)}, like {agree or 'none'}"
    return ("equal to Pillow alone", "") if agree else ("read by nobody else", f"unlike {differ}")


@contextmanager
def warnings_in(said: list[str]) -> Iterator[None]:
    """Within the block, what our own modules warn of goes into ``said``."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diinn_fast")
    logging.disable(logging.NOTSET)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logging.disable()


def judge_apart(path: Path) -> tuple[str, str]:
    """`judge` in a process of its own; readers that crash it are left out the next time."""
    without: set[str] = set()
    while True:
        said = _lines_of_process(path, without)
        if said[-1].startswith("["):
            verdict, more = json.loads(said[-1])
            return verdict, more
        if said[-1] in ("ours", *without):
            return "FAILED", f"the process died ({said[-1]})"
        without.add(said[-1])


def _lines_of_process(path: Path, without: set[str]) -> list[str]:
    answer, question = os.pipe()

    def tell(line: str) -> None:
        os.write(question, f"{line}\n".encode())

    if (child := os.fork()) == 0:
        try:
            os.close(answer)
            resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
            tell(json.dumps(judge(path, tell, without)))
        finally:
            os._exit(0)
    os.close(question)
    with open(answer, encoding="utf-8") as lines:
        said = lines.read().splitlines()
    os.waitpid(child, 0)
    return said


def reason(message: str, path: Path) -> str:
    """A refusal without what differs from file to file, for counting."""
    text = message.replace(str(path), "X").split(": ")[0]
    return re.sub(r"\d[\d,.]*", "N", text)


def files_in(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in files if file.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--most-bytes", type=int, default=2**20, help="of files (default: 1 MiB)")
    parser.add_argument("-v", "--verbose", action="store_true", help="also why files are refused")
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with suppress(KeyboardInterrupt):  # the files until then are counted
        for path in files_in(options.paths):
            if path.stat().st_size > options.most_bytes:
                counts["left out as too large"] += 1
                continue
            verdict, more = judge_apart(path)
            counts[verdict] += 1
            if verdict == "refused":
                reasons[reason(more, path)] += 1
            if verdict.isupper() or (options.verbose and more):
                print(f"{verdict}: {path}: {more}", flush=True)
    out = io.StringIO()
    print(f"{sum(counts.values())} files", file=out)
    for what, count in [*counts.most_common(), *reasons.most_common()]:
        print(f"{count:6} {what}", file=out)
    sys.stdout.write(out.getvalue())
    return 1 if counts["DIFFERENT"] or counts["FAILED"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
