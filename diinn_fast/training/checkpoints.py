"""What is kept of a run, and when it ends early: ``last.ckpt``, ``best.ckpt``, Ctrl-C, a limit of
time.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from diinn_fast.errors import CheckpointError, UnfinishedError
from diinn_fast.files import atomic_file, explain
from diinn_fast.training.portable import read_run


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear complete or not at all; loading executes no code, and takes run files
    too.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, complete or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_file(path, overwrite=True) as file:
                torch.save(checkpoint, file)
        except OSError as error:
            raise UnfinishedError(explain(path, error)) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """A checkpoint or a run file; nothing but tensors and plain values is loaded."""
        if Path(path).suffix == ".safetensors":
            return read_run(path)
        try:
            result: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
            return result
        except Exception as error:  # damaged pickles raise anything
            raise CheckpointError(
                f"{path} is damaged, or holds more than tensors and plain values: remove it, or "
                "put best.ckpt there"
            ) from error


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` regularly and at the end, ``best.ckpt`` whenever the validation is better
    than ever.

    Ctrl-C (or SIGTERM) ends training after the step that runs, with its state saved; a second one
    ends it at once.

    Args:
        every: steps between two states of last.ckpt; a crash loses no more than these.
        minutes: the same in minutes, whichever comes first.
        stop_after: minutes after which training ends, as at Ctrl-C.
    """

    def __init__(
        self, every: int = 500, minutes: float = 10.0, stop_after: float | None = None
    ) -> None:
        self.every = every
        self.minutes = minutes
        self.stop_after = stop_after
        self.best = float("-inf")
        self.stopped = ""  # why training ended early
        self._signal = ""
        self._before: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, which a resumed run has to beat."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of the run."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and catch the signals that end a run in order."""
        self._begin = self._saved = time.monotonic()
        self._step = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = "interrupted"

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save ``last.ckpt`` where it is due, and stop the run where time is over."""
        step = trainer.global_step
        if step == self._step:
            return  # gradients are still being accumulated
        self._step = step
        now = time.monotonic()
        over = self.stop_after is not None and now - self._begin >= self.stop_after * 60
        stop = self._signal or ("time is over" if over else "")
        late = now - self._saved >= self.minutes * 60
        if trainer.world_size > 1:  # clocks and signals differ between ranks
            stop, late = trainer.strategy.broadcast((stop, late))
        if stop:
            self.stopped = stop
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # no last validation: whoever stops wants to stop now
        # Saved at the last step too: the run's model is made from this file.
        if stop or late or step % self.every == 0 or step == trainer.max_steps:
            self._save(trainer, "last")
            self._saved = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save ``best.ckpt`` after a validation that is better than all before."""
        score = trainer.callback_metrics.get("val/psnr")
        if score is not None and not trainer.sanity_checking and float(score) > self.best:
            self.best = float(score)
            self._save(trainer, "best")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(os.path.join(trainer.default_root_dir, f"{name}.ckpt"))
