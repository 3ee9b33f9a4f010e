"""A trained model that shows the model in training what to make of clean inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.data import Pairs
from diinn_fast.encoders import use_fast_weights
from diinn_fast.loading import load_model


class Teacher:
    """A frozen model that sees the LR crops as they were before they were spoiled.

    Its output is a smoother target than the photograph, and its features are what an encoder should
    find in spite of noise and compression (distillation; Hinton et al., 2015).

    Args:
        name: of the model, as `diinn_fast.loading.load_model` takes it.
        share: of its output in the targets; the photograph has the rest.
        features: weight in the loss of the distance of the features, in standard deviations.
    """

    def __init__(self, name: str, share: float, features: float) -> None:
        self.share = share
        self.features = features
        self.model: Any = load_model(name).eval().requires_grad_(False)
        encoder: Any = self.model.encoder
        use_fast_weights(encoder)

    @torch.no_grad()
    def encode(self, clean: Tensor) -> Tensor:
        """Features of clean LR crops in [-1, 1]."""
        model: nn.Module = self.model.to(clean.device)
        encoder: Any = model.encoder
        out: Tensor = encoder(clean)
        return out

    @torch.no_grad()
    def target(self, features: Tensor, pairs: Pairs, photograph: Tensor) -> Tensor:
        """Its output and the photograph, mixed; both like the network's output."""
        if pairs.yx is None:
            rgb = self.model.decode(features, pairs.size)
        else:
            rgb = self.model.sample_pixels(features, pairs.yx, pairs.size)
        return torch.lerp(photograph, rgb.float(), self.share)

    def distance(self, found: Tensor, features: Tensor) -> Tensor:
        """What the features of the model in training add to the loss."""
        return self.features * F.l1_loss(found.float(), features.float()) / features.float().std()
