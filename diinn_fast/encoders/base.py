"""What an encoder tells the rest of the package: its name, tensors, receptive radius and cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from diinn_fast.reach import known


@dataclass(frozen=True)
class Cost:
    """Working memory of an encoder, and what it costs to do with less.

    Figures are 1.05 times the worst measured (CPU, torch 2.13), features included. The defaults
    are a guess, for encoders that state no cost.
    """

    floats: int = 480
    """Peak numbers per LR pixel while an image is encoded in one piece."""
    floats_bounded: int = 480
    """The same under a memory bound, where freed memory is given back, and without what
    ``work_bytes`` bounds.
    """
    shares: tuple[float, ...] = ()
    """Shares of the free memory that a plan tries to give to ``forward(x, work_bytes=...)``; none
    for an encoder that has no such argument.
    """

    def extra(self, pixels: int, work_bytes: int) -> float:
        """How many times as much is computed for ``pixels`` LR pixels within ``work_bytes``."""
        return 1.0


class Encoder(nn.Module, ABC):
    """Base of the encoders that have a name: ``[B, 3, h, w]`` to features ``[B, C, h, w]``.

    Zero padding, stride 1: the LR grid is kept. A class is made without arguments as published,
    and is registered in `diinn_fast.encoders`; nothing else in the package knows its name.

    A user's encoder is any ``nn.Module`` of that shape. It may state ``out_channels`` (or
    ``out_dim``, as LIIF's do; 64 is assumed otherwise), ``receptive_radius`` (without it an image
    is encoded in one piece), and ``cost`` (a `Cost`).
    """

    name: ClassVar[str]
    """What users and configurations call it."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of tensors that authors' files have and that compute nothing."""
    out_channels: int

    @classmethod
    @abstractmethod
    def detect(cls, keys: Collection[str]) -> bool:
        """Whether a state_dict with these keys (without a prefix) is of this encoder."""

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """Features as the authors' code computes them: each layer is called, in PyTorch's default
        memory format.
        """

    def has_pairs(self) -> bool:
        """Whether `in_pairs` has features on this CPU, with the layers as they are."""
        return False

    def in_pairs(self, x: Tensor) -> Tensor | None:
        """Features of float32 images in products of bfloat16 pairs, some 2e-6 from `forward`'s and
        without gradients, on CPUs with AMX; None where that is not to be had.
        """
        return None

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """Its working memory, as measured."""

    @property
    def out_dim(self) -> int:
        """The official code's name of ``out_channels``."""
        return self.out_channels

    @property
    def receptive_radius(self) -> int:
        """LR pixels on each side that a feature depends on.

        There is none where a layer was put in that may look further than its convolutions.
        """
        for module in self.modules():
            if not known(module):
                raise AttributeError(f"{type(module).__name__} may look at the whole picture")
        return convolution_radius(self)


def channels_of(encoder: nn.Module) -> int:
    """Channels of the features: what the encoder states as ``out_channels`` or ``out_dim``, else
    64.
    """
    for name in ("out_channels", "out_dim"):
        stated = getattr(encoder, name, None)
        if isinstance(stated, int):
            return stated
    return 64


def cost_of(encoder: nn.Module) -> Cost:
    """What the encoder states as its cost, else a guess."""
    stated = getattr(encoder, "cost", None)
    return stated if isinstance(stated, Cost) else Cost()


def convolution_radius(encoder: nn.Module) -> int:
    """LR pixels on each side that a feature depends on, for an encoder that is one chain of its
    convolutions.

    The sum of their radii; a skip connection sees less, not more. (Of convolutions in parallel it
    is a bound.)
    """
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    return sum(
        max(d * (k - 1) // 2 for k, d in zip(c.kernel_size, c.dilation, strict=True))
        for c in convolutions
    )


def convolution_macs(encoder: nn.Module) -> int:
    """Multiply-adds per LR pixel, for an encoder of convolutions of stride 1: their weights."""
    return sum(m.weight.numel() for m in encoder.modules() if isinstance(m, nn.Conv2d))
