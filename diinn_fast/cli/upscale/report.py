"""Messages of ``diinn-fast upscale``: progress, failures, and the result of a batch."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diinn_fast.cli.upscale.found import HIDDEN, LeftOut
from diinn_fast.inference.rendering.report import duration

PROGRESS_SECONDS = 30.0
"""Between two lines of progress, where there is no terminal for a bar."""

NAMED = 3
"""How many files a reason names; the others are counted."""


def factor_text(
    asked: float | tuple[float, ...] | None, lr: tuple[int, int], hr: tuple[int, int]
) -> str:
    """By how much a picture grew."""
    if isinstance(asked, float):
        return f"x{asked:g}"
    vertical, horizontal = (f"x{out / n:.3g}" for out, n in zip(hr, lr, strict=True))
    return vertical if vertical == horizontal else f"{vertical} down, {horizontal} across"


@dataclass
class Tally:
    """What became of every file of a batch."""

    done: int = 0
    failed: int = 0
    skipped: list[LeftOut] = field(default_factory=list)

    def skip(self, path: Path, why: str) -> None:
        """Count a file that is not worked on."""
        self.skipped.append(LeftOut(path, why))

    def line(self, left: int = 0) -> str:
        """``3 done, 2 skipped (1 exists already: a.png; 1 hidden), 1 failed``; ``left`` were not
        begun.
        """
        parts = [f"{self.done} done"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped ({'; '.join(_reasons(self.skipped))})")
        parts.append(f"{self.failed} failed")
        if left:
            parts.append(f"{left} not begun")
        return ", ".join(parts)


def _reasons(skipped: Iterable[LeftOut]) -> Iterable[str]:
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for what in skipped:
        by_reason[what.why].append(what.path)
    for why, paths in by_reason.items():
        names = ", ".join(str(path) for path in paths[:NAMED])
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        yield f"{len(paths)} {why}" + ("" if why == HIDDEN else f": {names}{more}")


class ProgressLines:
    """A line now and then on stderr: which picture of how many, how far it is, time left for all.

    Called with what is done of a picture and what there is to do.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._before = 0
        self._worked = 0
        self._source = Path()
        self._started = self._said = time.monotonic()

    def begin(self, source: Path, before: int, worked: int) -> None:
        """The next picture: ``before`` others came first, of which ``worked`` on took time."""
        self._source = source
        self._before = before
        self._worked = worked

    def __call__(self, done: int, total: int) -> None:
        """Print how far the picture is, now and then."""
        now = time.monotonic()
        if now - self._said < PROGRESS_SECONDS or not 0 < done < total:
            return
        self._said = now
        part = done / total
        # Pictures that were skipped say nothing of how long the others take.
        rest = self._count - self._before - part
        left = (now - self._started) * rest / (self._worked + part)
        place = f"picture {self._before + 1} of {self._count}, " if self._count > 1 else ""
        print(
            f"diinn-fast: {place}{self._source}: {100 * part:.0f} %, about {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )
