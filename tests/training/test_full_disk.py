"""A disk that fills up while a run is saved: unfinished work, not a refusal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from diinn_fast.errors import UnfinishedError
from diinn_fast.training.checkpoints import AtomicCheckpointIO


def test_a_checkpoint_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "last.ckpt"
    path.write_bytes(b"the last one")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UnfinishedError, match="the disk is full"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == b"the last one"
