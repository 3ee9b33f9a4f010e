"""What an upscale will need and what is free, so that too much is refused before it is tried."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from diinn_fast.decoder import BAND_BYTES
from diinn_fast.encoders import cost_of
from diinn_fast.errors import UpscaleError

MIB = 1 << 20


class TooLargeError(UpscaleError):
    """It does not fit in memory in one piece."""


CONSTANT_BYTES = 2 * BAND_BYTES
"""Content of the decoder's band and its temporaries."""


def check_memory(
    encoder: nn.Module,
    features: int,
    lr: tuple[int, int],
    output_bytes: int,
    device: torch.device,
    item_bytes: int,
) -> None:
    """Refuse (UpscaleError) an upscale whose peak exceeds the free memory of the host or of the
    device.

    ``features`` are the encoder's channels, ``item_bytes`` the size of the dtype that it runs in;
    the output is always on the host.
    """
    pixels = lr[0] * lr[1]
    # The decoder holds, at most, a padded copy of the features beside them.
    work = pixels * item_bytes * max(cost_of(encoder).floats, 2 * features) + CONSTANT_BYTES
    if device.type == "cpu":
        _compare(work + output_bytes, available_bytes(device), "memory", lr)
    else:
        _compare(output_bytes, available_bytes(torch.device("cpu")), "memory", lr)
        _compare(work, available_bytes(device), f"memory on {device}", lr)


def parse_size(text: str | int) -> int:
    """Bytes of ``"1.5GiB"``, ``"600MiB"``, ``"800000KiB"`` or a whole number of bytes; UpscaleError
    otherwise.
    """
    found = re.fullmatch(
        r"\s*(\d+(?:\.\d+)?)\s*(?:([KMG])(?:i?B)?|B)?\s*", str(text), re.IGNORECASE
    )
    if found is None:
        raise UpscaleError(f"memory size {text!r} is not understood: write it as 600MiB or 1.5GiB")
    return int(float(found[1]) * 1024 ** " KMG".index((found[2] or " ").upper()))


def size_text(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def resident_bytes() -> int:
    """What this process holds of memory now; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def give_back_freed_memory() -> None:
    """Make glibc return freed memory to the system at once, without which a process holds up to 1.5
    times its needs.

    Allocations from 1 MiB on become mappings of their own. Elsewhere than on Linux nothing happens.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, MIB)
        library.mallopt(M_TRIM_THRESHOLD, MIB // 8)
        library.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, freed allocations of less than 4 MiB, such as weights that strips pack, are used
    again.

    Fresh pages, which the system clears, would take a strip some milliseconds. Not larger ones:
    holes that they leave may not fit the next, and so would add up. Afterwards as
    `give_back_freed_memory`.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, 4 * MIB)
        library.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
    try:
        yield
    finally:
        give_back_freed_memory()


M_MMAP_THRESHOLD = -3
M_TRIM_THRESHOLD = -1


def _compare(needed: int, available: int | None, what: str, lr: tuple[int, int]) -> None:
    if available is not None and needed > available:
        raise TooLargeError(
            f"this upscale of {lr[1]}x{lr[0]} pixels needs about {needed / 2**30:.1f} GiB of "
            f"{what} and "
            f"{available / 2**30:.1f} GiB are free: choose a smaller size, or crop the picture"
        )


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device, for the CPU within its control group; None where the system does not
    say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [limit for limit in (_free_in_system(), _free_in_group()) if limit is not None]
    return min(limits, default=None)


def _free_in_system() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_in_group() -> int | None:
    """What a container's limit (control group version 2) leaves; file caches count as free."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(statistics.get("inactive_file", 0)))
    return None
