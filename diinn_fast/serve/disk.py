"""Answers kept as files, from one start of the server to the next."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from diinn_fast.files import atomic_file, explain

log = logging.getLogger("diinn_fast")

_NAME = re.compile(r"[0-9a-f]{32}\.tile")


class DiskCache:
    """Files of one folder within a bound; the least recently used make room. For any thread.

    Only files of its own kind of name are ever counted or removed. A folder that cannot be written
    is a warning: the server goes on without it.

    Args:
        folder: made if it is not there, readable by its owner alone. Of several servers that use
            one, each keeps to the bound by what it knows of.
        max_bytes: most bytes of all files together.

    Raises:
        OSError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._most = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._warned = False
        self._make_folder()
        for _, name, size in sorted(_tiles_in(folder)):
            self._sizes[name] = size
        self._bytes = sum(self._sizes.values())
        self._trim()

    def get(self, key: str) -> bytes | None:
        """What was put under a key of 32 hexadecimal digits, or None."""
        name = f"{key}.tile"
        # The lock guards the table alone: files are read outside it.
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        path = self._folder / name
        try:
            body = path.read_bytes()
            os.utime(path)  # so that the next start knows the order
        except OSError:  # somebody has removed it
            with self._lock:
                self._bytes -= self._sizes.pop(name, 0)
            return None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep an answer."""
        if len(body) > self._most:
            return
        path = self._folder / f"{key}.tile"
        try:
            # Somebody may have emptied the cache by removing its folder.
            self._make_folder()
            with atomic_file(path, overwrite=True) as file:
                file.write(body)
        # A full disk costs speed, not the answer; it is said once, not for each tile.
        except OSError as error:
            if not self._warned:
                log.warning("tiles are not kept: %s", explain(path, error))
            self._warned = True
            return
        self._warned = False
        with self._lock:
            self._bytes += len(body) - self._sizes.pop(path.name, 0)
            self._sizes[path.name] = len(body)
            self._trim()

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _trim(self) -> None:
        while self._bytes > self._most:
            name, size = self._sizes.popitem(last=False)
            self._bytes -= size
            with suppress(OSError):
                (self._folder / name).unlink()


def _tiles_in(folder: Path) -> Iterator[tuple[int, str, int]]:
    """(time, name, size) of the tiles of a folder, which another server may remove meanwhile."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_file():
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    yield status.st_mtime_ns, entry.name, status.st_size
