"""The tiles that ``tune`` found fastest on this machine: one small file per device in the user's
cache folder.

A decode only reads it, once per process and device; without a file, or with one that does not fit,
the tables of ``tiles`` serve. No file can change a result: only ``tiles.candidates`` are accepted,
which sum in the same order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from diinn_fast.files import cache_folder

from . import tiles
from .tiles import Tile

log = logging.getLogger("diinn_fast")


def architecture(device: torch.device) -> int:
    """10 * major + minor of a CUDA device; 0 where kernels are interpreted."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement holds for: the device, the compiler, and the kernels' source."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.name.encode() + path.read_bytes())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return {
        "device": name,
        "architecture": architecture(device),
        "triton": triton.__version__,
        "kernels": source.hexdigest()[:16],
    }


def path(device: torch.device) -> Path:
    """The file of a device's tuned tiles."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine(device)["device"].lower()).strip("-")
    return cache_folder() / f"tiles-{slug}.json"


def name(form: str, dtype: torch.dtype, width: int, keep: bool) -> str:
    """``content-float16-256``; with ``-keep`` the forward inside a backward."""
    return "-".join([form, str(dtype).removeprefix("torch."), str(width)] + ["keep"] * keep)


@cache
def read(device: torch.device) -> dict[str, Tile]:
    """The tuned tiles of a device by name; empty, with one line in the log, if the file is damaged
    or out of date.
    """
    try:
        file = path(device)
        content = json.loads(file.read_text())
        found = {key: _tile(values) for key, values in content["tiles"].items()}
        # Tiles of another GPU, Triton or kernel may be slow, or not compile.
        if content["machine"] != machine(device):
            log.warning(
                "tuned tiles in %s are of another version, the defaults serve: tune again", file
            )
            return {}
    except (FileNotFoundError, RuntimeError):  # not tuned; no home folder
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("tuned tiles in %s cannot be read, the defaults serve: %r", file, error)
        return {}
    return found


def _tile(values: list[Any]) -> Tile:
    *numbers, paired, nested = values
    ty, tx, bn, stages, warps = map(int, numbers)
    return Tile(ty, tx, bn, stages, warps, bool(paired), bool(nested))


@cache
def tile(
    form: str, device: torch.device, dtype: torch.dtype, width: int, keep: bool = False
) -> Tile:
    """The tile with which a kernel is launched."""
    arguments = form, architecture(device), dtype, width, keep
    best = read(device).get(name(form, dtype, width, keep))
    return best if best in tiles.candidates(*arguments) else tiles.choose(*arguments)


def write(device: torch.device, found: dict[str, Tile]) -> Path:
    """Store tiles, all at once or not at all; those of earlier tuning stay if they still hold."""
    # Read anew: another process may have tuned meanwhile.
    file = path(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    forget()
    found = read(device) | found
    content = {
        "machine": machine(device),
        "tiles": {key: list(values) for key, values in sorted(found.items())},
    }
    # A reader finds the old file or the new one, never a part.
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(file)
    forget()
    return file


def forget() -> None:
    """Read the file again at the next launch."""
    read.cache_clear()
    tile.cache_clear()
