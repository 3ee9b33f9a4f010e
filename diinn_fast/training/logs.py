"""Figures of a run as JSON, one line per record: ``{"step": 500, "train/l1": 0.041, ...}`` after
500 steps.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLines(Logger):
    """Appends to ``path``, also when a run is resumed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Lightning's name of the log."""
        return self.path.stem

    @property
    def version(self) -> str:
        """Empty: a run has one log."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        values = {k: float(f"{v:.6g}") for k, v in metrics.items() if k != "epoch"}
        with self.path.open("a") as file:
            file.write(
                json.dumps({"step": (step or 0) + 1, "time": round(time.time()), **values}) + "\n"
            )
