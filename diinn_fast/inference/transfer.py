"""Numbers on their way between the host and a CUDA device, which computes on meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LATE = 1
"""How many steps the host may be behind a CUDA device."""


def upload(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device. To a CUDA device from pinned memory, so that nobody waits."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host: `wait` gives it. From a CUDA device it is copied by a stream
    of its own into pinned memory; on others it is there at once.
    """

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values.cpu()
            return
        # What makes the values is on the current stream; what comes next there need not wait.
        side = _side_stream(values.device)
        side.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(side):
            self._values = _pinned_like(values)
            self._values.copy_(values, non_blocking=True)
            self._arrived = side.record_event()
        # Their memory is not given to others before they are copied.
        values.record_stream(side)

    def wait(self) -> Tensor:
        """The values, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


class Late:
    """Does what it is given, in order: at once for a CPU, some steps later for a CUDA device, which
    has by then begun the next ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._most = LATE if device.type == "cuda" else 0
        self._waiting: deque[Callable[[], None]] = deque()

    def do(self, step: Callable[[], None]) -> None:
        """This step, when its turn comes."""
        self._waiting.append(step)
        self._keep(self._most)

    def finish(self) -> None:
        """Do what is left."""
        self._keep(0)

    def _keep(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft()()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _pinned_like(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
