"""Plans of renders that a test chooses, whatever fits in memory."""

from __future__ import annotations

import pytest

from diinn_fast.inference.plan import Plan, Task
from diinn_fast.inference.rendering import planning


def six_tiles(monkeypatch: pytest.MonkeyPatch, block: tuple[int, int], strip: int = 16) -> None:
    """Every render has six tiles, blocks of at most this size, and strips of ``strip`` rows."""

    def made(task: Task, base: int, bound: int) -> Plan:
        radius = task.radius or 0
        return Plan(task.lr, task.hr, task.unit, radius, (2, 3), block, strip, 1 << 16, 0)

    monkeypatch.setattr(planning, "plan_within", made)
