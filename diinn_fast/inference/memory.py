"""What an upscale will need and what is free, so that too much is refused before it is tried."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from diinn_fast.decoder import BAND_BYTES
from diinn_fast.encoders import EDSR, RDN
from diinn_fast.inference.errors import UpscaleError

ENCODER_FLOATS = {EDSR: 480, RDN: 4000}
"""Peak floats per LR pixel while encoding: 1.05 x the worst measured (CPU, torch 2.13), features included."""

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
    """Refuse (UpscaleError) an upscale whose peak exceeds the free memory of the host or of the device.

    ``features`` are the encoder's channels, ``item_bytes`` the size of the dtype that it runs in; the output
    is always on the host.
    """
    pixels = lr[0] * lr[1]
    # The decoder holds, at most, a padded copy of the features beside them.
    work = pixels * item_bytes * max(ENCODER_FLOATS.get(type(encoder), 480), 2 * features) + CONSTANT_BYTES
    if device.type == "cpu":
        _compare(work + output_bytes, available_bytes(device), "memory", lr)
    else:
        _compare(output_bytes, available_bytes(torch.device("cpu")), "memory", lr)
        _compare(work, available_bytes(device), f"memory on {device}", lr)


def _compare(needed: int, available: int | None, what: str, lr: tuple[int, int]) -> None:
    if available is not None and needed > available:
        raise UpscaleError(
            f"this upscale of {lr[1]}x{lr[0]} pixels needs about {needed / 2**30:.1f} GiB of {what} and "
            f"{available / 2**30:.1f} GiB are free: choose a smaller size, or crop the picture"
        )


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device, for the CPU within its control group; None where the system does not say."""
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
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(statistics.get("inactive_file", 0)))
    return None
