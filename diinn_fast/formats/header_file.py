"""A picture's file on its way to a decoder that reads its header piece by piece, in Python: a small
file may have a million pieces, which some decoders join one by one.
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO


class HeaderFile:
    """A binary file that can be read ``most`` times, whatever is read, until `opened`."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._left: float = most

    def read(self, size: int = -1) -> bytes:
        """As of any file; ValueError when it was read too often."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("its header has too many parts")
        return self._file.read(size)

    def opened(self) -> None:
        """From now on it can be read for ever."""
        self._left = math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
