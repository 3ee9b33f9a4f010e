"""``diinn-fast train``: see ``diinn_fast.training``, which has the options."""

from __future__ import annotations

from diinn_fast import training


def main(arguments: list[str]) -> int:
    training.main([a for a in arguments if a != "--debug"])
    return 0
