"""Timing peers against each other: round-robin, so that whatever slows the machine down hits all
alike.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

LONG = 1.5
"""Seconds of a first call beside which the cost of warming up does not count."""


def interleave(
    calls: Mapping[str, Callable[[], object]],
    clock: Callable[[Callable[[], object]], float],
    budget: float = 1.0,
    most: int = 20,
) -> dict[str, list[float]]:
    """Seconds of every call, ``{name: samples}``; each gets rounds for about ``budget`` seconds, 2
    to ``most``.

    A first call of each warms up and says how many rounds it gets; above a second and a half it is
    a sample too. Calls with fewer rounds are spread evenly over all rounds, and every round starts
    with another call, so that no call always follows the same one.
    """
    names = list(calls)
    first = {name: clock(calls[name]) for name in names}
    samples = {name: [first[name]] if first[name] > LONG else [] for name in names}
    rounds = {name: rounds_for(first[name], budget, most) - len(samples[name]) for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        total = max(rounds.values(), default=0)
        for n in range(total):
            start = n % len(names)
            for name in names[start:] + names[:start]:
                if (n + 1) * rounds[name] // total > n * rounds[name] // total:
                    samples[name].append(clock(calls[name]))
    finally:
        if collecting:
            gc.enable()
    return samples


def rounds_for(first: float, budget: float, most: int) -> int:
    """At least 3, of calls above a second and a half 2."""
    return max(3 if first < LONG else 2, min(most, int(budget / max(first, 1e-9))))


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median and spread, in seconds."""
    ordered = sorted(samples)
    quartiles = (
        statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    )
    return {
        "median": statistics.median(ordered),
        "min": ordered[0],
        "q1": quartiles[0],
        "q3": quartiles[2],
        "max": ordered[-1],
        "rounds": len(ordered),
    }


class Replay:
    """A timer for pytest-benchmark that gives it samples taken before.

    pytest-benchmark runs its tests one after the other, which would let drift favour some peers. So
    peers are timed together, and each test only reports: the difference between two readings of
    this timer is the next sample.
    """

    __name__ = "replay"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples: Sequence[float]) -> None:
        """Give pytest-benchmark these samples at its next round."""
        self._readings = iter([reading for s in samples for reading in (0.0, s)])

    def __call__(self) -> float:
        """The next sample's beginning or end; the clock when there are none."""
        reading = next(self._readings, None)
        # The package pytest-benchmark looks at a timer's precision.
        return time.perf_counter() if reading is None else reading


REPLAY = Replay()
