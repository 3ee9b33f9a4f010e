"""What an upscale will need and what is free, so that too much is refused before it is tried."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from diinn_fast import files
from diinn_fast.encoders import cost_of
from diinn_fast.errors import UpscaleError
from diinn_fast.fused import STRIP_BYTES
from diinn_fast.host import free_bytes

MIB = 1 << 20

CONSTANT_BYTES = 2 * STRIP_BYTES
"""Content of the decoder's strip and its temporaries."""

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Options of glibc's mallopt: free bytes at the heap's top, and bytes of an allocation, from which
on memory is given back when it is freed.
"""


class TooLargeError(UpscaleError):
    """It does not fit in memory in one piece."""


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
    """As `files.parse_size`, with an UpscaleError."""
    try:
        return files.parse_size(text)
    except ValueError as error:
        raise UpscaleError(f"memory {error}") from None


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


@contextmanager
def device_memory_within(bound: int | None, device: torch.device) -> Iterator[None]:
    """Within, PyTorch takes no more than ``bound`` bytes of a CUDA device, what it holds already
    included: it fails as if the device had no more, rather than pass the bound. Afterwards as
    before.
    """
    if bound is None or device.type != "cuda":
        yield
        return
    before = torch.cuda.get_per_process_memory_fraction(device)
    share = bound / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, before), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


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
    return free_bytes()
