"""What LIIF and Meta-SR share: an encoder, a network ``imnet``, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import nn

from diinn_fast.checkpoints import Checkpoint, fit, read_checkpoint
from diinn_fast.encoders import detect_encoder, encoder_names, make_encoder, without_unused
from diinn_fast.errors import CheckpointError


class Baseline(nn.Module):
    """A model that is determined by its encoder, given by name or as a module."""

    anchor = "imnet.layers.0.weight"
    """A tensor by which a state_dict is known to be of one of these."""

    def __init__(self, encoder: str | nn.Module = "edsr-baseline") -> None:
        super().__init__()
        self.encoder = make_encoder(encoder)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Model from a file in the LIIF authors' layout or a training checkpoint. Raises
        CheckpointError.
        """
        return cls.from_tensors(read_checkpoint(path, {cls.__name__: cls.anchor}))

    @classmethod
    def from_tensors(cls, checkpoint: Checkpoint) -> Self:
        """Model from what was read of a file; every tensor must be there, fit, and be finite."""
        encoder = detect_encoder(checkpoint.parts("encoder"))
        if encoder is None:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} has an encoder that is none of {encoder_names()}: "
                f"build the model as {cls.__name__}(encoder) and use its load_state_dict"
            )
        with torch.device("meta"):
            model = cls(encoder)
        fit(model, without_unused(checkpoint.state), checkpoint.path)
        return model
