"""Memory of this machine: what is free for this process, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def free_bytes() -> int:
    """Bytes that this process may still take: of the system, and within its control groups.

    Containers and batch systems limit memory by control groups (versions 1 and 2), far below what
    the machine has; each group above the process's own counts. File caches count as free.
    """
    return int(min([psutil.virtual_memory().available, *_free_in_groups()]))


def resident_bytes() -> int:
    """Bytes of physical memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def _free_in_groups() -> Iterator[int]:
    """What each limit above this process leaves; nothing where there are no control groups."""
    for folder, version in _own_groups():
        with suppress(OSError, ValueError, KeyError):
            yield _left_in(folder, version)


def _own_groups() -> Iterator[tuple[Path, int]]:
    """Folders of the process's memory groups with their version, each one's parents included."""
    lines = [""]
    with suppress(OSError):
        lines = _OWN_GROUPS.read_text().splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            yield from ((folder, 2) for folder in _and_parents(_GROUPS, group))
        elif "memory" in controllers.split(","):
            yield from ((folder, 1) for folder in _and_parents(_GROUPS / "memory", group))


def _and_parents(root: Path, group: str) -> Iterator[Path]:
    """`root/group` up to `root`: a container sees its own group as the root."""
    path = PurePosixPath(group.strip("/"))
    yield from (root / folder for folder in (path, *path.parents))


def _left_in(folder: Path, version: int) -> int:
    """Limit of a group less what is used, without the caches that the system would give back."""
    if version == 2:
        limit, used, cache = "memory.max", "memory.current", "inactive_file"
    else:
        limit, used, cache = (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        )
    most = int((folder / limit).read_text())  # "max" is no number: no limit
    now = int((folder / used).read_text())
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(0, most - now + int(statistics.get(cache, 0)))
