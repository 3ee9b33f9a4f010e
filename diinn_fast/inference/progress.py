"""How far a picture is: a bar on a terminal, or a caller's function."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from tqdm import tqdm

Progress = bool | Callable[[int, int], None]
"""True: a bar on stderr. A function: called with what is done and what there is to do, now and
then, possibly by another thread.
"""


class Bar(Protocol):
    """What work is reported to."""

    def update(self, n: float | None = 1) -> Any:
        """So much more is done."""

    def __enter__(self) -> Bar: ...

    def __exit__(self, *error: Any) -> Any: ...


class CalledBar:
    """A bar that tells a function."""

    def __init__(self, progress: Callable[[int, int], None], total: int, initial: int) -> None:
        self._progress = progress
        self._total = total
        self._done = initial
        self._lock = threading.Lock()

    def update(self, n: float | None = 1) -> None:
        """See `Bar`."""
        with self._lock:
            self._done += int(n or 0)
            self._progress(self._done, self._total)

    def __enter__(self) -> CalledBar:
        return self

    def __exit__(self, *error: Any) -> None:
        """Nothing to close."""


def make_bar(progress: Progress, total: int, initial: int = 0, *, unit: str = "px") -> Bar:
    """The bar of one piece of work; a silent one for ``progress`` False."""
    if callable(progress):
        return CalledBar(progress, total, initial)
    result: Bar = tqdm(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit == "px",
        delay=1,
        leave=False,
        disable=not progress,
    )
    return result
