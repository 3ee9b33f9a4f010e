"""Several processes on one output, as started by ``torchrun``: tile assignment, and detection of
dead processes.

Processes exchange no tensors, only short messages through the key-value store by which
torch.distributed rendezvous: the plan, a counter from which each takes its next tile, and signs of
life. That works alike beside gloo and NCCL, on any device, and needs no process group.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from diinn_fast.errors import UnfinishedError

Item = TypeVar("Item")

SILENCE = 30.0
"""Seconds without a sign of life after which a process counts as dead."""
START = 300.0
"""Seconds that processes wait for the first one to make the plan."""


class Group(Protocol):
    """The processes that share the work.

    Attributes:
        rank: number of this one; 0 speaks for all.
        world: how many there are.
    """

    rank: int
    world: int

    def broadcast(self, message: dict[str, Any]) -> None:
        """What the first process says to the others."""

    def receive(self) -> dict[str, Any]:
        """What the first process said, in the others."""

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """Items that no other process gets."""

    def finish(self) -> None:
        """Say that this process has done its share; in the first one, return when all have."""

    def close(self) -> None:
        """Leave the group."""


class SingleProcess:
    """The only process."""

    rank = 0
    world = 1

    def broadcast(self, message: dict[str, Any]) -> None:
        """Nobody listens."""

    def receive(self) -> dict[str, Any]:
        """Nobody speaks."""
        raise NotImplementedError

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """All of them."""
        yield from items

    def finish(self) -> None:
        """There is nobody to wait for."""

    def close(self) -> None:
        """There is nothing to leave."""


class TorchrunGroup:
    """One of several processes. ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT`` say
    which and where.
    """

    def __init__(self) -> None:
        from torch import distributed  # half a second that one process need not spend

        try:
            found = next(iter(distributed.rendezvous("env://", timeout=timedelta(seconds=START))))
        except (RuntimeError, ValueError) as error:
            raise UnfinishedError(
                f"the processes cannot find each other ({error}): start them by torchrun"
            ) from error
        self._store, self.rank, self.world = found
        self._store.set_timeout(timedelta(seconds=START))
        self._closing = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()

    def broadcast(self, message: dict[str, Any]) -> None:
        """See `Group`."""
        self._store.set("message", json.dumps(message))

    def receive(self) -> dict[str, Any]:
        """See `Group.receive`."""
        try:
            result: dict[str, Any] = json.loads(self._store.get("message"))
            return result
        except RuntimeError as error:
            raise UnfinishedError(
                f"process {self.rank} heard nothing from process 0: run it again with --resume"
            ) from error

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """See `Group`."""
        while (n := self._take()) < len(items):
            yield items[n]

    def _take(self) -> int:
        try:
            return int(self._store.add("taken", 1) - 1)
        except RuntimeError as error:
            raise UnfinishedError("process 0 is gone: run it again with --resume") from error

    def finish(self) -> None:
        """See `Group.finish`."""
        self._store.set(f"finished/{self.rank}", "yes")
        if self.rank > 0:
            return
        seen: dict[int, tuple[int, float]] = {}
        waiting = set(range(1, self.world))
        while waiting:
            # A process that neither finishes nor beats has died: waiting longer would be for ever.
            for rank in sorted(waiting):
                if self._store.check([f"finished/{rank}"]):
                    waiting.discard(rank)
                    continue
                beat = self._store.add(f"beat/{rank}", 0)
                now = time.monotonic()
                if seen.get(rank, (-1, now))[0] != beat:
                    seen[rank] = beat, now
                elif now - seen[rank][1] > SILENCE:
                    raise UnfinishedError(f"process {rank} has died: run it again with --resume")
            time.sleep(0.05)

    def _beat(self) -> None:
        while not self._closing.wait(1.0):
            try:
                self._store.add(f"beat/{self.rank}", 1)
            except RuntimeError:
                return  # the store is gone, and with it the first process

    def close(self) -> None:
        """See `Group.close`."""
        self._closing.set()
        self._pulse.join(5.0)


def torchrun_started() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ["WORLD_SIZE"]) if torchrun_started() else 1


def first_rank() -> bool:
    """Whether this process is alone, or the one that speaks for all."""
    return not torchrun_started() or os.environ["RANK"] == "0"


def join_group() -> Group:
    """This process among those that ``torchrun`` started, or alone."""
    return TorchrunGroup() if torchrun_started() else SingleProcess()
