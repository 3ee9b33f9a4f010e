"""The files of a picture: their digest, and whether they have changed since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diinn_fast.errors import ImageError


class InputFiles:
    """A picture's file, or all files of its folder (Zarr); none for what is in memory.

    Attributes:
        identity: digest of names and bytes, so that a restored or moved picture is the same; empty
            for what is in memory.
    """

    def __init__(self, picture: Any) -> None:
        is_path = isinstance(picture, (str, os.PathLike))
        self._path = Path(picture) if is_path else None
        self._stamps = self._look()
        self.identity = self._digest()

    def changed(self) -> bool:
        """Whether the bytes are others than at the beginning; they are read again only if size or
        time of a file is.
        """
        if self._path is None or self._look() == self._stamps:
            return False
        try:
            return self._digest() != self.identity
        except ImageError:
            return True

    def _look(self) -> list[tuple[str, int, int]]:
        """(name, size, time of change) of each file."""
        found = []
        for name, file in self._files():
            status = file.stat()
            found.append((name, status.st_size, status.st_mtime_ns))
        return found

    def _digest(self) -> str:
        if self._path is None:
            return ""
        digest = hashlib.sha256()
        for name, file in self._files():
            try:
                # Contents, not times: a file may be replaced within the resolution of its time
                # stamp.
                with open(file, "rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise ImageError(
                    f"{file} can no longer be read ({error.strerror}): restore it."
                ) from error
            digest.update(f"{name}\0{content}\n".encode())
        return digest.hexdigest()

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self._path is None:
            return
        if not os.path.isdir(self._path):
            if os.path.exists(self._path):
                yield "", self._path
            return
        for file in sorted(self._path.rglob("*")):
            if os.path.isfile(file):
                yield file.relative_to(self._path).as_posix(), file
