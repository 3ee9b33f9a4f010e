"""What people do to a model, as functions that do it to the published one and to ours alike.

Each takes a model and changes it, or returns what takes its place. `tests.helpers.side_by_side`
tries them on both.
"""

from tests.helpers.edits import (
    calls,
    classes,
    hooks,
    layers,
    lists,
    parameters,
    surroundings,
    weights,
    whole,
)
from tests.helpers.edits.registry import EDITS, ROUNDED, SILENT, Edit

__all__ = [
    "EDITS",
    "ROUNDED",
    "SILENT",
    "Edit",
    "calls",
    "classes",
    "hooks",
    "layers",
    "lists",
    "parameters",
    "surroundings",
    "weights",
    "whole",
]
