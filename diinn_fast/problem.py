"""What a decode operator is given, each thing by name: the problem, its weights, and the sums of
their gradients.

A leaf: decoder, packing, operator and backends all import it, it imports ``geometry`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from diinn_fast.geometry import Window, area_ratio, lr_range


@dataclass(frozen=True)
class Problem:
    """Everything about a decode except the numbers in ``source`` and ``weights``.

    Queries are either a ``window`` of the HR grid, or points: ``index`` ``[B, N]`` int64, the
    flattened source pixel of each, and ``offset`` ``[B, N, 2]``, its (dy, dx).
    """

    form: str
    mode: int
    lr: tuple[int, int]
    """Whole LR size (h, w)."""
    origin: tuple[int, int]
    """LR row and column of the source's first pixel (a tile starts elsewhere than at 0, 0)."""
    size: tuple[int, int]
    """Whole HR size (H, W)."""
    window: Window | None
    index: Tensor | None
    offset: Tensor | None
    chunk: int
    """Most queries at a time, 0 = the backend's default."""

    @property
    def ratio(self) -> float:
        """The third component of every position: LR pixels per HR pixel."""
        return area_ratio(self.lr, self.size)

    def grid(self, source: Tensor) -> tuple[int, int]:
        """LR rows and columns that ``source`` covers."""
        halo = 2 if self.form == "direct" else 0
        return source.shape[1] - halo, source.shape[2] - halo

    def check_source(self, source: Tensor) -> None:
        """IndexError if the window's queries lie outside the source, where a kernel would read what
        is not its own.
        """
        if self.window is None:
            return
        y0, y1, x0, x1 = self.window
        i, j = self.origin
        rows, columns = self.grid(source)
        top, bottom = lr_range(y0, y1, self.lr[0], self.size[0])
        left, right = lr_range(x0, x1, self.lr[1], self.size[1])
        if top < i or bottom > i + rows or left < j or right > j + columns:
            raise IndexError(
                f"window {tuple(self.window)} needs LR pixels outside the source's "
                f"{rows}x{columns} tile"
            )

    def output_shape(self, batch: int, channels: int) -> tuple[int, ...]:
        """``[B, channels, rows, columns]`` for a window, ``[B, N, channels]`` for points."""
        if self.window is None:
            assert self.index is not None
            return batch, self.index.shape[1], channels
        return batch, channels, *self.window.shape


class Weights(NamedTuple):
    """Per-query weights, in the order in which operators take them.

    H is the hidden width, L the number of layers, C the feature channels. ``hidden`` is
    ``[L-1, 2H, H]``, rows K_i (recurrent part) then Q_i; in the *modulation* form, where the K
    branch is done at LR size, it is ``[L-1, H, H]``, Q_i alone. ``position`` is Q_0: ``[H, 3]``, or
    ``[H, 9C]`` with init_q. ``last`` is the RGB layer ``[3, H]``, or in mode 4 its nine taps
    ``[27, H]``, row ``(ky*3 + kx)*3 + channel``.
    """

    position: Tensor
    position_bias: Tensor  # [H]
    hidden: Tensor
    hidden_bias: Tensor  # [L-1, H], of the Q_i
    last: Tensor
    last_bias: Tensor

    @property
    def width(self) -> int:
        """H, the hidden width."""
        return self.position.shape[0]

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return self.hidden.shape[0] + 1

    @property
    def channels(self) -> int:
        """Output channels: rows of the last layer."""
        return self.last.shape[0]

    def check(self) -> None:
        """ValueError unless all shapes fit together: kernels are given addresses."""
        for name, dimensions in (("position", 2), ("hidden", 3), ("last", 2)):
            found = getattr(self, name).shape
            if len(found) != dimensions:
                raise ValueError(
                    f"weights.{name} must have {dimensions} dimensions, got {list(found)}"
                )
        h = self.width
        layers = len(self.hidden)
        expected = {
            "position_bias": (h,),
            "hidden": (layers, h if self.hidden.shape[1] == h else 2 * h, h),
            "hidden_bias": (layers, h),
            "last": (self.channels, h),
            "last_bias": (self.channels,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"weights.{name} must be {list(shape)}, got {list(found)}")


class ContentWeights(NamedTuple):
    """What the direct form needs besides: content products per query, and the extra sine layer of
    init_q.
    """

    content: Tensor  # [L*H, 9C] (mode 1: [H, 9C]), columns c*9 + ky*3 + kx
    content_bias: Tensor  # [L*H]
    first: Tensor | None = None  # [9C, 3]
    first_bias: Tensor | None = None  # [9C]


def query_weights(weights: Sequence[Tensor]) -> Weights:
    """The per-query weights, by name, of the list that operators take."""
    return Weights(*weights[: len(Weights._fields)])


def content_weights(weights: Sequence[Tensor]) -> ContentWeights | None:
    """The direct form's content weights, by name, of the list that operators take; else None."""
    rest = weights[len(Weights._fields) :]
    return ContentWeights(*rest) if rest else None


@dataclass
class Gradients:
    """Sums of the gradients of a decode's inputs, by name; None where one is not needed."""

    source: Tensor | None = None
    position: Tensor | None = None
    position_bias: Tensor | None = None
    hidden: Tensor | None = None
    hidden_bias: Tensor | None = None
    last: Tensor | None = None
    last_bias: Tensor | None = None
    content: Tensor | None = None
    content_bias: Tensor | None = None
    first: Tensor | None = None
    first_bias: Tensor | None = None

    @classmethod
    def zeros(
        cls, inputs: Sequence[Tensor], needs: Sequence[bool], dtype: torch.dtype
    ) -> Gradients:
        """Zeros in the shape of [source, *weights] where needed, in ``dtype``."""
        return cls(
            *(
                torch.zeros(v.shape, dtype=dtype, device=v.device) if need else None
                for v, need in zip(inputs, needs, strict=True)
            )
        )

    def like(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The sums in the shape and dtype of [source, *weights]; empty where not needed."""
        sums = [getattr(self, field.name) for field in fields(self)][: len(inputs)]
        return [
            v.new_empty(0) if s is None else s.reshape(v.shape).to(v.dtype)
            for v, s in zip(inputs, sums, strict=True)
        ]


def entry(total: Tensor | None, index: int | slice) -> Tensor | None:
    """``total[index]``, or None where the gradient is not needed."""
    return None if total is None else total[index]
